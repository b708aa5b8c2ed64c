"""Parts of a slide's labelled datasets: of its levels, and of associated and derived images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

import numpy as np

from dicomslide.contents.description import slide_attrs
from dicomslide.contents.places import lies_on, turned_onto
from dicomslide.header import dicom
from dicomslide.header.resolution import spacing_in_mm
from dicomslide.header.tiling import match_planes
from dicomslide.labelled import (
    accessor as accessor,  # registers the accessor
)
from dicomslide.labelled.parts import Parts
from dicomslide.labelled.resolution import (
    check_labels,
    grid_of_spacing,
    resampled,
    stacks_at,
    virtual_factors,
    virtual_grid,
)
from dicomslide.labelled.variables import Grid, Stack, deepest_of
from dicomslide.process.warn import once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicomslide.contents.contents import SlideContents
    from dicomslide.contents.places import ChannelGroup
    from dicomslide.header.geometry import OrientationName
    from dicomslide.header.resolution import Spacing
    from dicomslide.readers.reductions import Labels
    from dicomslide.readers.stacked_reader import Data

__all__ = [
    "Levels",
    "MaskAndScale",
    "level_parts",
    "other_parts",
    "slide_parts",
    "spacing_parts",
]

Levels = Literal["stored", "virtual"]
"""Levels of a tree."""
MaskAndScale: TypeAlias = bool | Mapping[str, bool]
"""Whether pixels are fractions or real world values, for all variables or by name."""

P = ParamSpec("P")
R = TypeVar("R")


def _warning_once(
    function: Callable[Concatenate[SlideContents, P], R],
) -> Callable[Concatenate[SlideContents, P], R]:
    """Return a function that suppresses warnings which the slide has given before."""

    @functools.wraps(function)
    def call(slide: SlideContents, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with once(slide._warned):
            return function(slide, *args, **kwargs)

    return call


def slide_parts(
    slide: SlideContents,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
    associated: bool = False,
    include_patient: bool = False,
    levels: Levels = "stored",
    spacings: Sequence[Spacing] | None = None,
    labels: Labels = "majority",
    fast: bool | None = None,
    with_scanned: bool = True,
) -> dict[str, Parts]:
    """Return the parts of the datasets of a slide's tree by path.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    data : callable
        Returns the data of a variable, given a :class:`StackedReader`.
    orientation : {"upright", "stored"}
        Upright in mm, or rows and columns as stored.
    squeeze : bool
        Whether dims of size one become scalar coordinates.
    mask_and_scale : bool or mapping
        Whether pixels of derived images are fractions or real world values; for all variables, or
        by name.
    associated : bool
        Whether label, overview and thumbnail are nodes beside the levels.
    include_patient : bool
        Whether the attributes of the root include those that identify the patient.
    levels : {"stored", "virtual"}
        Whether there are virtual levels between stored ones, by factors of two.
    spacings : sequence of float or str, optional
        Spacings that replace the levels, sorted from the finest to the coarsest.
    labels : {"majority", "any"}
        See :func:`spacing_parts`.
    fast : bool, optional
        See :meth:`ResampledReader.of`; by default True for virtual levels only.
    with_scanned : bool
        Whether images with absent tiles have masks of what was scanned.

    Raises
    ------
    ValueError
        When virtual levels and spacings are both given, or a value is invalid.

    """
    if levels not in ("stored", "virtual"):
        raise ValueError(f'levels must be "stored" or "virtual", not {levels!r}')
    if isinstance(spacings, (str, float, int)) or (spacings is not None and not len(spacings)):
        raise ValueError(f"spacings {spacings!r}: expected a sequence of at least one")
    if spacings is not None and levels == "virtual":
        raise ValueError("either virtual levels or spacings can be had, not both")
    check_labels(labels)
    common: dict[str, Any] = dict(
        data=data, orientation=orientation, squeeze=squeeze, mask_and_scale=mask_and_scale,
        with_scanned=with_scanned,
    )  # fmt: skip
    if spacings is not None:
        found = [
            spacing_parts(slide, spacing, labels=labels, fast=bool(fast), **common)
            for spacing in sorted({spacing_in_mm(spacing) for spacing in spacings})
        ]
    else:
        found = []
        for level in range(slide.num_levels):
            found.append(level_parts(slide, level, **common))
            factors = virtual_factors(slide, level) if levels == "virtual" else []
            found += [
                virtual_parts(slide, level, factor, labels=labels, fast=fast is not False, **common)
                for factor in factors
            ]
    groups = {"/": Parts(attrs=slide_attrs(slide, include_patient=include_patient))}
    for number, parts in enumerate(found):
        parts.attrs["level"] = number
        groups[f"/level_{number}"] = parts
    others = other_parts(slide, associated=associated, **common)
    return groups | {f"/{name}": parts for name, parts in others.items()}


@_warning_once
def other_parts(
    slide: SlideContents,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
    associated: bool = True,
    with_scanned: bool = True,
) -> dict[str, Parts]:
    """Return the parts of the datasets beside the levels, by name; see :func:`slide_parts`.

    These are images that aren't on the grid of their level's first image, or have other focal
    planes, by the name of the variable; and label, overview and thumbnail, the first of each
    without a number.
    """
    groups: dict[str, Parts] = {}
    uid = slide._said("FrameOfReferenceUID")
    for group in slide._groups:
        for number, stack in enumerate(_stacks_apart(slide, group)):
            name = group.name if number == 0 else f"{group.name}_level_{number}"
            stack = _as_wanted(stack, mask_and_scale)
            groups[name] = _parts(stack, data, orientation, squeeze, uid, with_scanned)
    if associated:
        for kind, images in (
            ("label", slide.label_images),
            ("overview", slide.overview_images),
            ("thumbnail", slide.thumbnail_images),
        ):
            for number, image in enumerate(images, 1):
                name = kind if number == 1 else f"{kind}_{number}"
                own = dicom.text(image.metadata, "FrameOfReferenceUID")
                stack = Stack.of_associated(image)
                groups[name] = _parts(stack, data, orientation, squeeze, own, with_scanned)
    return groups


@_warning_once
def level_parts(
    slide: SlideContents,
    level: int,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
    with_scanned: bool = True,
) -> Parts:
    """Return the parts of the dataset of a level, with the derived images on its grid.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    level : int
        Zero-based index into pyramid levels.
    data, orientation, squeeze, mask_and_scale, with_scanned
        See :func:`slide_parts`.

    Raises
    ------
    LevelNotFoundError
        When there is no such level.

    """
    here = slide.level(level)
    stacks = _level_stacks(slide, level, mask_and_scale)
    grid = Grid.of(stacks[0].image, orientation, slide._said("FrameOfReferenceUID"))
    rows, columns = slide.size
    parts = _assembled(stacks, grid, data, squeeze, with_scanned)
    parts.attrs = {
        "level": level,
        "image_flavor": stacks[0].image.flavor.lower(),  # a thumbnail may be a level
        "downsampling_factors": [rows / here.size[0], columns / here.size[1]],
    }
    return parts


def _level_stacks(slide: SlideContents, level: int, mask_and_scale: MaskAndScale) -> list[Stack]:
    """Return the variables of a level's dataset."""
    stacks = (
        Stack.at_level(slide.levels[level], group)
        for group in slide._groups
        if _is_beside(slide, group, level)
    )
    return [_as_wanted(stack, mask_and_scale) for stack in stacks if stack is not None]


