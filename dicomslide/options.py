"""Options of a process, and checks against its memory limit."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from dicomslide.errors import MemoryLimitError
from dicomslide.process.budget import set_budget
from dicomslide.process.changes import tell_of_changes
from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray

__all__ = ["Options", "allocated", "check_memory", "get_options", "set_options"]


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 16 * 2**30


LEAST_BUDGET, MOST_BUDGET = 512 * 2**20, 2**30
"""Bounds of the default of `memory_budget`: it leaves room beside both caches of frames."""


def _default_budget() -> int:
    return max(LEAST_BUDGET, min(_physical_memory() // 8, MOST_BUDGET))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a process.

    Each can be set beforehand by an environment variable, ``DICOMSLIDE_`` and its name in
    capitals, which is how the workers of a cluster get them.
    """

    memory_budget: int = dataclasses.field(default_factory=_default_budget)
    """Upper bound on the bytes of all cached values of the process: decoded and received frames,
    headers, positions and offsets of frames, bytes that were read ahead, colour tables. The least
    recently used values are dropped first. By default an eighth of the machine's memory, but not
    less than 512 MiB nor more than 1 GiB. It bounds `frame_cache_bytes` and `encoded_cache_bytes`,
    too. Arrays and the values that open slides hold aren't counted."""

    frame_cache_bytes: int = 256 * 2**20
    """Upper bound on the bytes of decoded frames that the process caches, over all images; 0 for
    none. Frames of JPEG are cached while there is room, or when they are read again; those that
    take longer to decode, always; native ones, never. Frames that are decoded ahead of a read may
    take an eighth of it in addition."""

    memory_limit_bytes: int = dataclasses.field(default_factory=_physical_memory)
    """Upper bound on the bytes of an array; by default the machine's memory."""

    num_threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    """Threads that decode the frames of one eager read. Where regions follow one another in equal
    steps, as tiles do, the other threads decode those that follow; with 1, nothing is decoded
    ahead."""

    encoded_cache_bytes: int = 64 * 2**20
    """Upper bound on the bytes of frames, as they came from servers and buckets, that the process
    caches, over all images."""

    frame_folder: str = ""
    """Folder in which frames are cached as they came from servers and buckets; none by default.
    Several processes and users may share it. A folder that is made here is readable by its owner
    alone. Whoever can read the folder can see the images."""

    frame_folder_bytes: int = 4 * 2**30
    """Upper bound on the bytes of frames in that folder, over all images."""

    index_folder: str = ""
    """Folder in which the offsets of frames are cached for files and objects without an offset
    table, which have to be scanned; none by default. Several processes may share it."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "str":
                if not isinstance(value, str):
                    raise ValueError(f"{field.name} must be a text: {value!r}")
                continue
            lowest = 1 if field.name == "num_threads" else 0
            if not isinstance(value, int) or value < lowest:
                raise ValueError(f"{field.name} must be an integer of {lowest} or more: {value!r}")


def _from_environment() -> Options:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        variable = f"DICOMSLIDE_{field.name.upper()}"
        text = os.environ.get(variable)
        if text is not None and field.type == "str":
            values[field.name] = text
        elif text is not None:
            try:
                values[field.name] = int(text)
            except ValueError:
                raise ValueError(f"{variable} must be an integer: {text!r}") from None
    return Options(**values)


@dataclasses.dataclass(slots=True)
class _Change:
    """Options that were set together."""

    block: weakref.ref[set_options]
    """The block that set them; dead after a call without one."""
    thread: int
    """The thread that set them."""
    values: dict[str, Any]


class _Current:
    """The options in force, and the changes from which they result."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._options: Options | None = None
        self._lasting: Options | None = None
        """Options in force once all blocks have ended."""
        self._changes: list[_Change] = []
        """Earliest first: those of blocks that haven't ended and, since the first of these, those
        of calls without a block."""

    def get(self) -> Options:
        options = self._options
        if options is None:
            with self._lock:
                self._lasting = self._lasting or _from_environment()
                options = self._options = self._options or self._lasting
        return options

    def begin(self, block: set_options, values: dict[str, Any]) -> None:
        with self._lock:
            dataclasses.replace(self.get(), **values)  # which checks them
            if all(change.block() is not block for change in self._changes):
                change = _Change(weakref.ref(block), threading.get_ident(), dict(values))
                self._changes.append(change)
            self._update()
        tell_of_changes()

    def end(self, block: set_options) -> None:
        with self._lock:
            # no reference to the other blocks outlives the lock: they would seem to be in use
            places = (at for at, each in enumerate(self._changes) if each.block() is block)
            at = next(places, None)
            if at is not None:
                ended = self._changes.pop(at)
                for change in self._changes[at:]:
                    if change.block() is None and change.thread == ended.thread:
                        for name in ended.values.keys() & change.values.keys():
                            del change.values[name]
            self._update()
        tell_of_changes()

    def _update(self) -> None:
        lasting = self.get() if self._lasting is None else self._lasting
        changes: list[_Change] = []
        changed: dict[str, Any] = {}
        for change in self._changes:
            is_block = change.block() is not None
            if not is_block and not changes:
                lasting = dataclasses.replace(lasting, **change.values)
            elif not is_block and _is_call_of(change.thread, changes[-1]):
                changes[-1].values.update(change.values)
            else:
                changes.append(change)
            changed |= change.values
        self._changes, self._lasting = changes, lasting
        self._options = dataclasses.replace(lasting, **changed)


