"""What was measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Results"]


@dataclasses.dataclass
class Results:
    """Measures by (task, reader): a dictionary of quantities for each round."""

    measures: dict[tuple[str, str], list[dict[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    reasons: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    """Reason for a missing measure of a reader and task."""
    differences: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    """Differences of pixels between a reader and the bare decoder."""

    def add(self, task: str, reader: str, found: dict[str, Any], unit: int = 1) -> None:
        """Record a measure, or the reason for a missing one."""
        if "error" in found:
            self.reasons[task, reader] = found["error"]
            return
        scaled = {k: v / unit if k in ("ms", "cpu_ms", "read_MB") else v for k, v in found.items()}
        self.measures.setdefault((task, reader), []).append(scaled)

    def values(self, task: str, reader: str, quantity: str = "ms") -> np.ndarray:
        """Return a quantity, with a value for each round.

        Raises
        ------
        LookupError
            With the reason, where there is none.

        """
        if (task, reader) in self.reasons:
            raise LookupError(f"{reader}: {self.reasons[task, reader]}")
        if (task, reader) not in self.measures:
            raise LookupError("not run")
        return np.array([found[quantity] for found in self.measures[task, reader]])

    def best(self, task: str, readers: Sequence[str]) -> np.ndarray:
        """Return the milliseconds of the fastest reader."""
        return min((self.values(task, reader) for reader in readers), key=np.median)
