"""The engine ``dicomslide`` of xarray."""

from __future__ import annotations

import functools
import itertools
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from dicomslide.backends.dicomweb.client import is_dicomweb_url
from dicomslide.header.geometry import renamed_frame
from dicomslide.labelled import accessor as accessor  # registered, for what other engines open, too
from dicomslide.readers.arrays import ReaderArray
from dicomslide.readers.matrix_reader import as_contiguous
from dicomslide.readers.rounds import read_in_round

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dicomslide.header.geometry import OrientationName
    from dicomslide.header.resolution import Spacing
    from dicomslide.labelled.parts import Parts
    from dicomslide.labelled.tree import Levels
    from dicomslide.readers.reductions import Labels
    from dicomslide.readers.stacked_reader import StackedReader
    from dicomslide.slide.slide import Slide

__all__ = ["DicomSlideBackendArray", "DicomSlideBackendEntrypoint"]

FILES_TO_GUESS = 32
"""Files of a folder that are looked at to guess whether it holds a slide."""
_MANGLED_URL = re.compile(r"(dicomweb\+https?:)/+(.+)")
WHOLE_SLIDE_IMAGE = b"1.2.840.10008.5.1.4.1.1.77.1.6"


class DicomSlideBackendArray(ReaderArray, BackendArray):
    """A reader as xarray indexes it lazily: by keys of xarray's kinds.

    Parameters
    ----------
    reader : StackedReader
        Gives the pixels with the dims in their final order.

    """

    __slots__ = ()

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        array = indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self.read
        )
        return as_contiguous(array)  # xarray turns what was read around by itself

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """Read in another thread, with the requests of what the event loop reads as well."""
        array = await indexing.async_explicit_indexing_adapter(
            key,
            self.shape,
            indexing.IndexingSupport.OUTER,
            functools.partial(read_in_round, self),
        )
        return as_contiguous(array)


class _Coordinate(xr.Variable):
    """A coordinate in memory, which the chunks of an engine don't apply to.

    xarray chunks the coordinates of an engine that have no index, too. Then dask arrays tell what
    channels are called, by which nothing can be chosen.
    """

    __slots__ = ()

    def chunk(self, *args: Any, **kwargs: Any) -> xr.Variable:  # type: ignore[override]
        """Return the coordinate as a plain variable: later, it may be chunked."""
        return xr.Variable(self.dims, self.values, self.attrs, self.encoding)

    def to_base_variable(self) -> xr.Variable:
        """Return a copy of this class: a dataset makes one of each coordinate."""
        return self._replace()


