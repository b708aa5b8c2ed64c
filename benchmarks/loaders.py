"""Tiles of a slide through PyTorch's DataLoader, by a data set of each reader."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks import process

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BATCH", "TilesOfReader", "loaded"]

BATCH = 32
"""Tiles of a batch."""
LONGEST = 60
"""Upper bound in seconds on the time of a batch: a worker that hangs is an error."""

_before = 0.0
"""MiB of this process before its first tile."""


class TilesOfReader:
    """Data set of squares of a slide, each by a call of a reader, which each process opens."""

    def __init__(
        self, kind: Callable[[str], Any], folder: str, at: list[list[int]], size: int
    ) -> None:
        self.kind, self.folder, self.at, self.size = kind, folder, at, size
        self.reader: Any = None

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> Any:
        if self.reader is None:
            self.reader = self.kind(self.folder)
            self.reader.load_more()
            self.reader.open()
        return self.reader.region(*self.at[index], self.size)[:, :, :3]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"reader": None}


def _note(number: int) -> None:
    global _before
    process.reset_peak()
    _before = process.memory("VmRSS:")


def _collated(tiles: list[Any]) -> tuple[Any, float]:
    import numpy as np
    import torch

    return torch.from_numpy(np.stack(tiles)), process.peak_memory() - _before


def loaded(tiles: Any, workers: int, start: str | None) -> dict[str, float]:
    """Read all tiles of a data set in batches.

    Returns
    -------
    dict
        Milliseconds from the first batch, when all workers have begun, to the last, as if they had
        been all; and the largest memory of a worker in MiB, beyond that before its first tile.

    """
    from torch.utils.data import DataLoader

    _note(0)
    batches = iter(
        DataLoader(
            tiles,
            BATCH,
            num_workers=workers,
            multiprocessing_context=start,
            collate_fn=_collated,
            worker_init_fn=_note,
            timeout=LONGEST if workers else 0,
        )
    )
    for _ in range(max(1, workers)):
        _, most = next(batches)
    begun, count = time.perf_counter(), 0
    for pixels, more in batches:
        count += len(pixels)
        most = max(most, more)
    ms = (time.perf_counter() - begun) * 1000
    return {"ms": ms * len(tiles) / count, "worker_MiB": most}
