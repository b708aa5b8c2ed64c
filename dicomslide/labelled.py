"""A slide as xarray objects: dims, coordinates in mm, and the index that slices by them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import PandasIndex

from dicomslide import utils
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.geometry import Orientation, SlideGeometry
from dicomslide.indexing import Axis
from dicomslide.layout import geometry_of
from dicomslide.options import check_memory
from dicomslide.reader import ChunkReader, MatrixReader, chunk_multiple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.image import TiledImage
    from dicomslide.slide import Slide

__all__ = [
    "SlideIndex",
    "StackedReader",
    "associated_groups",
    "dask_data",
    "level_dataset",
    "slide_groups",
]

Frame = Literal["slide", "matrix"]
Data: TypeAlias = "Callable[[StackedReader], Any]"
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
    """Distance between centres in mm; of an only pixel, its extent."""

    def __init__(
        self, array: Any, dim: Hashable, coord_dtype: Any = None, *, spacing: float | None = None
    ) -> None:
        super().__init__(array, dim, coord_dtype)
        values = self.index.to_numpy()
        if len(values) > 1:
            spacing = float(np.min(np.abs(np.diff(values))))
        self.spacing = math.inf if spacing is None else spacing

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
            ``spacing``, the extent of an only pixel in mm.

        """
        plain = PandasIndex.from_variables(variables, options={})
        return cls(plain.index, plain.dim, plain.coord_dtype, spacing=options.get("spacing"))

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
            try:
                return super().sel(
                    labels, method="nearest", tolerance=self.spacing / 2 * (1 + 1e-6)
                )
            except KeyError:
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


# -- data ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StackedReader:
    """Pixels of several channels and focal planes as one array in the order of the tree's dims.

    Each axis takes a key of its own (an integer, a slice or an array). Thin, like the readers
    of which it is made.
    """

    readers: tuple[tuple[MatrixReader | None, ...], ...]
    """By channel, then by focal plane; None where there are no pixels."""
    orientation: Orientation
    """How the matrix is turned."""
    kept: tuple[bool, bool, bool]
    """Whether the dims channel, z and sample are there."""
    matrix_shape: tuple[int, int, int]
    """Rows, columns and samples of each matrix."""
    tile_shape: tuple[int, int]
    """Rows and columns of a tile."""
    dtype: np.dtype[Any]
    background: tuple[float, ...]

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Length of the last dims but the samples."""
        rows, columns, _ = self.matrix_shape
        return (columns, rows) if self.orientation.transpose else (rows, columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dim."""
        full = len(self.readers), len(self.readers[0]), self.matrix_shape[2]
        stack = [length for length, kept in zip(full[:2], self.kept[:2], strict=True) if kept]
        return (*stack, *self.plane_shape, *((full[2],) if self.kept[2] else ()))

    def __dask_tokenize__(self) -> Any:
        return (
            "dicomslide.StackedReader",
            tuple(
                None if r is None else r.__dask_tokenize__() for row in self.readers for r in row
            ),
            dataclasses.astuple(self.orientation),
            self.kept,
        )

    def read(self, key: Sequence[Any], *, num_threads: int | None = None) -> NDArray[Any]:
        """Read what a key for each dim picks, each independently of the others."""
        keys = list(key)
        channel = Axis.of(keys.pop(0) if self.kept[0] else 0, len(self.readers))
        plane = Axis.of(keys.pop(0) if self.kept[1] else 0, len(self.readers[0]))
        height, width = self.plane_shape
        y = _turned(keys.pop(0), height, self.orientation.flip_y)
        x = _turned(keys.pop(0), width, self.orientation.flip_x)
        sample = keys.pop(0) if self.kept[2] else 0
        matrix_key = (x, y, sample) if self.orientation.transpose else (y, x, sample)
        lengths = [Axis.of(k, n) for k, n in zip(matrix_key, self.matrix_shape, strict=True)]
        shape = tuple(len(axis) for axis in lengths if not axis.drop)
        check_memory(
            len(channel) * len(plane) * math.prod(shape) * self.dtype.itemsize,
            f"{len(channel) * len(plane)} regions of {shape}",
        )
        turn = self.orientation.transpose and not (lengths[0].drop or lengths[1].drop)

        def one(c: int, p: int) -> NDArray[Any]:
            reader = self.readers[c][p]
            if reader is None:
                region = np.empty((*shape, self.matrix_shape[2])[: len(shape)], self.dtype)
                region[...] = self.background if region.ndim == 3 else self.background[0]
            else:
                region = reader.read(matrix_key, num_threads=num_threads)
            return region.swapaxes(0, 1) if turn else region

        channels, planes = _ordered(channel), _ordered(plane)
        if channel.drop and plane.drop:
            return one(channels[0], planes[0])
        stacked = [one(c, p) for c, p in itertools.product(channels, planes)]
        if len(stacked) == 1:
            whole = stacked[0][None]
        else:
            upright = (shape[1], shape[0], *shape[2:]) if turn else shape
            whole = np.stack(stacked) if stacked else np.empty((0, *upright), self.dtype)
        lead = [len(axis) for axis in (channel, plane) if not axis.drop]
        return whole.reshape(*lead, *whole.shape[1:])

    def chunk_lengths(self, multiple: tuple[int, int] = (1, 1)) -> tuple[tuple[int, ...], ...]:
        """Return the chunks of each dim: whole frames, `multiple` of them down and across."""
        rows, columns, samples = self.matrix_shape
        down = _lengths(rows, self.tile_shape[0] * multiple[0])
        right = _lengths(columns, self.tile_shape[1] * multiple[1])
        y, x = (right, down) if self.orientation.transpose else (down, right)
        stack = (len(self.readers), len(self.readers[0]))
        ones = [(1,) * n for n, kept in zip(stack, self.kept[:2], strict=True) if kept]
        return (
            *ones,
            y[::-1] if self.orientation.flip_y else y,
            x[::-1] if self.orientation.flip_x else x,
            *(((samples,),) if self.kept[2] else ()),
        )


