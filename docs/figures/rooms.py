"""Draws ``rooms.svg`` from the package's folders and imports: ``python docs/figures/rooms.py``.

A room is a folder of the package, or a module beside the folders. An arrow leads from a room to one
that it imports, at the top of a module, in a function or for its types alike. Arrows that other
arrows imply are left out.
"""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

Arrows: TypeAlias = dict[str, set[str]]
"""The rooms that each room imports."""

INK, SOFT, FOLDER, MODULE = "#24323d", "#8b98a3", "#dcebf5", "#f4f1ea"
WIDTH = 100.0
"""Of the drawing, in units of its own."""
STEP, HEIGHT = 8.4, 5.6
"""Distance of layers, and height of a box."""
WIDEST, GAP = 24.0, 2.0
"""Width of a box at most, and distance of boxes side by side."""


def package() -> Path:
    """Return the folder of the package, which isn't imported."""
    spec = importlib.util.find_spec("dicomslide")
    if spec is None or spec.origin is None:
        raise SystemExit("dicomslide isn't installed: pip install --editable '.[plot]'")
    return Path(spec.origin).parent


def imports(path: Path) -> Iterator[str]:
    """Yield the full names that a module of the package imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_of(folder: Path, name: str) -> Arrows:
    """Return the rooms of a package and what each imports of the others.

    Modules whose names begin with an underscore are passed over.

    Parameters
    ----------
    folder : pathlib.Path
        Of the package.
    name : str
        Its full name.

    """
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.py")):
        first = path.relative_to(folder).parts[0].removesuffix(".py")
        if not first.startswith("_"):
            paths.setdefault(first, []).append(path)
    return {
        room: {
            imported.removeprefix(f"{name}.").split(".")[0]
            for path in inside
            for imported in imports(path)
            if imported.startswith(f"{name}.")
        }
        & (paths.keys() - {room})
        for room, inside in paths.items()
    }


def layers_of(arrows: Arrows) -> list[list[str]]:
    """Return the rooms from the bottom up: each stands on the highest that it imports.

    Raises
    ------
    ValueError
        When rooms import each other in a circle.

    """
    layers: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(arrows):
        layer = [room for room in arrows if room not in placed and arrows[room] <= placed]
        if not layer:
            raise ValueError(f"a circle among {sorted(arrows.keys() - placed)}")
        layers.append(layer)
        placed.update(layer)
    return layers


def without_implied(arrows: Arrows) -> Arrows:
    """Return the arrows that no path along other arrows replaces."""
    reach: Arrows = {}
    for layer in layers_of(arrows):
        for room in layer:
            reach[room] = arrows[room].union(*(reach[other] for other in arrows[room]))
    return {
        room: {o for o in others if not any(o in reach[another] for another in others)}
        for room, others in arrows.items()
    }


def described(arrows: Arrows) -> str:
    """Return what is drawn in words: it tells whether the figure is that of today's package."""
    lines = without_implied(arrows).items()
    return "; ".join(f"{room}: {', '.join(sorted(others))}" for room, others in sorted(lines))


def summary(folder: Path, room: str) -> str:
    """Return the first sentence of a room's docstring."""
    path = folder / room / "__init__.py"
    path = path if path.exists() else folder / f"{room}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "")


def draw(ax: Axes, folder: Path, arrows: Arrows) -> None:
    """Draw rooms on their layers, and arrows down to what they import."""
    layers, shown = layers_of(arrows), without_implied(arrows)
    centres: dict[str, float] = {}
    number_of = {room: number for number, layer in enumerate(layers) for room in layer}
    for number, layer in enumerate(layers):
        below = {
            room: sum(centres[o] for o in shown[room]) / max(1, len(shown[room])) for room in layer
        }
        step = min(WIDEST + GAP, WIDTH / len(layer))
        for place, room in enumerate(sorted(layer, key=lambda room: (below[room], room))):
            centres[room] = WIDTH / 2 + (place - (len(layer) - 1) / 2) * step
            left, bottom, width = centres[room] - (step - GAP) / 2, number * STEP, step - GAP
            is_folder = (folder / room).is_dir()
            box = FancyBboxPatch((left, bottom), width, HEIGHT, "round,pad=0,rounding_size=0.5",
                                 fc=FOLDER if is_folder else MODULE, ec=SOFT, zorder=3)  # fmt: skip
            ax.add_patch(box)
            ax.text(centres[room], bottom + HEIGHT - 0.5, f"{room}/" if is_folder else f"{room}.py",
                    ha="center", va="top", weight="bold", color=INK, zorder=4)  # fmt: skip
            lines = textwrap.wrap(summary(folder, room), int(width * 1.7), max_lines=3,
                                  placeholder=" …")  # fmt: skip
            ax.text(centres[room], bottom + HEIGHT - 2.1, "\n".join(lines), ha="center", va="top",
                    color=INK, fontsize=7, zorder=4)  # fmt: skip
    for room, others in shown.items():
        for other in sorted(others):
            start = centres[room], number_of[room] * STEP
            end = centres[other], number_of[other] * STEP + HEIGHT
            # what passes by other layers does so on the outside
            outwards = 0.25 if centres[room] + centres[other] < WIDTH else -0.25
            bend = outwards if number_of[room] - number_of[other] > 1 else 0.0
            arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=SOFT,
                                    connectionstyle=f"arc3,rad={bend}", lw=1.2, shrinkA=0,
                                    shrinkB=0, zorder=2)  # fmt: skip
            ax.add_patch(arrow)
    ax.set(xlim=(-1, WIDTH + 1), ylim=(-1, len(layers) * STEP - 1), aspect="equal")


def parts() -> dict[str, tuple[Path, Arrows]]:
    """Return what is drawn by its title: the package, and ``backends`` within it."""
    folder = package()
    inner = folder / "backends"
    return {
        "dicomslide": (folder, rooms_of(folder, "dicomslide")),
        "dicomslide/backends": (inner, rooms_of(inner, "dicomslide.backends")),
    }


def words(shown: dict[str, tuple[Path, Arrows]]) -> str:
    """Return all that is drawn in words, which the figure holds, too."""
    return " | ".join(described(arrows) for _, arrows in shown.values())


def main() -> None:
    """Draw all of it beside this file."""
    shown = parts()
    plt.rcParams |= {"svg.hashsalt": "dicomslide", "font.size": 9, "svg.fonttype": "path"}
    heights = [len(layers_of(arrows)) for _, arrows in shown.values()]
    size = (11, 0.95 * sum(heights) + 0.8)
    figure = plt.figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(shown), 1, height_ratios=heights)
    for ax, (title, (where, arrows)) in zip(axes, shown.items(), strict=True):
        ax.set_axis_off()
        ax.set_title(title, color=INK, weight="bold")
        draw(ax, where, arrows)
    figure.savefig(
        Path(__file__).with_suffix(".svg"), metadata={"Date": None, "Description": words(shown)}
    )


if __name__ == "__main__":
    main()