@_warning_once
def virtual_parts(
    slide: SlideContents,
    level: int,
    factor: int,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
    labels: Labels = "majority",
    fast: bool = True,
    with_scanned: bool = True,
) -> Parts:
    """Return the parts of the dataset of a virtual level, computed from a stored level.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    level : int
        Zero-based index of the stored level.
    factor : int
        Number of its pixels along an edge of a virtual pixel.
    data, orientation, squeeze, mask_and_scale, with_scanned
        See :func:`slide_parts`.
    labels, fast
        See :func:`spacing_parts`.

    Raises
    ------
    MetadataError
        When the header doesn't place the level on the slide.

    """
    grid = virtual_grid(slide, level, factor, orientation)
    stacks = [
        resampled(stack, grid, labels, fast=fast)
        for stack in _level_stacks(slide, level, mask_and_scale)
    ]
    there = [stack for stack in stacks if stack is not None]
    parts = _assembled(there, grid, data, squeeze, with_scanned)
    factors = np.divide(grid.placed.spacing, slide.levels[0].image.pixel_spacing)
    parts.attrs = {
        "image_flavor": grid.image.flavor.lower(),
        "downsampling_factors": factors.tolist(),
    }
    return parts


@_warning_once
def spacing_parts(
    slide: SlideContents,
    spacing: Spacing,
    *,
    data: Data,
    orientation: OrientationName = "upright",
    squeeze: bool = True,
    mask_and_scale: MaskAndScale = True,
    labels: Labels = "majority",
    fast: bool = False,
    with_scanned: bool = True,
) -> Parts:
    """Return the parts of the dataset of a slide at a spacing.

    See :mod:`dicomslide.labelled.resolution`.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    spacing : float or str
        Spacing of pixels: see :func:`spacing_in_mm`.
    data, orientation, squeeze, mask_and_scale, with_scanned
        See :func:`slide_parts`.
    labels : {"majority", "any"}
        Rule for the label of a pixel, from the labels that it covers.
    fast : bool
        See :meth:`ResampledReader.of`.

    Raises
    ------
    MetadataError
        When the header doesn't place the base level on the slide.
    ValueError
        When the spacing is invalid, or pixels are larger than the slide.

    """
    check_labels(labels)
    wanted = spacing_in_mm(spacing)
    grid = grid_of_spacing(slide, wanted, orientation)
    stacks = stacks_at(
        slide,
        wanted,
        grid,
        labels=labels,
        fast=fast,
        as_wanted=lambda stack: _as_wanted(stack, mask_and_scale),
    )
    base = slide.levels[0].image
    parts = _assembled(stacks, grid, data, squeeze, with_scanned)
    parts.attrs = {
        "spacing": wanted,
        "image_flavor": base.flavor.lower(),
        "downsampling_factors": [wanted / each for each in base.pixel_spacing],
    }
    return parts


