"""A reader in two processes at once, each of which reads half of the tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["InTwoProcesses"]


class InTwoProcesses(Reader):
    """Two processes with the same reader, which are told to read at the same time.

    Parameters
    ----------
    folder : str
        The slide.
    reader : str
        Name of the reader.

    """

    def __init__(self, folder: str, reader: str) -> None:
        super().__init__(folder)
        self.reader = reader

    def load(self) -> None:
        from benchmarks.run import Child

        self.children = [Child(self.reader, Path(self.folder)) for _ in range(2)]

    def open(self) -> None:
        for _ in self._answers("forget", [{}, {}]):
            pass

    def forget(self) -> None:
        self.open()

    def _answers(
        self, operation: str, arguments: list[dict[str, Any]]
    ) -> Iterator[dict[str, float]]:
        for child, given in zip(self.children, arguments, strict=True):
            child.tell(operation, given)
        for child in self.children:
            answer = child.hear()
            if "error" in answer:
                raise RuntimeError(answer["error"])
            yield answer

    def _halves(self, operation: str, at: list[list[int]], size: int) -> dict[str, float]:
        middle = len(at) // 2
        halves = [{"at": half, "size": size} for half in (at[:middle], at[middle:])]
        answers = list(self._answers(operation, halves))
        return {
            "cpu_ms": sum(answer["cpu_ms"] for answer in answers),
            "MiB": max(answer["MiB"] for answer in answers),
        }

    def regions(self, at: list[list[int]], size: int) -> dict[str, float]:
        return self._halves("regions", at, size)

    def scaled_regions(self, at: list[list[int]], size: int) -> dict[str, float]:
        return self._halves("scaled_regions", at, size)

    def written_regions(self, at: list[list[int]], size: int) -> dict[str, float]:
        return self._halves("written_regions", at, size)
