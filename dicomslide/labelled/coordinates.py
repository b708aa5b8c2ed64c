"""Coordinate variables of labelled datasets: positions in mm, and focal planes."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import PandasIndex

from dicomslide.labelled.index import FRAME_OF_REFERENCE, SlideIndex, spacing_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomslide.header.geometry import Orientation, SlideGeometry

__all__ = [
    "chunks_of_one",
    "focal_plane_coords",
    "matrix_coords",
    "restored",
    "sample_coords",
    "scalar",
    "slide_coordinate",
    "step_of",
]


EVEN = 1e-3
"""Tolerance of evenly spaced pixels, as a fraction of their distance."""
ONE_PLANE = 0.001
"""Extent in mm of the only focal plane: an offset within half of it selects the plane."""


def matrix_coords(
    geometry: SlideGeometry | None,
    orientation: Orientation | None,
    size: tuple[int, int],
    frame_of_reference_uid: str | None,
) -> xr.Coordinates:
    """Return y and x in mm of an upright matrix, or row and column of a matrix as stored.

    Parameters
    ----------
    geometry : SlideGeometry or None
        Geometry of the matrix on the slide.
    orientation : Orientation or None
        Orientation that turns it upright; None for a matrix as stored.
    size : tuple of int
        Rows and columns of the matrix.
    frame_of_reference_uid : str or None
        Frame of Reference UID, an attribute of y and x.

    """
    if geometry is None or orientation is None:
        return _indexed(
            {
                name: PandasIndex(np.arange(length), name)
                for name, length in zip(("row", "column"), size, strict=True)
            }
        )
    y, x = geometry.upright_coordinates()
    along_x, along_y = geometry.slide_spacing
    variables: dict[Any, xr.Variable] = {}
    indexes: dict[Any, xr.Index] = {}
    for name, values, spacing in (("y", y, along_y), ("x", x, along_x)):
        # xarray labels the axes of plots with these: "x [mm]"
        attrs = {"long_name": name, "units": "mm"}
        if frame_of_reference_uid is not None:
            attrs[FRAME_OF_REFERENCE] = frame_of_reference_uid
        coordinate = slide_coordinate(name, values, attrs, spacing)
        variables |= coordinate.variables
        indexes |= coordinate.xindexes
    return xr.Coordinates(variables, indexes)


def sample_coords() -> xr.Coordinates:
    """Return the coordinate of the samples of coloured pixels: r, g, b."""
    return _indexed({"sample": _sample_index()})


@functools.cache
def _sample_index() -> PandasIndex:
    names = np.array(["r", "g", "b"])
    return PandasIndex(names, "sample", coord_dtype=names.dtype)


def _indexed(indexes: dict[str, PandasIndex]) -> xr.Coordinates:
    variables: dict[Any, xr.Variable] = {}
    for index in indexes.values():
        variables |= index.create_variables()
    return xr.Coordinates(variables, indexes)


def focal_plane_coords(
    offsets: Sequence[float],
    planes: Sequence[int],
    *,
    is_dim: bool,
    of_channels: tuple[str, Sequence[Sequence[float]]] | None = None,
) -> xr.Coordinates:
    """Return z of focal planes in mm, with their indices (``focal_plane``).

    Parameters
    ----------
    offsets : sequence of float
        Offsets of the planes in µm.
    planes : sequence of int
        Zero-based indices of the planes.
    is_dim : bool
        Whether z is a dim; else both coordinates are scalars.
    of_channels : tuple of str and sequence of sequence of float, optional
        Dim of channels, and offsets in µm by channel and plane, where channels have different
        offsets. If z is a dim, they are a further coordinate along both dims, such as
        ``channel_z``; else z is along the dim of channels.

    """
    values = np.array(offsets) / 1000
    attrs = {"long_name": "focal plane's offset", "units": "mm"}
    index = xr.Variable(
        "z", np.array(planes), {"long_name": "focal plane's index"}, chunks_of_one("z")
    )
    beside: dict[Any, xr.Variable] = {}
    if of_channels is not None:
        dim, of_each = of_channels
        heights = xr.Variable((dim, "z"), np.array(of_each) / 1000, attrs, chunks_of_one(dim))
        if is_dim:
            beside[f"{dim}_z"] = heights
        else:
            beside["z"] = heights[:, 0]
    if not is_dim:
        z = xr.Variable("z", values, attrs)[0]
        return xr.Coordinates({"z": z, "focal_plane": scalar(index), **beside}, indexes={})
    spacing = ONE_PLANE if len(values) == 1 else None
    return slide_coordinate("z", values, attrs, spacing).assign({"focal_plane": index, **beside})


def slide_coordinate(
    name: str, values: Any, attrs: dict[str, Any], spacing: float | None
) -> xr.Coordinates:
    """Return a coordinate in mm with its :class:`SlideIndex`.

    Parameters
    ----------
    name : str
        Name of the coordinate and its dim.
    values : array-like
        Centres of pixels in mm.
    attrs : dict
        Attributes of the coordinate, with the Frame of Reference UID if that is known.
    spacing : float or None
        Extent of a pixel in mm; None for the distance between centres.

    """
    index = SlideIndex(
        pd.Index(values, name=name),
        name,
        spacing=spacing,
        frame_of_reference_uid=attrs.get(FRAME_OF_REFERENCE),
    )
    variables = index.create_variables({name: xr.Variable(name, values, attrs)})
    return xr.Coordinates(variables, indexes={name: index})


def restored(
    data: xr.DataArray | xr.Dataset, frame_of_reference_uid: str | None = None
) -> xr.Coordinates | None:
    """Return the coordinates in mm, each with a :class:`SlideIndex`.

    Parameters
    ----------
    data : xarray.DataArray or xarray.Dataset
        Data with the dimension coordinates x, y or z.
    frame_of_reference_uid : str, optional
        Frame of Reference UID of x and y; by default that of their attributes.

    Returns
    -------
    xarray.Coordinates or None
        None where no coordinate is in mm.

    """
    found = xr.Coordinates()
    for name in ("y", "x", "z"):
        if name not in data.coords or data[name].dims != (name,) or not _is_in_mm(data[name]):
            continue
        coordinate = data[name]
        attrs = dict(coordinate.attrs)
        if frame_of_reference_uid is not None and name != "z":
            attrs[FRAME_OF_REFERENCE] = frame_of_reference_uid
        index = data.xindexes.get(name)
        spacing = index.spacing if isinstance(index, SlideIndex) else None
        if spacing is None and name == "z" and coordinate.size == 1:
            spacing = ONE_PLANE
        found = found.assign(slide_coordinate(name, coordinate.values, attrs, spacing))
    return found if len(found) else None


def _is_in_mm(coordinate: xr.DataArray) -> bool:
    """Whether the units of a coordinate are mm; without units, whether it has real numbers."""
    units = coordinate.attrs.get("units")
    return coordinate.dtype.kind == "f" if units is None else units == "mm"


def step_of(array: xr.DataArray | xr.Dataset, dim: str) -> float:
    """Return the distance in mm from one pixel's centre to the next, negative where it descends.

    Parameters
    ----------
    array : xarray.DataArray or xarray.Dataset
        Array with the dim and its coordinate.
    dim : str
        ``y`` or ``x``.

    Returns
    -------
    float
        A multiple of the pixel's extent (more than one where pixels were left out), if the
        coordinates agree with that; else their mean distance.

    Raises
    ------
    ValueError
        When there is no such coordinate, its pixels aren't finite and evenly spaced, or the extent
        of the only pixel is unknown.

    """
    if dim not in array.dims or dim not in array.coords:
        raise ValueError(f"{dim} in mm is needed; the dims are {tuple(map(str, array.dims))}")
    values = np.asarray(array[dim].values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{dim} has coordinates that aren't finite; expected evenly spaced mm")
    index = array.xindexes.get(dim)
    spacing = index.spacing if isinstance(index, SlideIndex) else spacing_of(values)
    if len(values) < 2:
        if not math.isfinite(spacing):
            raise ValueError(f"the spacing along {dim} is unknown: it has {len(values)} pixels")
        return -spacing if dim == "y" else spacing
    step = float(values[-1] - values[0]) / (len(values) - 1)
    evenly = values[0] + step * np.arange(len(values))
    if not step or np.abs(values - evenly).max() > EVEN * abs(step):
        raise ValueError(f"pixels along {dim} aren't evenly spaced")
    whole = math.copysign(spacing * round(abs(step) / spacing), step)
    return whole if math.isclose(step, whole, rel_tol=1e-6) else step


def scalar(variable: xr.Variable) -> xr.Variable:
    """Return the first value of a variable as a scalar, without an encoding of chunks."""
    scalar = variable[0]
    scalar.encoding = {}
    return scalar


def chunks_of_one(dim: str) -> dict[str, Any]:
    """Return an encoding of chunks of one along a dim, like those of the pixels."""
    return {"preferred_chunks": {dim: 1}}