def _is_call_of(thread: int, change: _Change) -> bool:
    return change.block() is None and change.thread == thread


_current = _Current()
set_budget(lambda: _current.get().memory_budget)


def get_options() -> Options:
    """Return the options in force in this process."""
    return _current.get()


class set_options:
    """Set options for this process; used with ``with``, until the end of the block.

    Parameters
    ----------
    memory_budget : int, optional
        Upper bound on the bytes of all cached values of the process.
    frame_cache_bytes : int, optional
        Upper bound on the bytes of decoded frames among these, over all images; 0 for none.
    memory_limit_bytes : int, optional
        Upper bound on the bytes of an array.
    num_threads : int, optional
        Threads that decode the frames of one eager read.
    encoded_cache_bytes : int, optional
        Upper bound on the bytes of frames among these as they came from servers and buckets.
    frame_folder : str, optional
        Folder in which frames are cached as they came from servers and buckets; ``""`` for none.
        Several processes and users may share it. A folder that is made here is readable by its
        owner alone. Whoever can read the folder can see the images.
    frame_folder_bytes : int, optional
        Upper bound on the bytes of frames in that folder, over all images.
    index_folder : str, optional
        Folder in which the offsets of frames are cached for files and objects without an offset
        table, which have to be scanned; ``""`` for none.

    Notes
    -----
    The options apply to the process, not to the thread: the latest call in force decides. Calls
    without a block last. A call within a block of the same thread ends with the block, for the
    options that the block sets.

    Examples
    --------
    >>> import dicomslide
    >>> with dicomslide.set_options(num_threads=1):
    ...     dicomslide.get_options().num_threads
    1

    """

    def __init__(
        self,
        *,
        memory_budget: int | None = None,
        frame_cache_bytes: int | None = None,
        memory_limit_bytes: int | None = None,
        num_threads: int | None = None,
        encoded_cache_bytes: int | None = None,
        frame_folder: str | None = None,
        frame_folder_bytes: int | None = None,
        index_folder: str | None = None,
    ) -> None:
        given = {
            "memory_budget": memory_budget,
            "frame_cache_bytes": frame_cache_bytes,
            "memory_limit_bytes": memory_limit_bytes,
            "num_threads": num_threads,
            "encoded_cache_bytes": encoded_cache_bytes,
            "frame_folder": frame_folder,
            "frame_folder_bytes": frame_folder_bytes,
            "index_folder": index_folder,
        }
        self._changes: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        _current.begin(self, self._changes)

    def __enter__(self) -> Options:
        _current.begin(self, self._changes)  # once more, where the same block begins again
        return get_options()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.end(self)


def check_memory(nbytes: int, what: str) -> None:
    """Raise an error when `nbytes` exceeds the memory limit; `what` names the array in the message.

    Raises
    ------
    MemoryLimitError
        Before anything is allocated.

    """
    limit, whose = get_options().memory_limit_bytes, "limit"
    remedy = "raise the limit with dicomslide.set_options(memory_limit_bytes=...)"
    of_worker = _worker_limit()
    if of_worker is not None and of_worker < limit:
        limit, whose = of_worker, "memory limit of this dask worker"
        remedy = "give workers more (memory_limit=...)"
    if nbytes > limit:
        raise MemoryLimitError(
            f"{what} takes {nbytes:,} bytes, more than the {whose} of {limit:,} bytes; read a"
            f" smaller region, use a coarser level or to_dask() with smaller chunks, or {remedy}"
        )


def allocated(shape: tuple[int, ...], dtype: DTypeLike, what: str) -> NDArray[Any]:
    """Return an uninitialised array, within the memory limit.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    dtype : data-type
        Data type of the array.
    what : str
        Name of the array in messages.

    Raises
    ------
    MemoryLimitError
        When the array exceeds the memory limit, or the available memory.

    """
    import numpy as np

    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    check_memory(nbytes, what)
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):  # NumPy raises a ValueError for sizes beyond its own limit
        raise MemoryLimitError(
            f"{what} takes {nbytes:,} bytes, more than this process can get; read a smaller region"
            " or use a coarser level"
        ) from None


def _worker_limit() -> int | None:
    """Return the memory limit in bytes of the dask worker that runs this task; None without one."""
    module = sys.modules.get("distributed.worker")
    if module is None:
        return None
    try:
        limit: int | None = module.get_worker().memory_manager.memory_limit
    except (ValueError, AttributeError):  # not in a task
        return None
    return limit or None
