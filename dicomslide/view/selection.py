"""What was drawn on a view, as slices, shapes and code."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import geopandas
    from numpy.typing import NDArray

__all__ = ["Selection", "selection_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """A box or polygon that was drawn on a view."""

    points: NDArray[np.float64]
    """Corners (x, y) in mm, shape (n, 2); the first isn't repeated."""

    @property
    def x(self) -> slice:
        """Slice along x in mm."""
        return slice(float(self.points[:, 0].min()), float(self.points[:, 0].max()))

    @property
    def y(self) -> slice:
        """Slice along y in mm."""
        return slice(float(self.points[:, 1].min()), float(self.points[:, 1].max()))

    @property
    def slices(self) -> dict[str, slice]:
        """Slices in mm: ``array.sel(view.selection.slices)``."""
        return {"x": self.x, "y": self.y}

    @property
    def code(self) -> str:
        """Python that selects the box of the selection of an array in mm."""
        x, y = self.x, self.y
        return f".sel(x=slice({x.start:.6f}, {x.stop:.6f}), y=slice({y.start:.6f}, {y.stop:.6f}))"

    def to_geopandas(self) -> geopandas.GeoDataFrame:
        """Return the polygon as a GeoDataFrame in mm.

        Raises
        ------
        ImportError
            When geopandas isn't installed.

        """
        return frame_of([self])


def selection_of(geometry: dict[str, Any]) -> Selection | None:
    """Return what a tool of Bokeh has drawn; None for fewer than three corners, or no area."""
    if geometry["type"] == "rect":
        x0, x1, y0, y1 = (float(geometry[name]) for name in ("x0", "x1", "y0", "y1"))
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif geometry["type"] == "poly":
        points = np.stack([np.asarray(geometry[dim], np.float64) for dim in "xy"], axis=1)
    else:
        return None
    # to a nanometre, so that the code says exactly what the slices are
    points = np.round(points[np.isfinite(points).all(axis=1)], 6)
    if len(points) < 3 or not (np.ptp(points, axis=0) > 0).all():
        return None
    return Selection(points)


def frame_of(selections: list[Selection]) -> geopandas.GeoDataFrame:
    """Return selections as polygons in mm, a row each."""
    try:
        import geopandas
        import shapely
    except ImportError as error:
        raise ImportError(
            "shapes need geopandas, which isn't installed: pip install 'dicomslide[geo]'; the"
            " corners of a selection are selection.points"
        ) from error
    return geopandas.GeoDataFrame(geometry=[shapely.Polygon(each.points) for each in selections])
