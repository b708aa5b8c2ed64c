"""A slide as xarray objects: its levels, associated and derived images as labelled datasets."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeAlias, TypeVar

import xarray as xr

from dicomslide.contents.description import slide_attrs
from dicomslide.contents.places import lies_on, turned_onto
from dicomslide.header import dicom
from dicomslide.header.tiling import match_planes
from dicomslide.labelled import (
    accessor as accessor,  # registered, wherever there are labelled arrays
)
from dicomslide.labelled.variables import Grid, Stack
from dicomslide.process.warn import once

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomslide.contents.contents import SlideContents
    from dicomslide.contents.places import ChannelGroup
    from dicomslide.header.geometry import OrientationName
    from dicomslide.readers.stacked_reader import Data

__all__ = ["MaskAndScale", "level_dataset", "other_groups", "slide_groups"]

MaskAndScale: TypeAlias = bool | Mapping[str, bool]
"""Whether pixels are what they mean, fractions or real world values; by the variable's name."""

P = ParamSpec("P")
R = TypeVar("R")


def _warning_once(
    function: Callable[Concatenate[SlideContents, P], R],
) -> Callable[Concatenate[SlideContents, P], R]:
    """Return a function of a slide that gives no warning again that the slide has given."""

    @functools.wraps(function)
    def call(slide: SlideContents, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with once(slide._warned):
            return function(slide, *args, **kwargs)

    return call


def slide_groups(
    slide: SlideContents,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
    associated: bool = False,
    include_patient: bool = False,
) -> dict[str, xr.Dataset]:
    """Return the datasets of a slide's tree by path.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    data : callable
        Makes a variable's data of a :class:`StackedReader`.
    orientation : {"upright", "stored"}
        Upright in mm, or rows and columns as stored.
    squeeze : bool
        Whether dims of size one become scalar coordinates.
    mask_and_scale : bool or mapping
        Whether pixels of derived images are what they mean; by the name of the variable.
    associated : bool
        Whether label, overview and thumbnail are nodes beside the levels.
    include_patient : bool
        Whether attributes that identify the patient are among those of the root.

    """
    groups = {"/": xr.Dataset(attrs=slide_attrs(slide, include_patient=include_patient))}
    for level in range(slide.num_levels):
        groups[f"/level_{level}"] = level_dataset(
            slide,
            level,
            data=data,
            orientation=orientation,
            squeeze=squeeze,
            mask_and_scale=mask_and_scale,
        )
    others = other_groups(
        slide,
        data=data,
        orientation=orientation,
        squeeze=squeeze,
        mask_and_scale=mask_and_scale,
        associated=associated,
    )
    return groups | {f"/{name}": dataset for name, dataset in others.items()}


@_warning_once
def other_groups(
    slide: SlideContents,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
    associated: bool = True,
) -> dict[str, xr.Dataset]:
    """Return the datasets beside the levels by name; see :func:`slide_groups`.

    What has pixels at other millimetres than its level's first image, or focal planes of its own,
    each by the name of its variable; and label, overview and thumbnail, the first of each without
    a number.
    """
    groups: dict[str, xr.Dataset] = {}
    uid = slide._said("FrameOfReferenceUID")
    for group in slide._groups:
        for number, stack in enumerate(_stacks_apart(slide, group)):
            name = group.name if number == 0 else f"{group.name}_level_{number}"
            stack = _as_wanted(stack, mask_and_scale)
            groups[name] = _dataset(stack, data, orientation, squeeze, uid)
    if associated:
        for kind, images in (
            ("label", slide.label_images),
            ("overview", slide.overview_images),
            ("thumbnail", slide.thumbnail_images),
        ):
            for number, image in enumerate(images, 1):
                name = kind if number == 1 else f"{kind}_{number}"
                own = dicom.text(image.metadata, "FrameOfReferenceUID")
                groups[name] = _dataset(Stack.of_associated(image), data, orientation, squeeze, own)
    return groups


@_warning_once
def level_dataset(
    slide: SlideContents,
    level: int,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
) -> xr.Dataset:
    """Return a level of a slide, with the derived images whose pixels are its own.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    level : int
        Zero-based index into pyramid levels.
    data, orientation, squeeze, mask_and_scale
        See :func:`slide_groups`.

    Raises
    ------
    LevelNotFoundError
        When there is no such level.

    """
    here = slide.level(level)
    stacks = [
        _as_wanted(stack, mask_and_scale)
        for group in slide._groups
        if _is_beside(slide, group, level) and (stack := Stack.at_level(here, group)) is not None
    ]
    grid = Grid.of(stacks[0].image, orientation, slide._said("FrameOfReferenceUID"))
    # z is that of the first image that has several planes: one beside it has one of them
    deepest = next((each for each in stacks if each.is_image and len(each.planes) > 1), stacks[0])
    has_colors = any(stack.image._layout.pixel_format.is_color for stack in stacks)
    dataset = xr.Dataset(coords=grid.coords()).assign_coords(deepest.plane_coords(squeeze))
    for stack in stacks:
        dataset = stack.add_to(
            dataset,
            grid,
            data,
            squeeze,
            has_planes=stack.has_planes_of(deepest),
            has_samples=not has_colors,
        )
    rows, columns = slide.size
    return dataset.assign_attrs(
        level=level,
        image_flavor=stacks[0].image.flavor.lower(),  # a thumbnail may be a level
        downsampling_factors=[rows / here.size[0], columns / here.size[1]],
    )


def _as_wanted(stack: Stack, mask_and_scale: MaskAndScale) -> Stack:
    """Return a stack with what its pixels mean, or with what is stored."""
    if isinstance(mask_and_scale, Mapping):
        mask_and_scale = mask_and_scale.get(stack.name, True)
    return stack.as_meant() if mask_and_scale else stack


def _dataset(
    stack: Stack,
    data: Data,
    orientation: OrientationName,
    squeeze: bool,
    frame_of_reference_uid: str | None,
) -> xr.Dataset:
    """Return the dataset of one variable that has a grid of its own."""
    grid = Grid.of(stack.image, orientation, frame_of_reference_uid)
    dataset = xr.Dataset(coords=grid.coords()).assign_coords(stack.plane_coords(squeeze))
    return stack.add_to(dataset, grid, data, squeeze)


def _stacks_apart(slide: SlideContents, group: ChannelGroup) -> list[Stack]:
    """Return what a group has that is in no level's dataset, from the largest to the smallest."""
    apart = [
        (image, level)
        for image, level in group.images
        if level is None or not _is_beside(slide, group, level)
    ]
    if not group.is_image:  # a derived image may lie apart from others of its series
        return [Stack.of_image(group, image) for image, _ in apart]
    levels = dict.fromkeys(level for _, level in apart if level is not None)
    stacks = (Stack.at_level(slide.levels[level], group) for level in levels)
    return [stack for stack in stacks if stack is not None]


def _is_beside(slide: SlideContents, group: ChannelGroup, level: int) -> bool:
    """Whether what a level has of a group is a variable of its dataset, not nodes of its own."""
    here = slide.levels[level]
    first = next(each for each in slide._groups if here._images_of(each.indices))
    if group is first:
        return True
    images = here._images_of(group.indices)
    on_grid = all(
        turned_onto(image, here.image) is not None and lies_on(image, here.image)
        for image in images
    )
    own = here._planes_of(group.indices)
    if len(own) < 2 or not on_grid:
        return on_grid
    # the level's z are those of its first image that has several planes
    of_images = (each for each in slide._groups if each.is_image)
    deep = (planes for each in of_images if len(planes := here._planes_of(each.indices)) > 1)
    planes = next(deep, here._planes_of(first.indices))
    offsets = [slide.focal_plane_offsets[plane] for plane in planes]
    return own == planes and all(
        len(match_planes(image.focal_plane_offsets, offsets) or ()) == len(offsets)
        for image in images
        if image.num_focal_planes > 1
    )
