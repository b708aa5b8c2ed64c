"""A slide's pixels as labelled dask arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dicomslide.contents.contents import SlideContents
from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.geometry import renamed_frame
from dicomslide.header.resolution import magnification_in_mm, spacing_in_mm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

    from dicomslide.header.geometry import OrientationName
    from dicomslide.header.resolution import Spacing
    from dicomslide.labelled.tree import Levels
    from dicomslide.readers.chunks import Chunks
    from dicomslide.readers.reductions import Labels

__all__ = ["SlideArrays"]


class SlideArrays(SlideContents):
    """Contents of a slide, and methods that return xarray objects."""

    @renamed_frame
    def to_dataset(
        self,
        level: int = 0,
        *,
        chunks: Chunks = "frames",
        orientation: OrientationName = "upright",
        squeeze: bool = True,
        mask_and_scale: bool | Mapping[str, bool] = True,
        spacing: Spacing | None = None,
        labels: Labels = "majority",
        fast: bool = False,
    ) -> xr.Dataset:
        """Return a level, or the slide at any spacing, as a dataset of dask arrays.

        Parameters
        ----------
        level : int, default: 0
            Zero-based index into pyramid levels.
        chunks : {"frames", "auto"}, int or mapping, default: "frames"
            ``"frames"``: one frame of one channel and focal plane per chunk. ``"auto"``: whole
            frames of all channels and focal planes, about 12 MiB per chunk; split along focal
            planes and channels if one frame of each takes more than 64 MiB. An integer: whole
            frames of one channel and focal plane, at least that many pixels along each edge; −1:
            one chunk. A mapping by dim, such as ``{"channel": -1, "y": 1024}``: a number of
            pixels, channels or focal planes; −1; ``"auto"``; or the lengths of the chunks, which
            end where frames end. Dims that it doesn't name have chunks of one frame, channel or
            focal plane, so that ``{}`` is ``"frames"``.
        orientation : {"upright", "stored"}, default: "upright"
            Upright, with dims y and x in mm; or rows and columns as stored.
        squeeze : bool, default: True
            Whether dims of size one, other than rows and columns, become scalar coordinates.
        mask_and_scale : bool or mapping, default: True
            Whether fractional segmentations are converted to fractions from 0 to 1 (float32), and
            parametric maps of integers to real world values by their mapping (float64; NaN for
            values without a mapping); otherwise values are as stored, as in all other methods. A
            mapping gives a value for each variable by name.
        spacing : float or str, optional
            Spacing of pixels, instead of a level: a number in mm; a text with a unit, such as
            ``"0.5 um"``; or a magnification, where ``"10x"`` is 1 µm. See the notes.
        labels : {"majority", "any"}, default: "majority"
            With a spacing, rule for pixels of segments and label maps: the label of the largest
            area, or any label before background.
        fast : bool, default: False
            With a spacing, whether frames may be decoded at reduced size. JPEG frames are decoded
            at 1/2, 1/4 or 1/8 of their size in as little as half the time; pixels differ from
            means by a few grey levels, at sharp edges by up to about 25. HTJ2K takes a fraction of
            the time, with larger differences, because its low-pass filter isn't a mean.

        Returns
        -------
        xarray.Dataset
            Those of the following variables that the level has: ``image``, dims (channel, z, y, x,
            sample); ``segmentation``, dims (segment, z, y, x); ``parametric_map``, dims (parameter,
            z, y, x). Optical paths with another type of pixels are ``image_2``, dims (channel_2, z,
            y, x, sample).

        Raises
        ------
        LevelNotFoundError
            When there is no such level.
        MetadataError
            When there is a spacing, but the header doesn't place the base level on the slide.
        TypeError
            When both a level and a spacing are given.
        ValueError
            When the spacing is invalid, or pixels are larger than the slide.

        Notes
        -----
        The grid of a spacing begins at the outer corner of pixel (0, 0) of the base level, so that
        the first centre is half a pixel from the corner. It covers the images; the last pixel may
        extend beyond them. A pixel is the mean, by area, of the stored pixels that it covers,
        without NaN; integers are rounded half up. Stored pixels are those of the coarsest level
        that is finer than the spacing, or of the base level if none is. A task decodes each frame
        of its chunk once.

        """
        from dicomslide.labelled.tree import level_parts, spacing_parts
        from dicomslide.readers.arrays import dask_data

        common: dict[str, Any] = dict(
            data=dask_data(chunks),
            orientation=orientation,
            squeeze=squeeze,
            mask_and_scale=mask_and_scale,
        )
        if spacing is None:
            return level_parts(self, level, **common).dataset()
        if level:
            raise TypeError("level and spacing both say a resolution: give one of them")
        return spacing_parts(self, spacing, labels=labels, fast=fast, **common).dataset()

    @renamed_frame
    def to_datatree(
        self,
        *,
        chunks: Chunks = "frames",
        orientation: OrientationName = "upright",
        squeeze: bool = True,
        mask_and_scale: bool | Mapping[str, bool] = True,
        associated: bool = False,
        include_patient: bool = False,
        levels: Levels = "stored",
        spacings: Sequence[Spacing] | None = None,
        labels: Labels = "majority",
        fast: bool | None = None,
    ) -> xr.DataTree:
        """Return the slide as a tree of its levels, as labelled dask arrays.

        Parameters
        ----------
        chunks, orientation, squeeze, mask_and_scale
            See :meth:`to_dataset`.
        associated : bool, default: False
            Whether label, overview and thumbnail are nodes beside the levels.
        include_patient : bool, default: False
            Whether the attributes include those that identify the patient.
        levels : {"stored", "virtual"}, default: "stored"
            Whether there are virtual levels in addition, by factors of two down to a small one.
            Each is computed from the next finer stored level.
        spacings : sequence of float or str, optional
            Spacings of the levels of the tree, instead of those stored; see :meth:`to_dataset`.
            They are sorted from the finest to the coarsest.
        labels, fast
            See :meth:`to_dataset`; by default `fast` is True for virtual levels only.

        Returns
        -------
        xarray.DataTree
            With the nodes ``level_0``, ``level_1``, ...; and a node for each derived image or group
            of channels that isn't on the grid of its level, by the name of its variable.

        """
        import xarray as xr

        from dicomslide.labelled.parts import datasets_of
        from dicomslide.labelled.tree import slide_parts
        from dicomslide.readers.arrays import dask_data

        groups = slide_parts(
            self,
            data=dask_data(chunks),
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
        return xr.DataTree.from_dict(datasets_of(groups), name=self.container_identifier)

    def to_virtual(
        self,
        *,
        associated: bool = False,
        include_patient: bool = False,
        check_frames: Literal["all", "sample"] | None = None,
    ) -> xr.DataTree:
        """Return the slide as a tree of virtual arrays, whose chunks are the frames in the files.

        A virtual array is metadata of zarr, and URL, offset and length of each frame. The tree is
        written by VirtualiZarr's accessor ``vz``, or by :func:`dicomslide.virtual.to_icechunk`.

        Parameters
        ----------
        associated, include_patient
            See :meth:`to_datatree`.
        check_frames : {"all", "sample"}, optional
            See :func:`dicomslide.virtual.to_icechunk`.

        Returns
        -------
        xarray.DataTree
            As of ``to_datatree(orientation="stored", mask_and_scale=False)``; the data of images
            are ``virtualizarr.manifests.ManifestArray``. Pixels are stored values: without colour
            correction. Absent tiles are absent chunks, so there are no masks of what was scanned.

        Raises
        ------
        NotVirtualError
            When frames can't be chunks: they have several fragments, begin within a byte, are in a
            deflated file, or come from a server without files; or the images of one array have
            tiles of different sizes or encodings.
        FramePositionError
            When tiles are off the grid.
        ImportError
            When VirtualiZarr isn't installed: the extra ``virtual``.

        """
        import xarray as xr

        from dicomslide.labelled.parts import datasets_of
        from dicomslide.virtual.references import checked
        from dicomslide.virtual.tree import virtual_parts

        groups = virtual_parts(
            self,
            associated=associated,
            include_patient=include_patient,
            check_frames=checked(check_frames),
        )
        return xr.DataTree.from_dict(datasets_of(groups), name=self.container_identifier)

    def region(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        spacing: Spacing | None = None,
        level: int | None = None,
        variable: str = "image",
        chunks: Chunks = "auto",
        labels: Labels = "majority",
        fast: bool = False,
    ) -> xr.DataArray:
        """Return a box of the slide as a labelled, lazy array.

        Parameters
        ----------
        x, y : tuple of float
            Both ends of the box in mm, in any order.
        spacing : float or str, optional
            Spacing of pixels: see :meth:`to_dataset`. Either this or a level is given.
        level : int, optional
            Zero-based index into pyramid levels.
        variable : str, default: "image"
            Name of a variable of the dataset.
        chunks, labels, fast
            See :meth:`to_dataset`.

        Returns
        -------
        xarray.DataArray
            The pixels with centres in the box, on the grid of the level or spacing, so that regions
            of one spacing have a common grid. Dims as in :meth:`to_dataset`.

        Raises
        ------
        TypeError
            When not exactly one of `spacing` and `level` is given.
        KeyError
            When there is no such variable, or no pixel lies in the box.
        LevelNotFoundError
            When there is no such level.
        MetadataError
            When there is no upright array, because the slide lies obliquely, or the header doesn't
            place it.

        """
        from dicomslide.labelled.resolution import wanted_spacing

        spacing = wanted_spacing(spacing, level)
        dataset = self.to_dataset(
            level or 0, spacing=spacing, chunks=chunks, labels=labels, fast=fast
        )
        if variable not in dataset:
            raise KeyError(f"no variable {variable!r}; there are {list(dataset)}")
        if "x" not in dataset.dims:
            raise MetadataError(
                f"{self.name}: it has no upright array to take a box in mm of; see SlideSampler"
            )
        ends = {dim: dicom.two_numbers(pair, f"{dim} in mm") for dim, pair in (("x", x), ("y", y))}
        found: xr.DataArray = dataset[variable].sel({dim: slice(*of) for dim, of in ends.items()})
        if not (found.sizes["x"] and found.sizes["y"]):
            raise KeyError(f"no pixel's centre lies in the box x = {ends['x']}, y = {ends['y']} mm")
        return found

    def patches(
        self,
        centers: Any,
        size: tuple[int, int],
        *,
        spacing: Spacing | None = None,
        level: int | None = None,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        labels: Labels = "majority",
        fast: bool = False,
    ) -> xr.DataArray:
        """Return patches of one size, around given centres, as one lazy array.

        A chunk holds several patches, and each frame is decoded once per chunk.

        Parameters
        ----------
        centers : array-like, AnnotationGroup or geopandas.GeoDataFrame
            (x, y) of the centre of each patch in mm, shape (patches, 2); or an object with
            ``bounds`` in mm, whose centres are used.
        size : tuple of int
            Rows and columns of a patch.
        spacing : float or str, optional
            Spacing of pixels: see :meth:`to_dataset`. Either this or a level is given.
        level : int, optional
            Zero-based index into pyramid levels.
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes.
        labels, fast
            See :meth:`to_dataset`.

        Returns
        -------
        xarray.DataArray
            Dims (patch, y, x, sample), upright; without the last if pixels have one sample. The
            coordinates ``center_x`` and ``center_y`` along ``patch`` are the centres of the patches
            in mm, which may differ from the given ones by half a pixel, because patches consist of
            whole pixels of the grid. Pixels outside the matrix are background.

        Raises
        ------
        TypeError
            When not exactly one of `spacing` and `level` is given.
        ValueError
            When centres aren't pairs of finite numbers, or there is no such channel or focal plane.
        LevelNotFoundError
            When there is no such level.
        MetadataError
            When the header doesn't place the image on the slide.

        """
        from dicomslide.labelled.patches import centers_of, labelled_patches, patch_grid

        middles, shape = centers_of(centers), dicom.two_integers(size, "size", least=1)
        grid = patch_grid(
            self,
            spacing=spacing,
            level=level,
            channel_index=channel_index,
            focal_plane_index=focal_plane_index,
            labels=labels,
            fast=fast,
        )
        return labelled_patches(grid.patches(middles, shape))

    def level_at(
        self, spacing: Spacing | None = None, *, magnification: float | None = None
    ) -> LevelAt:
        """Find the stored level with the nearest spacing.

        Parameters
        ----------
        spacing : float or str, optional
            Spacing of pixels: see :meth:`to_dataset`.
        magnification : float, optional
            Magnification, where 10 is 1 µm. Either this or a spacing is given.

        Returns
        -------
        LevelAt
            The level, its spacing in mm (the mean of both axes), and the requested spacing divided
            by it.

        Raises
        ------
        TypeError
            When not exactly one of both is given.
        ValueError
            When the value isn't above zero.
        MetadataError
            When a header has no spacing, and no attributes from which it can be derived.

        """
        if (spacing is None) == (magnification is None):
            raise TypeError("either a spacing or a magnification must be given")
        if spacing is not None:
            wanted = spacing_in_mm(spacing)
        else:
            wanted = magnification_in_mm(magnification)  # type: ignore[arg-type]
        means = [math.sqrt(math.prod(each)) for each in self.pixel_spacings]
        level = min(range(len(means)), key=lambda each: abs(math.log(wanted / means[each])))
        return LevelAt(level, means[level], wanted / means[level])


class LevelAt(NamedTuple):
    """Stored level with the spacing nearest to a requested one."""

    level: int
    """Zero-based index into pyramid levels."""
    spacing: float
    """Spacing of the level in mm."""
    factor: float
    """Requested spacing divided by that of the level."""
