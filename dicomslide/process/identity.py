"""Equality and hashes that are the same in every process."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Identified"]


class Identified:
    """Base of what is equal, and hashed, by what dask names it by.

    Python's own hash of text differs from process to process; this one doesn't.
    """

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        """Return what tells this object from others: texts, numbers, and tuples of them."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dask_tokenize__() == other.__dask_tokenize__()

    def __hash__(self) -> int:
        digest = hashlib.sha256(repr(self.__dask_tokenize__()).encode()).digest()
        return int.from_bytes(digest[:7], "big")
