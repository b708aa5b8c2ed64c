"""Pyramids on one glass: assignment of images to them, and the choice of one.

A slide reads one pyramid. A glass may have several: regions that were scanned separately, or a
stack of focal planes and the image with extended depth of field that was computed from it.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from typing import TYPE_CHECKING

from dicomslide.backends.concatenation import parts_of
from dicomslide.enum import ImageFlavors
from dicomslide.errors import MetadataError, MetadataWarning, NotSlideError
from dicomslide.header import dicom
from dicomslide.process.warn import warn
from dicomslide.pyramid import group_levels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomslide.contents.collection import SlideGroup
    from dicomslide.image import TiledImage

__all__ = ["GlassPyramid", "choose_pyramid", "pyramids_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class GlassPyramid:
    """One of the pyramids of a glass."""

    images: tuple[TiledImage, ...]
    """VOLUME and THUMBNAIL images, images derived from them, label and overview."""
    levels: tuple[TiledImage, ...]
    """VOLUME and THUMBNAIL images; without these, the derived images."""

    @property
    def largest(self) -> TiledImage:
        """The largest image: the base level."""
        return max(self.levels, key=lambda image: math.prod(image.size))

    @property
    def size(self) -> tuple[int, int]:
        """Total pixel matrix rows and columns of the largest image."""
        return self.largest.size

    @property
    def num_levels(self) -> int:
        """Number of different sizes of its images."""
        return len({image.size for image in self.levels})

    @property
    def uid(self) -> str | None:
        """Pyramid UID (0008,0019), or None."""
        return next(filter(None, map(_uid_of, self.levels)), None)

    @property
    def has_extended_depth_of_field(self) -> bool:
        """Whether Extended Depth of Field (0048,0012) is YES: focal planes are merged to one."""
        return any(map(_has_depth, self.levels))

    @property
    def name(self) -> str:
        """File name, URL or SOP Instance UID of the largest image."""
        return self.largest.name

    def _has_name(self, wanted: str) -> bool:
        """Whether a text is its Pyramid UID, or the UID, path or file name of one of its images."""
        path = os.path.abspath(wanted)
        return wanted == self.uid or any(
            wanted == name or path == name or wanted == os.path.basename(name)
            for image in self.levels
            for name in _names_of(image)
        )

    def __str__(self) -> str:
        rows, columns = self.size
        depth = ", extended depth of field" if self.has_extended_depth_of_field else ""
        uid = f", Pyramid UID {self.uid}" if self.uid else ""
        levels = dicom.counted(self.num_levels, "level")
        return f"{rows} × {columns} pixels, {levels}{depth}{uid}, {self.name}"


def _names_of(image: TiledImage) -> list[str]:
    parts = parts_of(image._source)
    uids = (dicom.text(part.metadata, "SOPInstanceUID") for part in parts)
    return [*(part.name for part in parts), *filter(None, uids)]


def pyramids_of(glass: SlideGroup, tolerance: float) -> list[GlassPyramid]:
    """Assign the images of a glass to its pyramids.

    Images belong to different pyramids if their Extended Depth of Field differs, if images of a
    series have different Pyramid UIDs for the same channels, or if they show different areas: see
    :func:`dicomslide.pyramid.group_levels`.

    Parameters
    ----------
    glass : SlideGroup
        Images of one slide: see :func:`dicomslide.contents.collection.group_by_slide`.
    tolerance : float
        Distance in mm by which centres of levels may differ; a pixel is always allowed.

    Returns
    -------
    list of GlassPyramid
        At least one, from the largest to the smallest; for equal sizes, a stack of focal planes
        precedes an image with extended depth of field.

    """
    if len(glass.volumes) < 2:
        return [_pyramid_of(glass.volumes, glass.derived, glass.others)]
    groups = [
        part for alike in _of_one_kind(glass.volumes) for part in _of_one_place(alike, tolerance)
    ]
    groups.sort(key=_order)
    # thumbnails alone are a pyramid only if there is no other
    whole = [group for group in groups if not all(map(_is_thumbnail, group))] or groups
    kept = {id(image) for group in whole for image in group}
    whole[0] += [image for image in glass.volumes if id(image) not in kept]
    if len(whole) == 1:
        return [_pyramid_of(whole[0], glass.derived, glass.others)]
    derived = [(image, _origin_of(image, whole)) for image in glass.derived]
    return [
        _pyramid_of(group, [image for image, at in derived if number in at], glass.others)
        for number, group in enumerate(whole)
    ]


def _of_one_kind(volumes: Sequence[TiledImage]) -> list[list[TiledImage]]:
    """Group images by the attributes of their pyramid, regardless of their position."""
    deep, plain = (
        {image.size for image in volumes if _has_depth(image) is has} for has in (True, False)
    )
    several = bool(deep & plain)  # else some levels only lack the attribute
    kinds: dict[tuple[object, ...], list[TiledImage]] = {}
    for image in volumes:
        kinds.setdefault((several and _has_depth(image), _uid_of(image)), []).append(image)
    joined: list[list[TiledImage]] = []
    # images without a Pyramid UID come last: they belong to the pyramid if there is only one
    for (depth, uid), images in sorted(kinds.items(), key=lambda item: item[0][1] is None):
        alike = [each for each in joined if (several and _has_depth(each[0])) == depth]
        fitting = [
            each
            for each in alike
            if _series_of(images).isdisjoint(_series_of(each))
            or _channels_of(images).isdisjoint(_channels_of(each))
        ]
        if uid is None and len(alike) == 1:
            fitting = alike
        if fitting:  # other series or other channels: only the position tells pyramids apart
            fitting[0] += images
        else:
            joined.append(images)
    return joined


def _series_of(images: Sequence[TiledImage]) -> set[str | None]:
    return {dicom.text(image._source.metadata, "SeriesInstanceUID") for image in images}


def _channels_of(images: Sequence[TiledImage]) -> set[str]:
    return {channel.identifier for image in images for channel in image.channels}


def _of_one_place(images: Sequence[TiledImage], tolerance: float) -> list[list[TiledImage]]:
    """Group images by the area that they show."""
    found = []
    rest = list(images)
    while rest:
        misfits = group_levels([image.metadata for image in rest], tolerance).misfits
        found.append([image for i, image in enumerate(rest) if i not in misfits])
        rest = [rest[i] for i in sorted(misfits)]
    return found


def _order(images: Sequence[TiledImage]) -> tuple[int, bool]:
    return -max((math.prod(image.size) for image in images), default=0), any(
        map(_has_depth, images)
    )


def _origin_of(image: TiledImage, groups: Sequence[Sequence[TiledImage]]) -> list[int]:
    """Return the pyramids that an image references, else the first that contains its centre."""
    references = {uid for _, _, uid in image.get_references()}
    named = [
        number
        for number, group in enumerate(groups)
        if any(not references.isdisjoint(_names_of(volume)) for volume in group)
    ]
    if named:
        return named
    try:
        x, y = image.geometry.center
        for number, group in enumerate(groups):
            x_min, y_min, x_max, y_max = group[0].physical_bounds
            if x_min <= x <= x_max and y_min <= y <= y_max:
                return [number]
    except MetadataError:
        pass
    return [0]


def _pyramid_of(
    volumes: Sequence[TiledImage], derived: Sequence[TiledImage], others: Sequence[TiledImage]
) -> GlassPyramid:
    return GlassPyramid((*volumes, *derived, *others), tuple(volumes or derived))


def _uid_of(image: TiledImage) -> str | None:
    return dicom.text(image._source.metadata, "PyramidUID")


def _has_depth(image: TiledImage) -> bool:
    return dicom.text(image._source.metadata, "ExtendedDepthOfField") == "YES"


def _is_thumbnail(image: TiledImage) -> bool:
    return image.flavor == ImageFlavors.THUMBNAIL.value


def choose_pyramid(pyramids: Sequence[GlassPyramid], wanted: int | str | None) -> int:
    """Return the index of the chosen pyramid.

    Parameters
    ----------
    pyramids : sequence of GlassPyramid
        The pyramids of the glass.
    wanted : int or str or None
        Zero-based index, 0 for the largest; Pyramid UID; or SOP Instance UID, path or name of a
        file. None chooses the first; a warning lists the pyramids if there are several.

    Raises
    ------
    NotSlideError
        When there is no such pyramid; the message lists the pyramids.

    """
    if wanted is None:
        if len(pyramids) > 1:
            warn(
                f"{len(pyramids)} pyramids are on this glass; the first is read, another one with"
                f" the argument:\n{_listed(pyramids)}",
                MetadataWarning,
            )
        return 0
    if isinstance(wanted, str):
        found = [i for i, pyramid in enumerate(pyramids) if pyramid._has_name(wanted)]
        if len(found) == 1:
            return found[0]
    elif 0 <= operator.index(wanted) < len(pyramids):
        return operator.index(wanted)
    raise NotSlideError(f"no pyramid {wanted!r} on this glass; there are:\n{_listed(pyramids)}")


def _listed(pyramids: Sequence[GlassPyramid]) -> str:
    """Return the list of pyramids as text, one line each."""
    return "\n".join(f"  pyramid={number}: {each}" for number, each in enumerate(pyramids))
