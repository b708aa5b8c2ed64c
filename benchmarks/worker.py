"""Process in which one reader of one slide is measured.

As little as possible is imported here, for that would count as the reader's.

    python -m benchmarks.worker READER FOLDER           takes commands, one a line, until it ends
    python -m benchmarks.worker READER FOLDER STEPS     does the steps once, as a fresh process
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks import process
from benchmarks.readers import READERS

if TYPE_CHECKING:
    from benchmarks.reader import Reader


def measure(reader: Reader, operation: str, arguments: dict[str, Any]) -> dict[str, float]:
    """Measure one operation of a reader."""
    run = getattr(reader, operation, None)
    if run is None:
        raise NotImplementedError(f"it has no operation {operation!r}")
    process.reset_peak()
    read = process.bytes_read()
    cpu, start = time.process_time(), time.perf_counter()
    result = run(**arguments)
    seconds = time.perf_counter() - start
    found = {
        "ms": seconds * 1000,
        "cpu_ms": (time.process_time() - cpu) * 1000,
        "MiB": process.peak_memory(),
        "read_MB": (process.bytes_read() - read) / 1e6,
    }
    if isinstance(result, dict):  # what it has measured itself
        found.update(result)
    if operation.startswith("load"):
        reader.loaded = process.memory("VmRSS:")
    found["more_MiB"] = found["MiB"] - reader.loaded
    return found


def answer(reader: Reader, command: dict[str, Any]) -> dict[str, Any]:
    """Execute the command of a line; an error is also an answer."""
    operation, arguments = command["operation"], command["arguments"]
    try:
        if operation == "pixels":
            pixels = reader.region(**arguments)[:, :, :3]
            encoded = base64.b64encode(pixels.tobytes()).decode()
            return {"dtype": str(pixels.dtype), "shape": pixels.shape, "pixels": encoded}
        if command.get("forget"):
            reader.forget()
        return measure(reader, operation, arguments)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        for folder in (reader.folder, os.path.dirname(reader.folder)):  # of this machine
            message = message.replace(folder + os.sep, "")
        return {"error": message.splitlines()[0][:200]}


def main() -> None:
    """Run the commands of the command line, or those of standard input."""
    name, folder, *steps = sys.argv[1:]
    reader = READERS[name](folder)
    if steps:
        commands = [{"operation": step, "arguments": given} for step, given in json.loads(steps[0])]
        print(json.dumps([answer(reader, command) for command in commands]))
        return
    for line in sys.stdin:
        print(json.dumps(answer(reader, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
