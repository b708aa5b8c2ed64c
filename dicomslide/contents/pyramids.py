"""The pyramids that lie on one glass: which images are of which, and which is wanted.

A slide reads one pyramid. A glass may hold several: regions that were scanned one by one, or a
stack of focal planes and the image with an extended depth of field that was made of it.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from typing import TYPE_CHECKING

from dicomslide.backends.concatenation import ConcatenatedSource
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
    """VOLUME and THUMBNAIL images, what was derived from them, label and overview."""
    levels: tuple[TiledImage, ...]
    """VOLUME and THUMBNAIL images; derived ones where there are no others."""

    @property
    def largest(self) -> TiledImage:
        """The image of its base level."""
        return max(self.levels, key=lambda image: math.prod(image.size))

    @property
    def size(self) -> tuple[int, int]:
        """Total pixel matrix rows and columns of the largest image."""
        return self.largest.size

    @property
    def num_levels(self) -> int:
        """How many sizes its images have."""
        return len({image.size for image in self.levels})

    @property
    def uid(self) -> str | None:
        """Pyramid UID (0008,0019), or None."""
        return next(filter(None, map(_uid_of, self.levels)), None)

    @property
    def has_extended_depth_of_field(self) -> bool:
        """Whether Extended Depth of Field (0048,0012) is YES: focal planes were made one."""
        return any(map(_has_depth, self.levels))

    @property
    def name(self) -> str:
        """File name, URL or SOP Instance UID of the largest image."""
        return self.largest.name

    def _is_called(self, wanted: str) -> bool:
        """Whether that is its Pyramid UID, or the UID, the path or the file name of an image."""
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
    source = image._source
    parts = source.parts if isinstance(source, ConcatenatedSource) else (source,)
    uids = (dicom.text(part.metadata, "SOPInstanceUID") for part in parts)
    return [*(part.name for part in parts), *filter(None, uids)]


def pyramids_of(glass: SlideGroup, tolerance: float) -> list[GlassPyramid]:
    """Sort the images of a glass into its pyramids.

    Images are of several pyramids when their Extended Depth of Field differs, when those of a
    series have several Pyramid UIDs for the same channels, or when they show other places: see
    :func:`dicomslide.pyramid.group_levels`.

    Parameters
    ----------
    glass : SlideGroup
        Images of one slide: see :func:`dicomslide.contents.collection.group_by_slide`.
    tolerance : float
        Distance in mm by which centres of levels may differ, if more than a pixel.

    Returns
    -------
    list of GlassPyramid
        From the largest to the smallest; of one size, a stack of planes before an image with an
        extended depth of field. At least one.

    """
    if len(glass.volumes) < 2:
        return [_pyramid_of(glass.volumes, glass.derived, glass.others)]
    groups = [
        part for alike in _of_one_kind(glass.volumes) for part in _of_one_place(alike, tolerance)
    ]
    groups.sort(key=_order)
    # a thumbnail alone is no pyramid, where there are others
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
    """Part images by what their headers say of their pyramid, wherever they lie."""
    deep, plain = (
        {image.size for image in volumes if _has_depth(image) is has} for has in (True, False)
    )
    several = bool(deep & plain)  # else some levels just don't say
    kinds: dict[tuple[object, ...], list[TiledImage]] = {}
    for image in volumes:
        kinds.setdefault((several and _has_depth(image), _uid_of(image)), []).append(image)
    joined: list[list[TiledImage]] = []
    # those without a Pyramid UID last: they are of the only one there is
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
        if fitting:  # in other series, or of other channels: told apart by place alone
            fitting[0] += images
        else:
            joined.append(images)
    return joined


def _series_of(images: Sequence[TiledImage]) -> set[str | None]:
    return {dicom.text(image._source.metadata, "SeriesInstanceUID") for image in images}


def _channels_of(images: Sequence[TiledImage]) -> set[str]:
    return {channel.identifier for image in images for channel in image.channels}


def _of_one_place(images: Sequence[TiledImage], tolerance: float) -> list[list[TiledImage]]:
    """Part images by where they lie."""
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
    """Return the pyramids from which an image was derived; else the first that holds its centre."""
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
    """Return the number of the pyramid that is wanted.

    Parameters
    ----------
    pyramids : sequence of GlassPyramid
        Those there are.
    wanted : int or str or None
        Its number, from 0, the largest, on; its Pyramid UID; or the SOP Instance UID, the path or
        the name of a file of it. None is the first; a warning lists them where there are several.

    Raises
    ------
    NotSlideError
        When there is none such; the message lists those there are.

    """
    if wanted is None:
        if len(pyramids) > 1:
            warn(
                f"{len(pyramids)} pyramids are on this glass; the first is read, others by the"
                f" argument:\n{_listed(pyramids)}",
                MetadataWarning,
            )
        return 0
    if isinstance(wanted, str):
        found = [i for i, pyramid in enumerate(pyramids) if pyramid._is_called(wanted)]
        if len(found) == 1:
            return found[0]
    elif 0 <= operator.index(wanted) < len(pyramids):
        return operator.index(wanted)
    raise NotSlideError(f"no pyramid {wanted!r} on this glass; there are:\n{_listed(pyramids)}")


def _listed(pyramids: Sequence[GlassPyramid]) -> str:
    """Say which pyramids there are, a line each."""
    return "\n".join(f"  pyramid={number}: {each}" for number, each in enumerate(pyramids))
