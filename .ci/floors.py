"""Print the lowest versions that pyproject.toml promises, as constraints of pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
USERS = re.findall(r"[\w-]+", EXTRAS["complete"][0].partition("[")[2])
"""The extras that are for users; the others' tools are as new as they go."""

for requirement in PROJECT["dependencies"] + [each for name in USERS for each in EXTRAS[name]]:
    name, floor = re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement).groups()
    print(f"{name}=={floor}")
