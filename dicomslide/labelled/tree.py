"""A slide as xarray objects: its levels, associated and derived images as labelled datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from dicomslide import accessor as accessor  # registered, wherever there are labelled arrays
from dicomslide import utils
from dicomslide.frames import match_planes
from dicomslide.labelled.attributes import slide_attrs
from dicomslide.labelled.variables import Grid, Stack
from dicomslide.slide.derived import shares_grid

if TYPE_CHECKING:
    from dicomslide.labelled.variables import Frame
    from dicomslide.slide.derived import ChannelGroup
    from dicomslide.slide.slide import Slide
    from dicomslide.stack import Data

__all__ = ["level_dataset", "other_groups", "slide_groups"]


def slide_groups(
    slide: Slide,
    *,
    data: Data,
    frame: Frame = "slide",
    squeeze: bool = True,
    associated: bool = False,
    include_patient: bool = False,
) -> dict[str, xr.Dataset]:
    """Return the datasets of a slide's tree by path.

    Parameters
    ----------
    slide : Slide
        The slide.
    data : callable
        Makes a variable's data of a :class:`StackedReader`.
    frame : {"slide", "matrix"}
        Upright in mm, or rows and columns as stored.
    squeeze : bool
        Whether dims of size one become scalar coordinates.
    associated : bool
        Whether label, overview and thumbnail are nodes beside the levels.
    include_patient : bool
        Whether attributes that identify the patient are among those of the root.

    """
    groups = {"/": xr.Dataset(attrs=slide_attrs(slide, include_patient=include_patient))}
    for level in range(slide.num_levels):
        groups[f"/level_{level}"] = level_dataset(
            slide, level, data=data, frame=frame, squeeze=squeeze
        )
    others = other_groups(slide, data=data, frame=frame, squeeze=squeeze, associated=associated)
    return groups | {f"/{name}": dataset for name, dataset in others.items()}


def other_groups(
    slide: Slide,
    *,
    data: Data,
    frame: Frame = "slide",
    squeeze: bool = True,
    associated: bool = True,
) -> dict[str, xr.Dataset]:
    """Return the datasets beside the levels by name; see :func:`slide_groups`.

    Derived images that lie on no level's grid, each by the name of its variable; and label,
    overview and thumbnail, the first of each without a number.
    """
    groups: dict[str, xr.Dataset] = {}
    uid = slide.said("FrameOfReferenceUID")
    for group in slide.channel_groups:
        apart = [
            image
            for image, level in group.images
            if level is None or not _is_beside(slide, group, level)
        ]
        for number, image in enumerate(apart):
            name = group.name if number == 0 else f"{group.name}_level_{number}"
            stack = Stack.of_image(group.name, image)
            groups[name] = _dataset(stack, data, frame, squeeze, uid)
    if associated:
        for kind, images in (
            ("label", slide.label_images),
            ("overview", slide.overview_images),
            ("thumbnail", slide.thumbnail_images),
        ):
            for number, image in enumerate(images, 1):
                name = kind if number == 1 else f"{kind}_{number}"
                own = utils.text(image.metadata, "FrameOfReferenceUID")
                groups[name] = _dataset(Stack.of_associated(image), data, frame, squeeze, own)
    return groups


def level_dataset(
    slide: Slide,
    level: int,
    *,
    data: Data,
    frame: Frame = "slide",
    squeeze: bool = True,
) -> xr.Dataset:
    """Return a level of a slide, with the derived images whose pixels are its own.

    Parameters
    ----------
    slide : Slide
        The slide.
    level : int
        Zero-based index into pyramid levels.
    data, frame, squeeze
        See :func:`slide_groups`.

    Raises
    ------
    LevelNotFoundError
        When there is no such level.

    """
    here = slide.level(level)
    stacks = [
        stack
        for group in slide.channel_groups
        if _is_beside(slide, group, level) and (stack := Stack.at_level(here, group)) is not None
    ]
    base = stacks[0]
    grid = Grid.of(base.image, frame, slide.said("FrameOfReferenceUID"))
    dataset = xr.Dataset(coords=grid.coords()).assign_coords(base.plane_coords(squeeze))
    for stack in stacks:
        has_planes = stack.planes == base.planes and (
            match_planes(stack.offsets, base.offsets) is not None
        )
        dataset = stack.add_to(dataset, grid, data, squeeze, has_planes=has_planes)
    rows, columns = slide.size
    return dataset.assign_attrs(
        level=level,
        downsampling_factors=[rows / here.size[0], columns / here.size[1]],
    )


def _dataset(
    stack: Stack, data: Data, frame: Frame, squeeze: bool, frame_of_reference_uid: str | None
) -> xr.Dataset:
    """Return the dataset of one variable that has a grid of its own."""
    grid = Grid.of(stack.image, frame, frame_of_reference_uid)
    dataset = xr.Dataset(coords=grid.coords()).assign_coords(stack.plane_coords(squeeze))
    return stack.add_to(dataset, grid, data, squeeze)


def _is_beside(slide: Slide, group: ChannelGroup, level: int) -> bool:
    """Whether what a level has of a group is a variable of its dataset, not nodes of its own."""
    base = slide.channel_groups[0]
    if group is base:
        return True
    here = slide.levels[level]
    planes = here.planes_of(base.indices)
    offsets = [slide.focal_plane_offsets[plane] for plane in planes]
    own = here.planes_of(group.indices)
    return (len(own) < 2 or own == planes) and all(
        shares_grid(here.image, offsets, image) for image in here.images_of(group.indices)
    )