class DicomSlideBackendEntrypoint(BackendEntrypoint):
    """Opens DICOM whole slide images as labelled arrays in slide coordinates.

    ``xarray.open_datatree("slide/", engine="dicomslide", chunks={})`` gives all levels,
    ``xarray.open_dataset("slide/", engine="dicomslide")`` the base level.
    """

    description: ClassVar[str] = "DICOM whole slide images in slide coordinates (mm)"
    url: ClassVar[str] = "https://pypi.org/project/dicomslide/"
    supports_groups: ClassVar[bool] = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is a DICOM slide; looks at the first bytes of few files on disk.

        Of a URL the name alone is looked at: guessing costs no request. A DICOMweb URL can be
        nothing else.
        """
        try:
            path = _as_given(os.fspath(filename_or_obj))
            if isinstance(path, bytes):
                return False
            if is_dicomweb_url(path):
                return True
            if "://" in path:
                return path.partition("::")[0].partition("?")[0].endswith(".dcm")
            if not os.path.isdir(path):
                return os.path.isfile(path) and _is_slide_image(path)  # a pipe is waited for
            with os.scandir(path) as entries:
                files = itertools.islice((e.path for e in entries if e.is_file()), FILES_TO_GUESS)
                return any(_is_slide_image(file) for file in files)
        except (OSError, TypeError, ValueError):
            return False

    @renamed_frame
    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        level: int | None = None,
        group: str | None = None,
        orientation: OrientationName = "upright",
        squeeze: bool = True,
        mask_and_scale: bool | Mapping[str, bool] = True,
        container_id: str | None = None,
        frame_of_reference_uid: str | None = None,
        pyramid: int | str | None = None,
        correct_color: bool | None = None,
        on_error: Literal["raise", "fill"] | None = None,
        align_levels: bool | None = None,
        include_patient: bool = False,
        spacing: Spacing | None = None,
        labels: Labels = "majority",
        fast: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        session: Any = None,
    ) -> xr.Dataset:
        """Open one level of a slide, or the slide at any other resolution.

        Parameters
        ----------
        filename_or_obj : path-like, list of path-like or dicomslide.Slide
            A DICOM file, a folder of them, or a list of both, on disk or as URLs; or a DICOMweb
            URL: see :func:`dicomslide.open_slide`.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        level : int, optional
            Zero-based index into pyramid levels; 0, the largest, if neither this nor `group`
            is given.
        group : str, optional
            Name of a node of the tree: ``"level_1"``, ``"label"``, ``"overview"``, or
            ``"segmentation"`` where it lies on no level's grid.
        orientation : {"upright", "stored"}, default: "upright"
            Upright, with dims y and x in mm; or rows and columns as stored.
        squeeze : bool, default: True
            Whether dims of size one, other than rows and columns, become scalar coordinates.
        mask_and_scale : bool or mapping, default: True
            Whether fractional segmentations are fractions, 0 to 1 (float32), and parametric maps
            of integers real world values by their mapping (float64; NaN where a value isn't
            mapped); else what is stored. A mapping says it by the name of the variable.
        container_id, frame_of_reference_uid : str, optional
            Which slide, where several are there.
        pyramid : int or str, optional
            Which pyramid, where several are on the glass: see :class:`dicomslide.Slide`.
        correct_color : bool, default: True
            Whether colours are mapped to sRGB by the ICC profile of the optical path. Of a Slide
            that is opened again, this and the next two stay as they were unless they are given.
        on_error : {"raise", "fill"}, default: "raise"
            Whether a bad frame raises, or is background with a warning.
        align_levels : bool, default: True
            Whether levels that state the base's origin are laid on its corner: see
            :class:`dicomslide.Slide`.
        include_patient : bool, default: False
            Whether attributes that identify the patient are among the attributes.
        spacing : float or str, optional
            Distance of pixels, instead of a level or group: a number in mm, or text such as
            ``"0.5 um"`` or ``"10x"`` (which is 1 µm): see :meth:`dicomslide.Slide.to_dataset`.
        labels : {"majority", "any"}, default: "majority"
            What a pixel of labels is of those that it covers, where there is a spacing.
        fast : bool, default: False
            Whether the decoder may leave out detail, where there is a spacing: see
            :meth:`dicomslide.Slide.to_dataset`.
        storage_options : mapping, optional
            How a URL is reached, credentials included, which never leave the process: see
            :func:`dicomslide.register_storage_options`.
        session : requests.Session or callable, optional
            What the URL of a DICOMweb service is read by: see :func:`dicomslide.open_slide`.

        Returns
        -------
        xarray.Dataset
            With the variables ``image``, dims (channel, z, y, x, sample); ``segmentation``, dims
            (segment, z, y, x); and ``parametric_map``, dims (parameter, z, y, x).

        Raises
        ------
        LevelNotFoundError
            When there is no such level or group.
        DicomSlideError
            When there is no slide, or several, or it can't be read.

        """
        from dicomslide.contents.description import slide_attrs
        from dicomslide.errors import LevelNotFoundError
        from dicomslide.labelled.tree import level_parts, other_parts, spacing_parts

        slide = _open(
            filename_or_obj, container_id, frame_of_reference_uid, pyramid, correct_color,
            on_error, align_levels, storage_options, session,
        )  # fmt: skip
        if sum(given is not None for given in (level, group, spacing)) > 1:
            raise TypeError("level, group and spacing each say what to open: give one of them")
        common: dict[str, Any] = dict(
            data=_lazy, orientation=orientation, squeeze=squeeze, mask_and_scale=mask_and_scale
        )
        name = str(group or "").strip("/")
        if name.startswith("level_") and name[6:].isdecimal():
            level = int(name[6:])
        if spacing is not None:
            parts = spacing_parts(slide, spacing, labels=labels, fast=fast, **common)
        elif name and level is None:
            others = other_parts(slide, **common)
            if name not in others:
                there = [f"level_{i}" for i in range(slide.num_levels)] + list(others)
                raise LevelNotFoundError(f"{slide.name}: no group {group!r}; there are {there}")
            parts = others[name]
        else:
            parts = level_parts(slide, level or 0, **common)
        parts.attrs = slide_attrs(slide, include_patient=include_patient) | parts.attrs
        return _finished(parts, filename_or_obj, drop_variables)

    @renamed_frame
    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        orientation: OrientationName = "upright",
        squeeze: bool = True,
        mask_and_scale: bool | Mapping[str, bool] = True,
        associated: bool = False,
        container_id: str | None = None,
        frame_of_reference_uid: str | None = None,
        pyramid: int | str | None = None,
        correct_color: bool | None = None,
        on_error: Literal["raise", "fill"] | None = None,
        align_levels: bool | None = None,
        include_patient: bool = False,
        levels: Levels = "stored",
        spacings: Sequence[Spacing] | None = None,
        labels: Labels = "majority",
        fast: bool | None = None,
        storage_options: Mapping[str, Any] | None = None,
        session: Any = None,
    ) -> dict[str, xr.Dataset]:
        """Open all levels of a slide, by path; see :meth:`open_datatree`."""
        from dicomslide.labelled.tree import slide_parts

        slide = _open(
            filename_or_obj, container_id, frame_of_reference_uid, pyramid, correct_color,
            on_error, align_levels, storage_options, session,
        )  # fmt: skip
        groups = slide_parts(
            slide,
            data=_lazy,
            orientation=orientation,
            squeeze=squeeze,
            mask_and_scale=mask_and_scale,
            associated=associated,
            include_patient=include_patient,
            levels=levels,
            spacings=spacings,
            labels=labels,
            fast=fast,
        )
        return {
            path: _finished(parts, filename_or_obj, drop_variables)
            for path, parts in groups.items()
        }

    @renamed_frame
    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        orientation: OrientationName = "upright",
        squeeze: bool = True,
        mask_and_scale: bool | Mapping[str, bool] = True,
        associated: bool = False,
        container_id: str | None = None,
        frame_of_reference_uid: str | None = None,
        pyramid: int | str | None = None,
        correct_color: bool | None = None,
        on_error: Literal["raise", "fill"] | None = None,
        align_levels: bool | None = None,
        include_patient: bool = False,
        levels: Levels = "stored",
        spacings: Sequence[Spacing] | None = None,
        labels: Labels = "majority",
        fast: bool | None = None,
        storage_options: Mapping[str, Any] | None = None,
        session: Any = None,
    ) -> xr.DataTree:
        """Open a slide as a tree of its levels.

        Parameters
        ----------
        filename_or_obj, drop_variables, orientation, squeeze, mask_and_scale, container_id
            See :meth:`open_dataset`.
        frame_of_reference_uid
            See :meth:`open_dataset`.
        pyramid, correct_color, on_error, align_levels, include_patient, storage_options
            See :meth:`open_dataset`.
        group : str, optional
            Node to open as the root; all of them if not given.
        associated : bool, default: False
            Whether label, overview and thumbnail are nodes beside the levels.
        levels, spacings, labels, fast
            See :meth:`dicomslide.Slide.to_datatree`.

        Returns
        -------
        xarray.DataTree
            With the nodes ``level_0``, ``level_1``, ...; and one for each derived image that lies
            on no level's grid.

        Raises
        ------
        DicomSlideError
            When there is no slide, or several, or it can't be read.

        """
        options: dict[str, Any] = dict(
            drop_variables=drop_variables,
            orientation=orientation,
            squeeze=squeeze,
            mask_and_scale=mask_and_scale,
            container_id=container_id,
            frame_of_reference_uid=frame_of_reference_uid,
            pyramid=pyramid,
            correct_color=correct_color,
            on_error=on_error,
            align_levels=align_levels,
            include_patient=include_patient,
            storage_options=storage_options,
            session=session,
        )
        if group is not None and group.strip("/"):
            if levels != "stored" or spacings is not None:
                raise TypeError(
                    "group names a node of the levels that are stored: give one of"
                    " group, levels and spacings"
                )
            groups = {"/": self.open_dataset(filename_or_obj, group=group, **options)}
        else:
            groups = self.open_groups_as_dict(
                filename_or_obj,
                associated=associated,
                levels=levels,
                spacings=spacings,
                labels=labels,
                fast=fast,
                **options,
            )
        tree = xr.DataTree.from_dict(groups)
        tree.encoding |= groups["/"].encoding
        return tree


def _lazy(reader: StackedReader, dims: Sequence[str]) -> indexing.LazilyIndexedArray:
    return indexing.LazilyIndexedArray(DicomSlideBackendArray(reader))


def _open(
    source: Any, container_id: str | None, frame_of_reference_uid: str | None,
    pyramid: int | str | None, correct_color: bool | None,
    on_error: Literal["raise", "fill"] | None, align_levels: bool | None,
    storage_options: Mapping[str, Any] | None, session: Any,
) -> Slide:  # fmt: skip
    from dicomslide.slide.opening import open_slide

    return open_slide(
        _as_given(source),
        container_id=container_id,
        frame_of_reference_uid=frame_of_reference_uid,
        pyramid=pyramid,
        correct_color=correct_color,
        on_error=on_error,
        align_levels=align_levels,
        storage_options=storage_options,
        session=session,
    )


def _finished(parts: Parts, source: Any, drop_variables: str | Iterable[str] | None) -> xr.Dataset:
    parts.coords |= {
        name: _Coordinate(coord.dims, coord.values, coord.attrs, coord.encoding)
        for name, coord in parts.coords.items()
        if coord.ndim and name not in parts.indexes
    }
    dataset = parts.dataset()
    if drop_variables is not None:
        names = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables)
        dataset = dataset.drop_vars(names, errors="ignore")
    source = _as_given(source)
    if isinstance(source, (str, os.PathLike)):
        from dicomslide.backends.net.redaction import public_url
        from dicomslide.backends.objects.storage import is_url

        path = os.fspath(source)
        if is_dicomweb_url(path):
            dataset.encoding["source"] = path
        else:
            dataset.encoding["source"] = public_url(path) if is_url(path) else os.path.abspath(path)
    return dataset


def _as_given(source: Any) -> Any:
    """Return a URL as it was before xarray took it for a path, for its scheme has a +."""
    mangled = _MANGLED_URL.search(source) if isinstance(source, str) else None
    return source if mangled is None else f"{mangled[1]}//{mangled[2]}"


def _is_slide_image(path: str) -> bool:
    # the SOP Class UID stands in the file meta information, which is short
    with open(path, "rb") as file:
        head = file.read(1024)
    return head[128:132] == b"DICM" and WHOLE_SLIDE_IMAGE in head
