"""Polygons as annotations: a million of them, written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.targets import Target
from benchmarks.tasks import Draw, Fresh

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["POLYGON_TARGETS", "POLYGON_TASKS", "polygons"]

POINTS, MANY, FEW = 20, 1_000_000, 20_000
"""Points of a polygon, and polygons of a whole and of a quick run."""
WHOLE = 20_480
"""Rows and columns of a slide that isn't for a quick run."""
WRITTEN = "a million polygons of 20 points written"


def polygons(count: int, seed: int) -> NDArray[np.float64]:
    """Return nuclei in mm on the slide, shape (count, 20, 3)."""
    import numpy as np

    random = np.random.default_rng(seed)
    angles = np.arange(POINTS) * (2 * np.pi / POINTS)
    radii = random.uniform(0.003, 0.006, (count, POINTS, 1))
    found = np.zeros((count, POINTS, 3))
    found[:, :, :2] = radii * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    found[:, :, :2] += random.uniform((15, 45), (20, 50), (count, 1, 2))
    return found


def _made(draw: Draw) -> dict[str, Any]:
    count = MANY if draw.edge >= WHOLE else FEW
    return {"count": count, "seed": int(draw.rng.integers(0, 2**31))}


POLYGON_TASKS = (
    Fresh(
        "jpeg-256",
        (
            ("", "load_to_write", lambda draw: {}),
            ("", "open_to_write", lambda draw: {}),
            ("", "make_polygons", _made),
            (WRITTEN, "write_polygons", lambda draw: {}),
        ),
        ("dicomslide", "highdicom"),
        slow=True,
    ),
)
POLYGON_TARGETS = tuple(
    Target(
        f"{WRITTEN}{what}",
        "highdicom",
        limit,
        lambda found, quantity=quantity: (
            found.values(f"jpeg-256: {WRITTEN}", "dicomslide", quantity)
            / found.values(f"jpeg-256: {WRITTEN}", "highdicom", quantity)
        ),
    )
    for what, limit, quantity in (("", 1.0, "ms"), (", memory beside them", 0.5, "MiB"))
)
