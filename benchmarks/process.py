"""Resources of this process, from the operating system."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bytes_read", "measured_beside", "memory", "open_descriptors", "peak_memory",
           "reset_peak"]  # fmt: skip


def measured_beside(write: Callable[[Any, str], None]) -> Callable[[Any], dict[str, float]]:
    """Return an operation that writes a file, measured with the memory beside what is there."""

    def measured(reader: Any) -> dict[str, float]:
        before = memory("VmRSS:")
        with tempfile.TemporaryDirectory(dir=reader.folder) as folder:
            write(reader, os.path.join(folder, "annotations.dcm"))
        return {"MiB": peak_memory() - before}

    return measured


def open_descriptors() -> float:
    """Return the number of open files of this process."""
    try:
        return float(len(os.listdir("/proc/self/fd")))
    except OSError:  # not Linux
        return float("nan")


def peak_memory() -> float:
    """Return the largest resident memory of this process in MiB, since it was last reset."""
    return memory("VmHWM:")


def memory(name: str) -> float:
    """Return a quantity of memory of this process in MiB, by its name in Linux."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return int(status.read().split(name)[1].split()[0]) / 1024
    except OSError:  # not Linux
        return float("nan")


def bytes_read() -> float:
    """Return the number of bytes that this process has read from files."""
    try:
        with open("/proc/self/io", encoding="ascii") as counts:
            return float(counts.readline().split()[1])
    except OSError:
        return float("nan")


def reset_peak() -> None:
    """Reset the peak of memory."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # the peak is that of the whole life of the process then
