"""Print the lowest versions that pyproject.toml promises, as constraints of pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = re.compile(r"dicomslide\[([\w,-]+)\]")


def requirements(extra: str) -> set[str]:
    """Return what an extra requires, with the extras of this project that it names."""
    found: set[str] = set()
    for each in EXTRAS[extra]:
        if own := OWN.fullmatch(each):
            found = found.union(*map(requirements, own[1].split(",")))
        else:
            found.add(each)
    return found


# the extras that are for users; the others' tools are as new as they go
for requirement in sorted({*PROJECT["dependencies"], *requirements("complete")}):
    name, floor = re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement).groups()
    print(f"{name}=={floor}")
