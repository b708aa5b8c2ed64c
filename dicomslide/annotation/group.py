"""Annotations of a group as columns, and the region around a single annotation."""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import bounding_boxes, centroids, ellipse_outlines, padded
from dicomslide.header.layout import MICROMETERS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import geopandas
    import pandas as pd
    import xarray as xr
    from numpy.typing import ArrayLike, NDArray
    from pydicom.sr.coding import Code

__all__ = ["AnnotatedRegion", "AnnotationGroup", "Measurement", "region_of_annotation"]

ELLIPSE_VERTICES = 64  # polygon of an ellipse: the error is at most 0.12 % of its half axis


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """One measurement of the annotations of a group: an item of the Measurements Sequence."""

    name: Code | None
    """Measured quantity: Concept Name Code Sequence."""
    unit: Code | None
    """Unit of the values: Measurement Units Code Sequence, usually UCUM."""
    values: NDArray[np.float32]
    """Shape (n,): one value per annotation, NaN where there is none."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AnnotationGroup:
    """Annotations of one graphic type and one property, as columns (PS3.3 C.37.1.2).

    It is a sequence of arrays: ``group[i]`` has the points of annotation i, shape (m, 2) or (m, 3),
    in millimetres on the slide. They are views of `coordinates`, made on access. All arrays are
    read-only.
    """

    number: int
    """Annotation Group Number, from 1 on within an instance."""
    uid: str | None
    """Annotation Group UID"""
    label: str | None
    """Annotation Group Label"""
    description: str | None
    """Annotation Group Description"""
    graphic_type: str
    """POINT, POLYLINE, POLYGON (closed; the first point isn't repeated), ELLIPSE (with the ends of
    its major, then of its minor axis) or RECTANGLE (with its corners)."""
    property_category: Code | None
    """Annotation Property Category, such as Morphologically Abnormal Structure."""
    property_type: Code | None
    """Annotation Property Type, such as Nucleus."""
    generation_type: str | None
    """MANUAL, SEMIAUTOMATIC or AUTOMATIC: Annotation Group Generation Type."""
    algorithm_name: str | None
    """Algorithm Name of the first Annotation Group Algorithm Identification item."""
    optical_paths: tuple[str, ...] | None
    """Referenced Optical Path Identifiers; None where the annotations apply to all paths."""
    planes: tuple[float, ...] | None
    """Common Z Coordinate Values in mm; None where the annotations apply to all planes, where each
    point has its own z, or where the values are absent."""
    coordinates: NDArray[np.floating[Any]]
    """(x, y) or (x, y, z) of all points in mm, shape (n_points, 2) or (n_points, 3).

    The data type is that of the file, float32 or float64, for coordinates in millimetres; and
    float64 for coordinates in pixels: a float32 in mm is wrong by up to 0.015 pixel at 0.25 µm per
    pixel, so that a corner on the edge of a pixel might move to another pixel."""
    offsets: NDArray[np.int64]
    """Shape (n + 1,): annotation i has the points ``offsets[i]:offsets[i + 1]``."""
    measurements: tuple[Measurement, ...] = ()
    """Measurements in the order of their items; several may have the same name."""
    frame_of_reference_uid: str | None = None
    """Frame of Reference UID of the millimetres; None if the instance (or the image of
    annotations in pixels) has none."""
    slide: Any = dataclasses.field(default=None, repr=False)
    """The slide from which the group was read, for :meth:`patches`; None without a slide."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.floating[Any]]:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"no annotation {index}; the group has {len(self)}, from 0 on")
        i %= len(self)
        return self.coordinates[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[NDArray[np.floating[Any]]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        label = "" if self.label is None else f" {self.label!r}"
        measured = ", ".join(_meaning(each.name) or "?" for each in self.measurements)
        return (
            f"<AnnotationGroup {self.number}{label}: {len(self)} of {self.graphic_type},"
            f" {len(self.coordinates)} points{', with ' if measured else ''}{measured}>"
        )

    @property
    def bounds(self) -> NDArray[np.float64]:
        """(x_min, y_min, x_max, y_max) of each annotation in mm, shape (n, 4).

        The box of an ellipse contains the whole curve, also of a rotated ellipse.
        """
        return bounding_boxes(self.graphic_type, self.coordinates, self.offsets)

    @property
    def centroids(self) -> NDArray[np.float64]:
        """Centroid (x, y) of each annotation in mm, shape (n, 2).

        It is the centroid of the area of a polygon, of the length of a polyline, and the mean of
        the points of other graphics, and of polygons without area.
        """
        return centroids(self.graphic_type, self.coordinates, self.offsets)

    def patches(
        self,
        size: tuple[int, int],
        *,
        spacing: float | str | None = None,
        level: int | None = None,
        **options: Any,
    ) -> xr.DataArray:
        """Return patches around the centres of the annotations' bounding boxes.

        Parameters
        ----------
        size : tuple of int
            Rows and columns of a patch.
        spacing : float or str, optional
            Pixel spacing, in mm or as text. Either this or `level` is required.
        level : int, optional
            Zero-based index into pyramid levels.
        **options
            See :meth:`dicomslide.Slide.patches`.

        Returns
        -------
        xarray.DataArray
            Lazy, dims (patch, y, x, sample); see :meth:`dicomslide.Slide.patches`.

        Raises
        ------
        ValueError
            When the group wasn't read from a slide.

        """
        if self.slide is None:
            raise ValueError("this group wasn't read from a slide: use slide.patches(group, ...)")
        patches: xr.DataArray = self.slide.patches(
            self, size, spacing=spacing, level=level, **options
        )
        return patches

    def rasterize(self, like: xr.DataArray | xr.Dataset, *, labels: bool = False) -> xr.DataArray:
        """Return the pixels whose centres lie in an annotation, lazily.

        A centre on the border of a polygon or rectangle belongs to it where the shape lies to the
        right of it (towards larger x) or, on a horizontal side, above it (larger y): of two
        polygons with a common side, exactly one has the pixel. This is computed without rounding
        errors; of a matrix as stored, to the right and above mean larger column and row. A polygon
        that intersects itself has the pixels of the even-odd rule. An ellipse is the curve itself,
        not a polygon; a point has the pixel that contains it.

        Parameters
        ----------
        like : xarray.DataArray or xarray.Dataset
            Any region of any level, whose grid and chunks the result has; upright, with ``y`` and
            ``x`` in mm, or as stored (``orientation="stored"``).
        labels : bool, default: False
            Whether pixels are numbers of annotations, index + 1, rather than True. Where
            annotations overlap, the last one has the pixel.

        Returns
        -------
        xarray.DataArray
            bool, or unsigned integers with 0 for no annotation; dims (y, x) of `like`, lazy. A
            chunk costs its own annotations, in a process and in what is sent to a cluster.

        Raises
        ------
        GridError
            When `like` has another frame of reference.
        ValueError
            When the annotations are polylines, or `like` has no place on the slide.

        Examples
        --------
        >>> nuclei = slide.annotations()[0]
        >>> mask = nuclei.rasterize(tree["level_0"].image)

        """
        from dicomslide.annotation.raster import Graphics
        from dicomslide.annotation.rasterize import rasterized

        if self.graphic_type == "POLYLINE":
            raise ValueError(
                "polylines have no area: to_geopandas().buffer(width / 2) has polygons, which"
                " recipes.rasterize takes"
            )
        count = len(self)
        kind = "POLYGON" if self.graphic_type == "RECTANGLE" else self.graphic_type
        return rasterized(
            Graphics(kind, self.coordinates, self.offsets, np.arange(count)),
            np.arange(1, count + 1, dtype=np.min_scalar_type(count)) if labels else None,
            like,
            name=self.label or "annotations",
            frame_of_reference_uids=self._frames_of_reference,
        )

    @property
    def _frames_of_reference(self) -> frozenset[str]:
        """Frame of Reference UIDs of the millimetres: those of the slide's levels, too."""
        known = {self.frame_of_reference_uid} - {None}
        if self.slide is not None:
            known.update(self.slide._frames)
        return frozenset(each for each in known if each is not None)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row per annotation.

        Returns
        -------
        pandas.DataFrame
            Columns ``x``, ``y`` (centroid) and ``z`` (mean, where points have one), ``x_min``,
            ``y_min``, ``x_max``, ``y_max`` (bounding box), all in mm; ``n_points``; one column per
            measurement, with the Code Meaning of its name (and ``_2``, ``_3``, … where a column has
            that name); and, equal in every row, ``group`` (Annotation Group Number), ``label``,
            ``graphic_type``, ``property_category`` and ``property_type``. The units are in
            ``attrs["units"]``. Tables of several groups can be joined with ``pandas.concat``.

        """
        import pandas as pd

        corners = ("x_min", "y_min", "x_max", "y_max")
        table: dict[str, Any] = dict(zip("xy", self.centroids.T, strict=True))
        if self.coordinates.shape[1] == 3:
            z = self.coordinates[:, 2].astype(np.float64)
            counts = np.diff(self.offsets)
            table["z"] = np.add.reduceat(z, self.offsets[:-1]) / counts if len(self) else z
        elif self.planes is not None and len(self.planes) == 1:
            table["z"] = np.full(len(self), self.planes[0])
        table.update(zip(corners, self.bounds.T, strict=True))
        units = dict.fromkeys(table, "mm")
        table["n_points"] = np.diff(self.offsets)
        constants = {
            "label": self.label,
            "graphic_type": self.graphic_type,
            "property_category": _meaning(self.property_category),
            "property_type": _meaning(self.property_type),
        }
        taken = {*table, "group", *constants, "geometry"}
        for measurement in self.measurements:
            name = _meaning(measurement.name) or "measurement"
            column = next(c for c in _alternatives(name) if c not in taken)
            taken.add(column)
            table[column] = measurement.values
            if measurement.unit is not None:
                units[column] = measurement.unit.value
        table["group"] = np.full(len(self), self.number)
        for column, value in constants.items():
            codes = np.full(len(self), -1 if value is None else 0, np.int8)
            categories = [] if value is None else [value]
            table[column] = pd.Categorical.from_codes(codes, pd.Index(categories, dtype=object))
        frame = pd.DataFrame(table)
        frame.attrs["units"] = units
        return frame

    def to_geopandas(self) -> geopandas.GeoDataFrame:
        """Return the table of :meth:`to_pandas` with the annotations as shapes in mm on the slide.

        Returns
        -------
        geopandas.GeoDataFrame
            The column ``geometry`` has points, line strings or polygons (64 corners for an
            ellipse), without z and without a coordinate reference system. A polygon of one or two
            points has no area. ``attrs["frame_of_reference_uid"]`` is that of the group.

        Raises
        ------
        ImportError
            When geopandas, or its dependency shapely, isn't installed.

        """
        try:
            import geopandas
            import shapely
        except ImportError as error:
            raise ImportError(
                "to_geopandas needs geopandas: pip install 'dicomslide[geo]'; to_pandas() works"
                " without it"
            ) from error
        points: NDArray[np.floating[Any]] = self.coordinates[:, :2].astype(np.float64)
        offsets = self.offsets
        kind = shapely.GeometryType.POLYGON
        if self.graphic_type == "POINT":
            shapes = shapely.points(points)
        elif self.graphic_type == "POLYLINE":
            kind = shapely.GeometryType.LINESTRING
            points, offsets = padded(points, offsets, closed=False, minimum=2)
            shapes = shapely.from_ragged_array(kind, points, (offsets,))
        else:
            if self.graphic_type == "ELLIPSE":
                points, offsets = ellipse_outlines(points, ELLIPSE_VERTICES)
            points, offsets = padded(points, offsets, closed=True, minimum=4)
            rings = np.arange(len(self) + 1)
            shapes = shapely.from_ragged_array(kind, points, (offsets, rings))
        frame = geopandas.GeoDataFrame(self.to_pandas(), geometry=shapes)
        if self.frame_of_reference_uid is not None:
            frame.attrs["frame_of_reference_uid"] = self.frame_of_reference_uid
        return frame


def _meaning(code: Code | None) -> str | None:
    return None if code is None else code.meaning


def _alternatives(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


# -- the region around one annotation ---------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotatedRegion:
    """Box on the slide: the arguments of :meth:`Slide.get_slide_region`."""

    offset: tuple[float, float]
    """(x, y) of the corner with the lowest coordinates in mm."""
    size: tuple[float, float]
    """Width and height along X and Y in mm."""
    focal_plane_index: int
    """Index of the focal plane nearest to the annotation."""


def region_of_annotation(
    annotation: Any,
    *,
    frames_of_reference: Collection[str],
    spacing: tuple[float, float],
    planes: Sequence[float],
    padding: ArrayLike = 0,
    padding_mm: ArrayLike = 0.0,
) -> AnnotatedRegion:
    """Return the region around a graphic of a structured report.

    Parameters
    ----------
    annotation : highdicom.sr.Scoord3DContentItem
        Content item of value type SCOORD3D (PS3.3 C.18.9), in millimetres: any data set with
        Graphic Type, Graphic Data and Referenced Frame of Reference UID.
    frames_of_reference : collection of str
        Frame of Reference UIDs of the slide; its levels may have different ones.
    spacing : tuple of float
        Sample spacing (along X, along Y) of the region in mm. A region has at least one sample;
        without padding, the region of a POINT is exactly the pixel that contains it.
    planes : sequence of float
        Offset of each focal plane of the slide in µm.
    padding : int or sequence of int, default: 0
        Samples added around the region: one number for all sides; two for left and right, and
        top and bottom; or four for left (−X), top (+Y), right (+X) and bottom (−Y).
    padding_mm : float or sequence of float, default: 0.0
        Millimetres added around the annotation, given in the same way; `padding` is added to these.

    Returns
    -------
    AnnotatedRegion

    Raises
    ------
    TypeError
        When `annotation` has no Graphic Type and Graphic Data.
    ValueError
        When it is an ELLIPSOID, has another frame of reference, or lies in several focal planes;
        when a padding isn't one, two or four finite numbers of zero or more; or when `padding`
        isn't whole numbers.

    """
    graphic_type, points = _graphic_of(annotation, frames_of_reference)
    around = _sides(padding_mm, "padding_mm", whole=False)
    beside = _sides(padding, "padding", whole=True) * spacing
    box = bounding_boxes(graphic_type, points, np.array([0, len(points)]))[0]
    lows = box[:2] - around[0]
    sizes = box[2:] - lows + around[1]
    # smaller than one sample: one sample, centred on the annotation
    small = sizes < spacing
    lows = np.where(small, (box[:2] + box[2:] - spacing) / 2, lows)
    sizes = np.where(small, spacing, sizes) + beside.sum(axis=0)
    lows = lows - beside[0]
    nearest = np.unique(
        np.abs(np.subtract.outer(points[:, 2] * MICROMETERS, planes)).argmin(axis=1)
    )
    if len(nearest) > 1:
        raise ValueError(
            f"the annotation lies in focal planes {nearest.tolist()}, from z"
            f" {points[:, 2].min():g} to {points[:, 2].max():g} mm; a region has one focal plane"
        )
    return AnnotatedRegion(
        (float(lows[0]), float(lows[1])), (float(sizes[0]), float(sizes[1])), int(nearest[0])
    )


def _graphic_of(
    annotation: Any, frames_of_reference: Collection[str]
) -> tuple[str, NDArray[np.float64]]:
    """Return the graphic type and the points, shape (n, 3) in mm, of a SCOORD3D item."""
    graphic_type, data = (getattr(annotation, k, None) for k in ("GraphicType", "GraphicData"))
    if graphic_type is None or data is None:
        raise TypeError(
            f"annotation is a {type(annotation).__name__} without Graphic Type and Graphic Data;"
            " expected a SCOORD3D content item, such as highdicom.sr.Scoord3DContentItem"
        )
    frame = getattr(annotation, "ReferencedFrameOfReferenceUID", None)
    if frame is None or str(frame) not in frames_of_reference:
        raise ValueError(
            f"the annotation is of frame of reference {frame}, the slide of"
            f" {', '.join(sorted(frames_of_reference))}; expected three-dimensional coordinates"
            " (SCOORD3D) in the frame of reference of the slide"
        )
    # least and greatest number of points
    counts = {
        "POINT": (1, 1),
        "MULTIPOINT": (1, None),
        "POLYLINE": (1, None),
        "POLYGON": (1, None),
        "ELLIPSE": (4, 4),
    }
    if graphic_type not in counts:
        raise ValueError(
            f"Graphic Type {graphic_type} has no region; expected one of {', '.join(counts)}"
        )
    values = np.asarray(data, dtype=np.float64)
    least, most = counts[graphic_type]
    number = values.size // 3
    if values.size % 3 or number < least or number > (most or number):
        raise ValueError(f"{values.size} values of Graphic Data aren't valid for a {graphic_type}")
    if not np.isfinite(values).all():
        raise ValueError("Graphic Data has a value that isn't finite")
    return graphic_type, values.reshape(-1, 3)


def _sides(padding: ArrayLike, name: str, *, whole: bool) -> NDArray[np.float64]:
    """Return the padding at the lower and at the upper ends of X and Y, shape (2, 2)."""
    values = np.asarray(padding, dtype=np.float64)
    if (
        values.shape not in ((), (2,), (4,))
        or not (np.isfinite(values) & (values >= 0)).all()
        or (whole and (values % 1).any())
    ):
        numbers = "whole numbers of pixels" if whole else "finite numbers of millimetres"
        remedy = "; padding_mm takes millimetres" if whole else ""
        raise ValueError(
            f"{name} is {padding!r}; expected one, two or four {numbers}, none of them negative"
            f"{remedy}"
        )
    left, top, right, bottom = np.resize(values, 4)
    return np.array([(left, bottom), (right, top)])
