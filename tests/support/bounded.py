"""Runs code in a child process that may take so much memory and processor time, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

MEMORY = 2 * 2**30
"""Bytes of address space: the packages that are imported take nearly a half of it."""
LONGEST = 900
"""Seconds after which a child waits for something that never comes."""

_CHILD = """
import json, resource, sys, warnings
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
warnings.simplefilter("ignore")
import numpy, pydicom, dicomslide
from dicomslide.errors import DicomSlideError
arguments = json.load(sys.stdin)
found = []
for name, code in arguments["tries"]:
    try:
        result = eval(code, {{"dicomslide": dicomslide, "numpy": numpy, **arguments["names"]}})
        found.append([name, "given", repr(getattr(result, "shape", result))[:200]])
    except DicomSlideError as error:
        found.append([name, type(error).__name__, str(error)])
    except BaseException as error:
        found.append([name, "BARE " + type(error).__name__, str(error)])
with open("/proc/self/status") as status:  # since it began: getrusage has what its parent took
    (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
json.dump([found, peak], sys.stdout)
"""


def tried(
    tries: dict[str, str], *, seconds: int, memory: int = MEMORY, **names: Any
) -> tuple[dict[str, tuple[str, str]], int]:
    """Return what each expression gave or raised, and the most bytes that were in memory.

    A child that takes more seconds of a processor, or ends otherwise, is an error.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(memory=memory, seconds=seconds)],
        input=json.dumps({"tries": list(tries.items()), "names": names}),
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, peak = json.loads(done.stdout)
    return {name: (kind, said) for name, kind, said in found}, peak
