"""Polygons of masks, and masks of polygons."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import ranges
from dicomslide.annotation.group import AnnotationGroup
from dicomslide.annotation.pixel_grid import FRAME_OF_REFERENCE, PixelGrid
from dicomslide.annotation.raster import Graphics
from dicomslide.annotation.rasterize import rasterized
from dicomslide.recipes.borders import rings_of, runs_in

if TYPE_CHECKING:
    import geopandas
    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.recipes.borders import Rings

__all__ = ["outlines", "rasterize"]


def rasterize(
    shapes: AnnotationGroup | geopandas.GeoDataFrame | geopandas.GeoSeries | Any,
    like: xr.DataArray | xr.Dataset,
    *,
    labels: bool | str = False,
) -> xr.DataArray:
    """Return the pixels whose centres lie in shapes, lazily.

    See :meth:`dicomslide.AnnotationGroup.rasterize` for the rule, which holds for polygons with
    holes and of several parts, too. Shapes that `outlines` returned give the mask again.

    Parameters
    ----------
    shapes : AnnotationGroup, geopandas.GeoDataFrame, geopandas.GeoSeries or array of geometries
        Polygons or points (of one kind) in mm on the slide. Shapes that are empty or None have no
        pixels. If a frame has ``attrs["frame_of_reference_uid"]``, that of `like` must be the same.
    like : xarray.DataArray or xarray.Dataset
        Any region of any level, whose grid and chunks the result has.
    labels : bool or str, default: False
        Whether pixels are numbers of shapes, from 1 on, rather than True; or the column with their
        values, integers above zero. Where shapes overlap, the last one has the pixel.

    Returns
    -------
    xarray.DataArray
        bool, or unsigned integers with 0 for no shape; dims (y, x) of `like`, lazy.

    Raises
    ------
    GridError
        When `like` has another frame of reference.
    ValueError
        When the shapes are lines, or points and polygons together; when `like` has no place on
        the slide; or when the labels aren't integers above zero.

    """
    if isinstance(shapes, AnnotationGroup):
        if isinstance(labels, str):
            raise ValueError(
                f"labels is {labels!r}, a column, but the shapes are a group of annotations;"
                " expected True or False, or to_geopandas()"
            )
        return shapes.rasterize(like, labels=labels)
    geometries = np.asarray(getattr(shapes, "geometry", shapes), object)
    values: NDArray[Any] | None = None
    if labels is True:
        values = np.arange(1, len(geometries) + 1)
    elif labels is not False:
        values = _labels_in(shapes, labels)
    if values is not None:
        values = values.astype(np.min_scalar_type(int(values.max(initial=1))))
    uid = getattr(shapes, "attrs", {}).get(FRAME_OF_REFERENCE)
    uids = () if uid is None else (str(uid),)
    return rasterized(
        _graphics_of(geometries), values, like, name="shapes", frame_of_reference_uids=uids
    )


def _labels_in(shapes: Any, column: str) -> NDArray[Any]:
    if column not in getattr(shapes, "columns", ()):
        raise ValueError(f"labels is {column!r}, but the shapes have no such column")
    values = np.asarray(shapes[column])
    if values.dtype.kind not in "iu" or (len(values) and values.min() < 1):
        raise ValueError(
            f"the column {column!r} has {values.dtype} from {values.min()} on; expected integers"
            " above zero: 0 is what has no shape"
        )
    return values


def _graphics_of(geometries: NDArray[Any]) -> Graphics:
    """Return the rings or points of geometries, each a shape.

    Raises
    ------
    ValueError
        When they are neither polygons nor points.

    """
    import shapely

    parts, shape = shapely.get_parts(geometries, return_index=True)
    # a collection has parts with parts of their own
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts, within = shapely.get_parts(parts, return_index=True)
        shape = shape[within]
    filled = ~shapely.is_empty(parts)
    parts, shape = parts[filled], shape[filled]
    kinds = {shapely.GeometryType(kind) for kind in np.unique(shapely.get_type_id(parts))}
    if kinds == {shapely.GeometryType.POINT}:
        points = shapely.get_coordinates(parts)
        return Graphics("POINT", points, np.arange(len(points) + 1), shape)
    if kinds - {shapely.GeometryType.POLYGON}:
        raise ValueError(
            f"the shapes are {', '.join(sorted(kind.name for kind in kinds))}; expected polygons,"
            " or points alone: buffer(width / 2) makes polygons of lines"
        )
    rings, part = shapely.get_rings(parts, return_index=True)
    offsets = np.concatenate([[0], np.cumsum(shapely.get_num_coordinates(rings))])
    return Graphics("POLYGON", shapely.get_coordinates(rings), offsets, shape[part])


def outlines(mask: xr.DataArray, *, simplify: float | None = None) -> geopandas.GeoDataFrame:
    """Return the outlines of a mask or label image, along the borders of pixels, as polygons in mm.

    The mask is read once, chunk by chunk; what is kept are the corners of its outlines. They are
    exact: :func:`rasterize` gives the same mask again.

    Parameters
    ----------
    mask : xarray.DataArray
        bool, or integers with 0 for background; dims (y, x) in mm, or (row, column) as stored.
    simplify : float, optional
        Tolerance in mm within which corners are left out. Half a pixel's diagonal makes steps
        straight; the outlines are then no longer exact, and neighbours may overlap or gape.

    Returns
    -------
    geopandas.GeoDataFrame
        ``geometry`` with valid polygons, with holes, in mm without a coordinate reference system;
        ``attrs["frame_of_reference_uid"]`` as in the mask's coordinates. For bool: one row per
        region of pixels that share sides. For integers: one row per label, ascending, with the
        column ``label``; a label of several regions is a MultiPolygon.

    Raises
    ------
    ImportError
        When geopandas isn't installed.
    ValueError
        When the mask isn't bool or integers, has other dims, labels below zero or no place on the
        slide.

    Examples
    --------
    >>> tumour = outlines(tree["level_0"].segmentation.sel(segment=1))

    """
    try:
        import geopandas
        import shapely
    except ImportError as error:
        raise ImportError("outlines need geopandas: pip install 'dicomslide[geo]'") from error
    if mask.dtype.kind not in "biu":
        raise ValueError(
            f"the mask is {mask.dtype}; expected bool or integers: compare it, such as mask > 0.5"
        )
    grid = PixelGrid.of(mask)
    if {*mask.dims} != {*grid.dims}:
        raise ValueError(
            f"the mask has the dims {tuple(map(str, mask.dims))}; expected {grid.dims}: select one"
            " of each other dim, such as mask.sel(segment='1')"
        )
    rings = rings_of(_runs(mask.transpose(*grid.dims), grid.chunks), mask.sizes[grid.dims[1]])
    if len(rings.labels) and rings.labels.min() < 0:
        raise ValueError(f"the mask has the label {rings.labels.min()}; expected 0 or more")
    polygons, label = _polygons(rings, grid)
    columns: dict[str, Any] = {}
    if mask.dtype.kind != "b":
        columns["label"], of_label = np.unique(label, return_inverse=True)
        alone = np.bincount(of_label)[of_label] == 1
        order = np.argsort(of_label, kind="stable")
        whole = np.empty(len(columns["label"]), object)
        if len(order):
            shapely.multipolygons(polygons[order], indices=of_label[order], out=whole)
        whole[of_label[alone]] = polygons[alone]
        polygons = whole
    frame = geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries(polygons))
    if simplify is not None:
        frame.geometry = frame.geometry.simplify(simplify)
    if grid.frame_of_reference_uid is not None:
        frame.attrs[FRAME_OF_REFERENCE] = grid.frame_of_reference_uid
    return frame


def _runs(mask: xr.DataArray, chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> NDArray[np.int64]:
    """Return the runs along the borders of labels, from all chunks."""
    from dask.base import compute
    from dask.delayed import delayed

    down, across = chunks
    blocks = (mask if mask.chunks is not None else mask.chunk({})).data.rechunk(chunks)
    blocks = blocks.to_delayed()
    last_row, last_column = (delayed(each, pure=True) for each in (_last_row, _last_column))
    traced = delayed(runs_in, pure=True)
    rows, columns = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in chunks)
    tasks = []
    for j, i in itertools.product(range(len(down)), range(len(across))):
        above = last_row(blocks[j - 1, i]) if j else None
        beside = last_column(blocks[j, i - 1]) if i else None
        first, is_last = (rows[j], columns[i]), (j == len(down) - 1, i == len(across) - 1)
        tasks.append(traced(blocks[j, i], above, beside, first, is_last))
    return np.concatenate(compute(*tasks))  # type: ignore[no-untyped-call]


def _last_row(block: NDArray[Any]) -> NDArray[Any]:
    return block[-1].copy()  # a view would keep the chunk


def _last_column(block: NDArray[Any]) -> NDArray[Any]:
    return block[:, -1].copy()


def _polygons(rings: Rings, grid: PixelGrid) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return polygons with their holes, and the label of each."""
    import shapely

    if not len(rings.labels):
        return np.empty(0, object), rings.labels
    areas = rings.areas
    outer, holes = np.flatnonzero(areas > 0), np.flatnonzero(areas < 0)
    owner = _owners(rings, areas, outer, holes)
    # rings by polygon, each an outer one and its holes
    polygon = np.concatenate([np.arange(len(outer)), owner])
    order = np.lexsort((np.arange(len(polygon)) >= len(outer), polygon))
    chosen = np.concatenate([outer, holes])[order]
    at, offsets = _closed(rings, chosen)
    points = grid.corners(rings.rows[at], rings.columns[at])
    first_rings = np.searchsorted(polygon[order], np.arange(len(outer) + 1))
    found = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (offsets, first_rings))
    return found, rings.labels[outer]


