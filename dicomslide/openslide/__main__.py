"""Runs a program that is written for openslide-python, and makes it read DICOM with dicomslide.

usage: python -m dicomslide.openslide SCRIPT [ARGUMENT ...]
       python -m dicomslide.openslide -m MODULE [ARGUMENT ...]

The program needs no change: dicomslide.openslide.install() is called before it starts. Slides in
other formats are read by libopenslide, if openslide-python is installed.
"""

from __future__ import annotations

import os
import runpy
import sys
import zipfile
from typing import TYPE_CHECKING

from dicomslide.openslide import install

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

USAGE_ERROR = 2
"""Exit status for wrong arguments, as of ``python``."""


def main(arguments: Sequence[str]) -> None:
    """Run a script or a module after :func:`dicomslide.openslide.install`.

    The program sees what it would see if ``python`` ran it: its name and arguments in
    ``sys.argv``, itself as ``__main__``, and the folder of a script in ``sys.path``. Its exceptions
    and its exit status are those of this process.

    Parameters
    ----------
    arguments : sequence of str
        ``SCRIPT ARGUMENT ...`` or ``-m MODULE ARGUMENT ...``. A script may be a folder or a zip
        file with a ``__main__.py``.

    Raises
    ------
    SystemExit
        When there is nothing to run.

    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    is_module = arguments[:1] == ["-m"]
    program, *rest = arguments[is_module:] or [""]
    if not program or program.startswith("-"):
        wrong = f"{program} isn't known here" if program else "a script or -m MODULE is needed"
        print(f"{wrong}\n\n{__doc__}", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)
    if not (is_module or os.path.exists(program)):
        print(f"can't open {program}: there is no such file", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)
    install()
    sys.argv = [program, *rest]
    if is_module:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    if not sys.flags.safe_path:  # else Python has put no folder there
        del sys.path[0]  # the current folder
        if os.path.isfile(program) and not zipfile.is_zipfile(program):  # else runpy adds it
            sys.path.insert(0, os.path.dirname(os.path.realpath(program)))
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
