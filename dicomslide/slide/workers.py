"""Which share of the work is this process's: worker of a DataLoader, rank among processes."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

__all__ = ["Share", "rank_of", "worker_share"]


class Share(NamedTuple):
    """One of several equal shares."""

    number: int
    """From 0 on."""
    of: int
    """How many there are."""


def worker_share() -> Share | None:
    """Return which worker of a PyTorch DataLoader this process is; None elsewhere."""
    module = sys.modules.get("torch.utils.data")  # a worker has imported it
    worker = None if module is None else module.get_worker_info()
    return None if worker is None else Share(worker.id, worker.num_workers)


def rank_of(rank: int | None, world_size: int | None) -> Share:
    """Return which of the processes of a distributed run this is.

    Parameters
    ----------
    rank, world_size : int or None
        Number of this process, from 0 on, and number of processes; by default those of the
        environment variables ``RANK`` and ``WORLD_SIZE``, which torchrun and others set, else 0
        and 1.

    Raises
    ------
    TypeError
        When just one of them is given.
    ValueError
        When they aren't such numbers.

    """
    if (rank is None) != (world_size is None):
        raise TypeError("either both rank and world_size must be given, or none of them")
    given: tuple[object, object] = (rank, world_size)
    whence = "rank and world_size"
    if rank is None:
        given = (os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1"))
        whence = "the environment variables RANK and WORLD_SIZE"
    try:
        number, of = (int(each) for each in given)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number, of = -1, 0
    if not 0 <= number < of:
        raise ValueError(f"{whence} are {given[0]!r} and {given[1]!r}: expected 0 <= rank < size")
    return Share(number, of)
