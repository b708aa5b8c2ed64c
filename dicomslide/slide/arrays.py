"""A slide's pixels as labelled arrays of dask's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dicomslide.contents.contents import SlideContents
from dicomslide.header.geometry import renamed_frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

    from dicomslide.header.geometry import OrientationName
    from dicomslide.header.resolution import Spacing
    from dicomslide.labelled.tree import Levels
    from dicomslide.readers.resampled_reader import Labels

__all__ = ["SlideArrays"]


class SlideArrays(SlideContents):
    """A slide's contents, and what makes xarray's objects of them."""

    @renamed_frame
    def to_dataset(
        self,
        level: int = 0,
        *,
        chunks: Literal["frames", "auto"] | int = "frames",
        orientation: OrientationName = "upright",
        squeeze: bool = True,
        mask_and_scale: bool | Mapping[str, bool] = True,
        spacing: Spacing | None = None,
        labels: Labels = "majority",
        fast: bool = False,
    ) -> xr.Dataset:
        """Return a level, or the slide at any other resolution, as a dataset of dask arrays.

        Parameters
        ----------
        level : int, default: 0
            Zero-based index into pyramid levels.
        chunks : {"frames", "auto"} or int, default: "frames"
            See :meth:`TotalPixelMatrix.to_dask`.
        orientation : {"upright", "stored"}, default: "upright"
            Upright, with dims y and x in mm; or rows and columns as stored.
        squeeze : bool, default: True
            Whether dims of size one, other than rows and columns, become scalar coordinates.
        mask_and_scale : bool or mapping, default: True
            Whether fractional segmentations are fractions, 0 to 1 (float32), and parametric maps
            of integers real world values by their mapping (float64; NaN where a value isn't
            mapped); else what is stored, as in all other methods. A mapping says it by the name
            of the variable.
        spacing : float or str, optional
            Distance of pixels, instead of a level: a number in mm; a text with a unit, such as
            ``"0.5 um"``; or a magnification, ``"10x"``, which is 1 µm. See the notes.
        labels : {"majority", "any"}, default: "majority"
            What a pixel of labels (segments, label maps) is of those that it covers, where there is
            a spacing: the label of the largest area; or any label before background.
        fast : bool, default: False
            Whether the decoder may leave out detail, where there is a spacing: JPEG frames decode
            at 1/2, 1/4 or 1/8 of their size in down to half of the time, and pixels differ from
            means by few grey levels, at sharp edges by up to 25 or so; HTJ2K in a fraction of the
            time, with another low-pass.

        Returns
        -------
        xarray.Dataset
            With the variables ``image``, dims (channel, z, y, x, sample); ``segmentation``, dims
            (segment, z, y, x); and ``parametric_map``, dims (parameter, z, y, x): what the level
            has of them. Optical paths whose pixels are of another kind are ``image_2``, dims
            (channel_2, z, y, x, sample).

        Raises
        ------
        LevelNotFoundError
            When there is no such level.
        MetadataError
            When there is a spacing, but the header doesn't say where the base level lies.
        TypeError
            When both a level and a spacing are given.
        ValueError
            When the spacing isn't one, or pixels are larger than the slide.

        Notes
        -----
        The grid of a spacing begins at the outer corner of the base level's pixel (0, 0), so that
        the first centre lies half a pixel from it, and ends where the images do: the last pixel may
        reach beyond. A pixel is the mean, by area, of the stored pixels that it covers and that
        aren't NaN; integers are rounded, halves up. These are pixels of the coarsest level that is
        finer than the spacing, or of the base level where none is. Each frame is decoded once for a
        chunk.

        """
        from dicomslide.labelled.tree import level_dataset, spacing_dataset
        from dicomslide.readers.arrays import dask_data

        common: dict[str, Any] = dict(
            data=dask_data(chunks),
            orientation=orientation,
            squeeze=squeeze,
            mask_and_scale=mask_and_scale,
        )
        if spacing is None:
            return level_dataset(self, level, **common)
        if level:
            raise TypeError("level and spacing both say a resolution: give one of them")
        return spacing_dataset(self, spacing, labels=labels, fast=fast, **common)

    @renamed_frame
    def to_datatree(
        self,
        *,
        chunks: Literal["frames", "auto"] | int = "frames",
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
            Whether attributes that identify the patient are among the attributes.
        levels : {"stored", "virtual"}, default: "stored"
            Whether levels that the slide doesn't store are among its levels: by factors of two,
            down to a small one, each made of the next finer one that is stored.
        spacings : sequence of float or str, optional
            Distances of pixels, instead of levels, as :meth:`to_dataset` takes them; the levels of
            the tree are these, from the finest to the coarsest.
        labels, fast
            See :meth:`to_dataset`; `fast` is the default of virtual levels only.

        Returns
        -------
        xarray.DataTree
            With the nodes ``level_0``, ``level_1``, ...; and one for each image that lies on no
            level's grid, derived or of channels apart, by the name of its variable.

        """
        import xarray as xr

        from dicomslide.labelled.tree import slide_groups
        from dicomslide.readers.arrays import dask_data

        groups = slide_groups(
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
        return xr.DataTree.from_dict(groups, name=self.container_identifier)