def _owners(
    rings: Rings, areas: NDArray[np.int64], outer: NDArray[np.int64], holes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the index in `outer` of the ring in which each hole lies: the smallest around it."""
    import shapely

    if not len(holes):
        return np.empty(0, np.int64)
    labels = rings.labels
    around = np.flatnonzero(np.isin(labels[outer], labels[holes]))
    at, offsets = _closed(rings, outer[around])
    corners = np.stack([rings.columns[at], rings.rows[at]], axis=-1).astype(np.float64)
    shells = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, corners, (offsets, np.arange(len(around) + 1))
    )
    # half a pixel along the first side of a hole: at no corner, where another region may touch
    first = rings.offsets[holes]
    along = [
        values[first] + np.sign(values[first + 1] - values[first]) / 2
        for values in (rings.columns, rings.rows)
    ]
    hole, shell = shapely.STRtree(shells).query(shapely.points(*along), predicate="intersects")
    same = labels[holes[hole]] == labels[outer[around[shell]]]
    hole, shell = hole[same], around[shell[same]]
    order = np.lexsort((areas[outer[shell]], hole))
    owners: NDArray[np.int64] = shell[order][np.flatnonzero(np.diff(hole[order], prepend=-1))]
    return owners


def _closed(rings: Rings, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the corners of some rings, each closed, and their offsets."""
    counts = np.diff(rings.offsets)[chosen] + 1
    ends = np.cumsum(counts)
    starts = rings.offsets[:-1][chosen]
    at = ranges(starts, counts)
    at[ends - 1] = starts
    return at, np.concatenate([[0], ends])