def _lengths(length: int, step: int) -> tuple[int, ...]:
    whole, rest = divmod(length, step)
    return (step,) * whole + ((rest,) if rest else ())


def _ordered(axis: Axis) -> list[int]:
    values = [int(value) for value in axis.indices]
    return values[::-1] if axis.reverse else values


def _turned(key: Any, length: int, flip: bool) -> Any:
    """Return the key of the axis as stored that picks what `key` picks of it turned around."""
    if not flip:
        return key
    if isinstance(key, slice):
        wanted = range(*key.indices(length))
        if not wanted:
            return slice(0, 0)
        stop = length - 1 - wanted[-1] - wanted.step // abs(wanted.step)
        return slice(length - 1 - wanted[0], None if stop < 0 else stop, -wanted.step)
    axis = Axis.of(key, length)
    return length - 1 - (axis.indices[0] if axis.drop else np.asarray(axis.indices))


def dask_data(chunks: Literal["frames", "auto"] | int) -> Data:
    """Return what makes a dask array of a reader."""

    def make(reader: StackedReader) -> Any:
        import dask.array
        from dask.base import tokenize

        multiple = chunk_multiple(chunks, reader.tile_shape)
        return dask.array.from_array(  # type: ignore[no-untyped-call]
            ChunkReader(reader),
            chunks=reader.chunk_lengths(multiple),
            name=f"slide-{tokenize(reader, multiple)}",
            asarray=False,
            lock=False,
            meta=np.empty((0,) * len(reader.shape), reader.dtype),
            inline_array=True,
        )

    return make


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
    attrs["stains"] = stains_of(metadata) or None
    return {name: value for name, value in attrs.items() if value is not None}


def stains_of(metadata: Dataset) -> list[str]:
    """Return the substances that the specimens were stained with, by name (TID 8003)."""
    found: dict[str, None] = {}
    for specimen in utils.items(metadata, "SpecimenDescriptionSequence"):
        for step in utils.items(specimen, "SpecimenPreparationSequence"):
            for item in utils.items(step, "SpecimenPreparationStepContentItemSequence"):
                names = utils.items(item, "ConceptNameCodeSequence")
                # "Using substance", in SNOMED CT and by its retired identifier
                if any(utils.text(n, "CodeValue") in ("424361007", "G-C350") for n in names):
                    for code in utils.items(item, "ConceptCodeSequence"):
                        found[utils.text(code, "CodeMeaning") or ""] = None
                    if stain := utils.text(item, "TextValue"):
                        found[stain] = None
    return [name for name in found if name]
