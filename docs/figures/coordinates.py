"""Draws ``coordinates.svg``: ``python docs/figures/coordinates.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, GLASS = "#24323d", "#8b98a3", "#eef2f5"
ROWS, COLUMNS, LEVEL = "#c2410c", "#1d6fa5", "#0f8a5f"


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """Draw an arrow in data coordinates."""
    style = dict(arrowstyle="-|>", mutation_scale=13, lw=1.8, shrinkA=0, shrinkB=0)
    ax.add_patch(FancyArrowPatch(start, end, color=color, zorder=5, **style))


def draw_slide(ax: Axes) -> None:
    """Draw the glass, its axes in mm, and a matrix on it that the scanner turned."""
    ax.add_patch(Rectangle((0, 0), 25, 75, fc=GLASS, ec=SOFT))
    ax.add_patch(Rectangle((1.5, 56), 22, 18, fc="white", ec=SOFT))
    ax.text(12.5, 65, "label", ha="center", va="center", color=SOFT)
    arrow(ax, (0, 0), (33, 0), INK)
    arrow(ax, (0, 0), (0, 84), INK)
    ax.text(34, 0, "X", va="center", color=INK, weight="bold")
    ax.text(0, 86, "Y", ha="center", color=INK, weight="bold")
    ax.text(-1.5, -1.5, "0, 0", ha="right", va="top", color=INK)
    ax.add_patch(Rectangle((7, 14), 11, 28, fc="#f6d7e4", ec=INK, lw=1.2))
    ax.plot(18, 42, "o", color=INK, ms=5, zorder=6)
    ax.text(19, 43, "O", color=INK, weight="bold")
    arrow(ax, (18, 42), (18, 27), COLUMNS)
    arrow(ax, (18, 42), (11, 42), ROWS)
    ax.text(26, 34, "columns\nu = (0, −1)", color=COLUMNS, va="center", fontsize=9)
    ax.text(12.5, 45, "rows\nv = (−1, 0)", color=ROWS, ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(-9, 38), ylim=(-8, 92), aspect="equal")
    ax.set_title("The slide, upright, in mm", color=INK, fontsize=11)


def draw_pixels(ax: Axes) -> None:
    """Draw pixels near the origin: centres, edges, and how both are addressed."""
    rows, columns = 4, 5
    for r in range(rows):
        for c in range(columns):
            x, y = -r, -c
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, ec="white", lw=1.5,
                                   fc="#bfe3d3" if (r, c) == (2, 3) else "#f6d7e4"))  # fmt: skip
            ax.plot(x, y, ".", color=INK, ms=5)
            ax.text(x + 0.4, y - 0.4, f"{r}, {c}", ha="right", va="bottom", fontsize=7.5, color=INK)
    ax.add_patch(Rectangle((-3.5, -4.5), rows, columns, fill=False, ec=INK, lw=1.4))
    ax.plot(0, 0, "o", color=INK, ms=7)
    ax.annotate("O: the centre\nof pixel (0, 0)", (0, 0), (0.95, 0.1), color=INK, fontsize=9,
                va="center", arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.8})  # fmt: skip
    ax.annotate("edge: half a\npixel further", (0.5, 0.5), (0.95, 0.98), color=SOFT, fontsize=9,
                va="center", arrowprops={"arrowstyle": "-", "color": SOFT, "lw": 0.8})  # fmt: skip
    arrow(ax, (0.75, -1.3), (0.75, -4.2), COLUMNS)
    ax.text(0.9, -2.75, "c grows\nalong u", color=COLUMNS, fontsize=9, va="center")
    arrow(ax, (-0.3, 0.8), (-3.2, 0.8), ROWS)
    ax.text(-1.75, 0.95, "r grows along v", color=ROWS, fontsize=9, ha="center")
    ax.text(-3.5, -5.05, "P(2, 3) = O + 3·Δc·u + 2·Δr·v", color=LEVEL, fontsize=9.5)
    ax.set(xlim=(-3.8, 3.0), ylim=(-5.5, 1.7), aspect="equal")
    ax.set_title("Pixels (row, column) as stored", color=INK, fontsize=11)


def draw_levels(ax: Axes) -> None:
    """Draw a coarse pixel over the fine ones that it averages, and where headers often put it."""
    for i in range(8):
        ax.add_patch(Rectangle((i, 2.1), 1, 1, fc="#f6d7e4", ec="white", lw=1.5))
        ax.plot(i + 0.5, 2.6, ".", color=INK, ms=5)
    for i in range(2):
        ax.add_patch(Rectangle((4 * i, 0.2), 4, 1, fc="#bfe3d3", ec="white", lw=1.5))
        ax.plot(4 * i + 2, 0.7, ".", color=LEVEL, ms=8)
        ax.add_patch(Rectangle((4 * i - 1.5, -2.35), 4, 1, fc="none", ec=ROWS, ls="--", lw=1.2))
        ax.plot(4 * i + 0.5, -1.85, ".", color=ROWS, ms=8)
    ax.plot([0.5, 0.5], [-1.85, 2.1], color=ROWS, lw=0.8, ls=":")
    ax.text(3.2, -2.5, "level 1 at its word, where its header\nstates the origin of level 0",
            color=ROWS, ha="center", va="top", fontsize=9)  # fmt: skip
    ax.plot([0.5, 0.5], [2.6, 3.5], color=INK, lw=0.8)
    ax.text(0.5, 3.55, "O of level 0", color=INK, ha="center", fontsize=9)
    ax.plot([2, 2], [0.7, -0.2], color=LEVEL, lw=0.8)
    ax.text(2.1, -0.3, "O of level 1", color=LEVEL, ha="left", va="top", fontsize=9)
    arrow(ax, (0.5, 1.65), (2, 1.65), INK)
    ax.text(2.15, 1.65, "½ (Δ of level 1 − Δ of level 0)", va="center", fontsize=9, color=INK)
    ax.set(xlim=(-1.8, 8.3), ylim=(-3.9, 4.1), aspect="equal")
    ax.set_title("Levels share edges, not centres", color=INK, fontsize=11)


def draw_planes(ax: Axes) -> None:
    """Draw the slide from its side: focal planes above the glass."""
    ax.add_patch(Rectangle((0, -1.4), 8, 1.4, fc=GLASS, ec=SOFT))
    ax.text(4, -0.7, "glass", ha="center", va="center", color=SOFT, fontsize=9)
    ax.add_patch(Rectangle((0.8, 0), 6.4, 3.1, fc="#fbeef4", ec="none"))
    for number, z in enumerate((1.0, 1.8, 2.6)):
        ax.plot([0.8, 7.2], [z, z], color=COLUMNS, lw=1.6)
        ax.text(7.35, z, f"z = {0.005 + 0.002 * number:.3f} mm", va="center", fontsize=9,
                color=COLUMNS)  # fmt: skip
    arrow(ax, (0.3, 0), (0.3, 3.3), INK)
    ax.text(0.3, 3.45, "Z", ha="center", color=INK, weight="bold")
    ax.text(4, 0.45, "specimen", ha="center", va="center", color=SOFT, fontsize=9)
    ax.set(xlim=(-0.4, 10.6), ylim=(-1.7, 3.9), aspect="equal")
    ax.set_title("Focal planes, from the glass up", color=INK, fontsize=11)


def main() -> None:
    """Draw all of it beside this file; the same each time."""
    plt.rcParams |= {"svg.hashsalt": "dicomslide", "font.size": 10, "svg.fonttype": "path"}
    figure = plt.figure(figsize=(11, 6.4), layout="constrained", facecolor="white")
    axes = figure.subplot_mosaic("abb;abb;acd", width_ratios=(1.2, 1, 1))
    for ax in axes.values():
        ax.set_axis_off()
    draw_slide(axes["a"])
    draw_pixels(axes["b"])
    draw_levels(axes["c"])
    draw_planes(axes["d"])
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