def _assembled(
    stacks: Sequence[Stack], grid: Grid, data: Data, squeeze: bool, with_scanned: bool
) -> Parts:
    """Return the parts of a dataset of variables on one grid."""
    # z is that of the first image with several planes; other images have one of these
    deepest = deepest_of(stacks)
    has_colors = any(stack.image._layout.pixel_format.is_color for stack in stacks)
    parts = Parts()
    parts.add(grid.coords())
    parts.add(deepest.plane_coords(squeeze))
    for stack in stacks:
        stack.add_to(
            parts,
            grid,
            data,
            squeeze,
            has_planes=stack.has_planes_of(deepest),
            has_samples=not has_colors,
            with_scanned=with_scanned,
        )
    return parts


def _as_wanted(stack: Stack, mask_and_scale: MaskAndScale) -> Stack:
    """Return a stack with fractions or real world values if `mask_and_scale` asks for them."""
    if isinstance(mask_and_scale, Mapping):
        mask_and_scale = mask_and_scale.get(stack.name, True)
    return stack.as_meant() if mask_and_scale else stack


def _parts(
    stack: Stack,
    data: Data,
    orientation: OrientationName,
    squeeze: bool,
    frame_of_reference_uid: str | None,
    with_scanned: bool,
) -> Parts:
    """Return the parts of a dataset of one variable on its own grid."""
    grid = Grid.of(stack.image, orientation, frame_of_reference_uid)
    return _assembled([stack], grid, data, squeeze, with_scanned)


def _stacks_apart(slide: SlideContents, group: ChannelGroup) -> list[Stack]:
    """Return stacks of a group that are in no dataset of a level, from the largest."""
    apart = [
        (image, level)
        for image, level in group.images
        if level is None or not _is_beside(slide, group, level)
    ]
    if not group.is_image:  # derived images of a series may have different grids
        return [Stack.of_image(group, image) for image, _ in apart]
    levels = dict.fromkeys(level for _, level in apart if level is not None)
    stacks = (Stack.at_level(slide.levels[level], group) for level in levels)
    return [stack for stack in stacks if stack is not None]


def _is_beside(slide: SlideContents, group: ChannelGroup, level: int) -> bool:
    """Whether images of a group at a level are a variable of the level's dataset."""
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
    # z of the level is that of its first image with several planes
    of_images = (each for each in slide._groups if each.is_image)
    deep = (planes for each in of_images if len(planes := here._planes_of(each.indices)) > 1)
    planes = next(deep, here._planes_of(first.indices))
    offsets = [slide.focal_plane_offsets[plane] for plane in planes]
    return own == planes and all(
        len(match_planes(image.focal_plane_offsets, offsets) or ()) == len(offsets)
        for image in images
        if image.num_focal_planes > 1
    )
