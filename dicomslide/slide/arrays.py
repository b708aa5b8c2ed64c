"""A slide's pixels as labelled arrays of dask's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dicomslide.contents.contents import SlideContents
from dicomslide.header.geometry import renamed_frame

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr

    from dicomslide.header.geometry import OrientationName

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
    ) -> xr.Dataset:
        """Return a level as a labelled dataset of dask arrays.

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

        """
        from dicomslide.labelled.tree import level_dataset
        from dicomslide.readers.arrays import dask_data

        return level_dataset(
            self,
            level,
            data=dask_data(chunks),
            orientation=orientation,
            squeeze=squeeze,
            mask_and_scale=mask_and_scale,
        )

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
        )
        return xr.DataTree.from_dict(groups, name=self.container_identifier)
