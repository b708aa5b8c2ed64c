"""A slide as xarray objects: dims, coordinates in mm, and the index that slices by them."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import PandasIndex

from dicomslide import utils
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.geometry import Orientation, SlideGeometry
from dicomslide.layout import geometry_of
from dicomslide.options import check_memory
from dicomslide.stack import StackedReader

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from dicomslide.image import TiledImage
    from dicomslide.reader import MatrixReader
    from dicomslide.slide import Slide
    from dicomslide.stack import Data

__all__ = [
    "SlideIndex",
    "associated_groups",
    "level_dataset",
    "slide_groups",
]

Frame = Literal["slide", "matrix"]
AS_STORED = Orientation(transpose=False, flip_y=False, flip_x=False)
NOISE = 1e-9
"""Fraction of a pixel by which a bound may be off and still meet a pixel's centre."""


class SlideIndex(PandasIndex):
    """Index of a coordinate in mm, in which every pixel has an extent.

    A slice is an interval without direction: ``slice(20, 22)`` and ``slice(22, 20)`` select
    the pixels whose centres lie in it, whether the coordinate ascends or descends. A number
    selects the nearest pixel, within half a pixel of its centre.
    """

    __slots__ = ("spacing",)

    spacing: float
    """Extent of a pixel in mm; it stays when pixels are left out."""

    def __init__(
        self, array: Any, dim: Hashable, coord_dtype: Any = None, *, spacing: float | None = None
    ) -> None:
        super().__init__(array, dim, coord_dtype)
        if spacing is None:  # that of pixels side by side
            values = self.index.to_numpy()
            spacing = float(np.min(np.abs(np.diff(values)))) if len(values) > 1 else math.inf
        self.spacing = spacing

    def _replace(
        self, index: Any, dim: Hashable | None = None, coord_dtype: Any = None
    ) -> SlideIndex:
        return type(self)(
            index,
            self.dim if dim is None else dim,
            self.coord_dtype if coord_dtype is None else coord_dtype,
            spacing=self.spacing,
        )

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> SlideIndex:
        """Make the index of a one-dimensional coordinate.

        Parameters
        ----------
        variables : mapping
            The coordinate, by name.
        options : mapping
            ``spacing``, the extent of a pixel in mm; by default the distance between centres.

        """
        plain = PandasIndex.from_variables(variables, options={})
        return cls(plain.index, plain.dim, plain.coord_dtype, spacing=options.get("spacing"))

    @classmethod
    def concat(
        cls,
        indexes: Sequence[PandasIndex],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> SlideIndex:
        """Join indexes; the extent of a pixel is that of the first."""
        joined = PandasIndex.concat(indexes, dim, positions)
        spacing = getattr(indexes[0], "spacing", None)
        return cls(joined.index, dim, joined.coord_dtype, spacing=spacing)

    def join(self, other: PandasIndex, how: str = "inner") -> SlideIndex:
        """Join with an index of the same kind, as alignment does."""
        joined = super().join(other, how)  # type: ignore[arg-type]
        return self._replace(joined.index, coord_dtype=joined.coord_dtype)

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        """Select by mm: see the class.

        Raises
        ------
        KeyError
            When no pixel's extent holds a number.

        """
        (name, label), *_ = labels.items()
        if isinstance(label, slice):
            return super().sel({name: self._interval(label)})
        if method is None and tolerance is None and _is_numeric(label):
            with contextlib.suppress(KeyError):
                return super().sel(labels)
            try:
                return super().sel(
                    labels, method="nearest", tolerance=self.spacing / 2 * (1 + 1e-6)
                )
            except (KeyError, ValueError):  # ValueError: there is no order to search in
                values = self.index
                raise KeyError(
                    f"no pixel at {name} = {label!r} mm; the coordinate goes from"
                    f" {values.min():g} to {values.max():g} mm, in pixels of {self.spacing:g} mm"
                ) from None
        return super().sel(labels, method, tolerance)

    def _interval(self, label: slice) -> slice:
        bounds = [bound for bound in (label.start, label.stop) if bound is not None]
        bounds = [float(bound) for bound in bounds]
        ascending = len(self.index) < 2 or self.index[0] < self.index[-1]
        if len(bounds) == 2:
            low, high = min(bounds), max(bounds)
        else:  # an open end is that of the array, as with any slice
            open_start = label.start is None
            low, high = -math.inf, math.inf
            if bounds:
                low, high = (low, bounds[0]) if open_start == ascending else (bounds[0], high)
        noise = NOISE * (self.spacing if math.isfinite(self.spacing) else 1)
        low, high = low - noise, high + noise
        return slice(low, high, label.step) if ascending else slice(high, low, label.step)


def _is_numeric(label: Any) -> bool:
    return np.asarray(getattr(label, "values", label)).dtype.kind in "iuf"


# -- datasets --------------------------------------------------------------------------------


def level_dataset(
    slide: Slide,
    level: int,
    *,
    data: Data,
    frame: Frame = "slide",
    squeeze: bool = True,
) -> xr.Dataset:
    """Return a level of a slide.

    Parameters
    ----------
    slide : Slide
        The slide.
    level : int
        Zero-based index into pyramid levels.
    data : callable
        Makes a variable's data of a :class:`StackedReader`.
    frame : {"slide", "matrix"}
        Upright in mm, or rows and columns as stored.
    squeeze : bool
        Whether dims of size one become scalar coordinates.

    Raises
    ------
    LevelNotFoundError
        When there is no such level.

    """
    images = slide.level(level)
    channels = sorted({channel for channel, _ in images.places})
    planes = sorted({plane for _, plane in images.places})
    readers = []
    for channel in channels:
        row: list[MatrixReader | None] = []
        for plane in planes:
            place = images.places.get((channel, plane))
            row.append(
                None if place is None else place[0].get_total_pixel_matrix(*place[1:]).reader
            )
        readers.append(tuple(row))
    for image in images.images[1:]:
        _check_alike(images.image, image)
    if len(images.places) < len(channels) * len(planes):
        warnings.warn(
            f"{slide.name}: level {level} has pixels for {len(images.places)} of"
            f" {len(channels)} × {len(planes)} channels and focal planes; the rest is background",
            MetadataWarning,
            stacklevel=4,
        )
    coords = _stack_coords(slide, channels, planes)
    dataset = _image_dataset(
        images.image, tuple(readers), coords, data=data, frame=frame, squeeze=squeeze
    )
    rows, columns = slide.size
    dataset.attrs |= {
        "level": level,
        "downsampling_factors": [rows / images.size[0], columns / images.size[1]],
    }
    return dataset


def _check_alike(first: TiledImage, other: TiledImage) -> None:
    """Raise where the images of a level can't be one array, warn where they lie apart.

    Raises
    ------
    MetadataError
        When pixels are of another kind, or the matrix lies in another way.

    """
    here, there = (image.get_total_pixel_matrix() for image in (first, other))
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        raise MetadataError(
            f"{other.name} has {there.dtype} pixels of {there.shape[2]} samples, {first.name}"
            f" {here.dtype} of {here.shape[2]}: as channels of a level they can't be one array"
        )
    try:
        a, b = first.geometry, other.geometry
    except MetadataError:
        return
    if not np.allclose(a.matrix[:, :2], b.matrix[:, :2], rtol=0, atol=1e-4 * min(a.spacing)):
        raise MetadataError(
            f"{other.name} lies on the slide in another way than {first.name}: orientation or"
            " pixel spacing differ, so they can't be one array"
        )
    apart = math.dist(a.origin, b.origin)
    if apart > min(a.spacing) / 2:
        warnings.warn(
            f"{other.name} lies {apart:.3g} mm away from {first.name}; coordinates are those of"
            " the latter",
            MetadataWarning,
            stacklevel=5,
        )


def _stack_coords(
    slide: Slide, channels: Sequence[int], planes: Sequence[int]
) -> dict[str, xr.Variable]:
    chosen = [slide.channels[i] for i in channels]
    wavelengths = [channel.wavelength for channel in chosen]
    offsets = [slide.focal_plane_offsets[i] / 1000 for i in planes]
    coords = {
        "channel": xr.Variable(
            "channel",
            np.array([channel.identifier for channel in chosen]),
            {"long_name": "Optical Path Identifier"},
        ),
        "channel_description": xr.Variable(
            "channel",
            np.array([channel.description or channel.identifier for channel in chosen]),
            {"long_name": "Optical Path Description"},
        ),
        "z": xr.Variable(
            "z", np.array(offsets), {"long_name": "focal plane's offset", "units": "mm"}
        ),
        "focal_plane": xr.Variable("z", np.array(planes), {"long_name": "focal plane's index"}),
    }
    if any(wavelengths):
        coords["wavelength"] = xr.Variable(
            "channel",
            np.array([math.nan if w is None else w for w in wavelengths]),
            {"long_name": "Illumination Wave Length", "units": "nm"},
        )
    return coords


def _image_dataset(
    image: TiledImage,
    readers: tuple[tuple[MatrixReader | None, ...], ...],
    coords: dict[str, xr.Variable],
    *,
    data: Data,
    frame: Frame,
    squeeze: bool,
) -> xr.Dataset:
    """Return the dataset of one grid of pixels."""
    if frame not in ("slide", "matrix"):
        raise ValueError(f'frame must be "slide" or "matrix", not {frame!r}')
    check_memory(8 * sum(image.size), f"{image.name}: coordinates")
    geometry = _geometry(image)
    layout = next(r for row in readers for r in row if r is not None).layout
    orientation = None if geometry is None or frame == "matrix" else geometry.orientation
    if frame == "slide" and geometry is not None and orientation is None:
        warnings.warn(
            f"{image.name}: it lies obliquely on the slide (rotation {geometry.rotation:.3f}"
            ' degrees), so its dims are row and column (frame="matrix")',
            MetadataWarning,
            stacklevel=5,
        )
    samples = layout.pixel_format.samples
    lengths = (len(readers), len(readers[0]), samples)
    kept = tuple(length > 1 or not squeeze for length in lengths)
    reader = StackedReader(
        readers=readers,
        orientation=orientation or AS_STORED,
        kept=(kept[0], kept[1], kept[2]),
        matrix_shape=(*image.size, samples),
        tile_shape=(layout.pixel_format.rows, layout.pixel_format.columns),
        dtype=layout.pixel_format.dtype,
        background=layout.background,
    )
    plane = ("row", "column") if orientation is None else ("y", "x")
    dims = (*itertools.compress(("channel", "z"), kept), *plane, *(("sample",) if kept[2] else ()))
    lead = {name: variable for name, variable in coords.items() if variable.dims[0] in dims}
    scalars = {
        name: variable[0] for name, variable in coords.items() if variable.dims[0] not in dims
    }
    if samples == 3:
        lead["sample"] = xr.Variable("sample", np.array(["r", "g", "b"]))
    dataset = xr.Dataset(coords=lead | scalars)
    dataset = dataset.assign_coords(_plane_coords(geometry, orientation, image.size))
    if "z" in dims:
        z = dataset["z"].variable
        index = SlideIndex(z.to_index(), "z")
        dataset = dataset.drop_vars(["z"]).assign_coords(
            xr.Coordinates({"z": z}, indexes={"z": index})
        )
    variable = xr.Variable(
        dims,
        data(reader),
        _image_attrs(image, geometry, orientation),
        encoding={
            "preferred_chunks": dict(zip(dims, map(_regular, reader.chunk_lengths()), strict=True))
        },
    )
    return dataset.assign(image=variable)


def _regular(lengths: tuple[int, ...]) -> int | tuple[int, ...]:
    """Return one number for chunks that are all of one length but the last."""
    first = lengths[0]
    regular = all(length == first for length in lengths[:-1]) and lengths[-1] <= first
    return first if regular else lengths


def _geometry(image: TiledImage) -> SlideGeometry | None:
    try:
        return geometry_of(image.metadata, extent=image.extent, relative=True)
    except MetadataError as error:
        warnings.warn(
            f"{error}: its dims are row and column, without millimetres",
            MetadataWarning,
            stacklevel=6,
        )
        return None


def _plane_coords(
    geometry: SlideGeometry | None, orientation: Orientation | None, size: tuple[int, int]
) -> xr.Coordinates:
    if geometry is None or orientation is None:
        return xr.Coordinates(
            {
                name: xr.Variable(name, np.arange(length))
                for name, length in zip(("row", "column"), size, strict=True)
            }
        )
    y, x = geometry.upright_coordinates()
    along_x, along_y = geometry.slide_spacing
    coords, indexes = {}, {}
    for name, values, spacing in (("y", y, along_y), ("x", x, along_x)):
        index = SlideIndex(pd.Index(values, name=name), name, spacing=spacing)
        attrs = {"long_name": f"{name.upper()} of the slide", "units": "mm", "pixel_size": spacing}
        coords[name] = index.create_variables({name: xr.Variable(name, values, attrs)})[name]
        indexes[name] = index
    return xr.Coordinates(coords, indexes=indexes)


def _image_attrs(
    image: TiledImage, geometry: SlideGeometry | None, orientation: Orientation | None
) -> dict[str, Any]:
    metadata = image.metadata
    attrs: dict[str, Any] = {
        "long_name": image.flavor.lower(),
        "sop_instance_uid": utils.text(metadata, "SOPInstanceUID"),
        "series_instance_uid": utils.text(metadata, "SeriesInstanceUID"),
        "series_description": utils.text(metadata, "SeriesDescription"),
        "transfer_syntax_uid": image.transfer_syntax_uid,
        "photometric_interpretation": utils.text(metadata, "PhotometricInterpretation"),
    }
    if geometry is not None:
        attrs |= {
            "pixel_spacing": list(geometry.spacing),
            "image_orientation_slide": [
                *geometry.row_direction,
                0.0,
                *geometry.column_direction,
                0.0,
            ],
            "total_pixel_matrix_origin": list(geometry.origin),
        }
        if orientation is None:
            attrs["affine"] = geometry.matrix.tolist()  # (x, y) = affine @ (row, column, 1)
    return {name: value for name, value in attrs.items() if value is not None}


# -- trees -----------------------------------------------------------------------------------


def slide_groups(
    slide: Slide,
    *,
    data: Data,
    frame: Frame = "slide",
    squeeze: bool = True,
    associated: bool = False,
    include_patient: bool = False,
) -> dict[str, xr.Dataset]:
    """Return the datasets of a slide's tree by path: the root, the levels, associated images."""
    groups = {"/": xr.Dataset(attrs=slide_attrs(slide, include_patient=include_patient))}
    for level in range(slide.num_levels):
        groups[f"/level_{level}"] = level_dataset(
            slide, level, data=data, frame=frame, squeeze=squeeze
        )
    if associated:
        found = associated_groups(slide, data=data, frame=frame, squeeze=squeeze)
        groups |= {f"/{name}": dataset for name, dataset in found.items()}
    return groups


def associated_groups(
    slide: Slide, *, data: Data, frame: Frame = "slide", squeeze: bool = True
) -> dict[str, xr.Dataset]:
    """Return the datasets of label, overview and thumbnail by name: the first has no number."""
    groups = {}
    for kind, images in (
        ("label", slide.label_images),
        ("overview", slide.overview_images),
        ("thumbnail", slide.thumbnail_images),
    ):
        for number, image in enumerate(images, 1):
            readers = ((image.get_total_pixel_matrix().reader,),)
            name = kind if number == 1 else f"{kind}_{number}"
            groups[name] = _image_dataset(
                image, readers, {}, data=data, frame=frame, squeeze=squeeze
            )
    return groups


def slide_attrs(slide: Slide, *, include_patient: bool = False) -> dict[str, Any]:
    """Return what a header says of the slide, as plain values."""
    metadata = slide.metadata
    keywords = {
        "container_identifier": "ContainerIdentifier",
        "frame_of_reference_uid": "FrameOfReferenceUID",
        "study_instance_uid": "StudyInstanceUID",
        "series_instance_uid": "SeriesInstanceUID",
        "manufacturer": "Manufacturer",
        "manufacturer_model_name": "ManufacturerModelName",
        "acquisition_datetime": "AcquisitionDateTime",
    }
    if include_patient:
        keywords |= {
            "patient_id": "PatientID",
            "patient_name": "PatientName",
            "patient_birth_date": "PatientBirthDate",
            "patient_sex": "PatientSex",
            "accession_number": "AccessionNumber",
        }
    attrs: dict[str, Any] = {
        name: utils.text(metadata, keyword) for name, keyword in keywords.items()
    }
    attrs["objective_lens_power"] = next(
        (
            power
            for item in utils.items(metadata, "OpticalPathSequence")
            if (power := utils.number(item, "ObjectiveLensPower"))
        ),
        None,
    )
    attrs["stains"] = utils.stains_of(metadata) or None
    return {name: value for name, value in attrs.items() if value is not None}
