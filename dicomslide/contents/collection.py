"""Assignment of instances to images (concatenations) and of images to slides."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import operator
from typing import TYPE_CHECKING

import numpy as np

from dicomslide import utils
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.errors import MetadataError, MetadataWarning, NotSlideError
from dicomslide.header import dicom
from dicomslide.header.channels import shared_channel
from dicomslide.header.layout import grid_of
from dicomslide.header.placement import Given, geometry_of, pixel_spacing_of, stated_origin
from dicomslide.header.tiling import focal_planes
from dicomslide.process.warn import warn
from dicomslide.pyramid import group_levels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource
    from dicomslide.header.tiling import FramePositions
    from dicomslide.image import TiledImage

__all__ = ["SlideGroup", "group_by_slide", "is_derived", "is_volume", "join_concatenations",
           "list_slides", "not_a_slide", "respaced"]  # fmt: skip

logger = logging.getLogger(__name__)


def _key_of(image: TiledImage) -> tuple[str | None, str | None]:
    """Return (Frame of Reference UID, Container Identifier), None where absent."""
    return (
        dicom.text(image.metadata, "FrameOfReferenceUID"),
        dicom.text(image.metadata, "ContainerIdentifier"),
    )


def join_concatenations(sources: Sequence[FrameSource]) -> tuple[FrameSource, ...]:
    """Join the parts of each image that is split into several instances to one source.

    Parts have one Concatenation UID, one flavor and one size of the total pixel matrix. Parts
    without a Concatenation UID are recognised by the positions of their frames.
    """
    parts: dict[tuple[object, ...], list[FrameSource]] = {}
    for source in sources:
        metadata = source.metadata
        keywords = ("TotalPixelMatrixRows", "TotalPixelMatrixColumns")
        uid = dicom.text(metadata, "ConcatenationUID") or source.name
        key = (uid, dicom.image_flavor(metadata), *(dicom.text(metadata, k) for k in keywords))
        parts.setdefault(key, []).append(source)
    return _join_by_places(
        each[0] if len(each) == 1 else ConcatenatedSource.of(each) for each in parts.values()
    )


_ALIKE = (
    "SeriesInstanceUID", "FrameOfReferenceUID", "ContainerIdentifier", "SamplesPerPixel",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation",
    "PlanarConfiguration",
)  # fmt: skip


def _join_by_places(sources: Iterable[FrameSource]) -> tuple[FrameSource, ...]:
    """Join TILED_SPARSE images with equal attributes whose frames complement each other."""
    alike: dict[tuple[object, ...], list[FrameSource]] = {}
    for source in sources:
        metadata = source.metadata
        key: tuple[object, ...] = (source.name,)
        if (
            not isinstance(source, ConcatenatedSource)
            and dicom.text(metadata, "SOPClassUID") == dicom.VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE
            and dicom.text(metadata, "DimensionOrganizationType") == "TILED_SPARSE"
        ):
            shared = (dicom.text(metadata, keyword) for keyword in _ALIKE)
            flavor, path = dicom.image_flavor(metadata), shared_channel(metadata)
            key = (*shared, flavor, path, *_matrix_of(metadata), source.transfer_syntax_uid)
        alike.setdefault(key, []).append(source)
    return tuple(joined for each in alike.values() for joined in _joined_by_places(each))


def _matrix_of(metadata: Dataset) -> tuple[object, ...]:
    """Return the tile grid and the geometry of an image; only sizes where these are absent."""
    try:
        return grid_of(metadata), geometry_of(metadata)
    except MetadataError:
        keywords = ("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns")
        return tuple(dicom.text(metadata, keyword) for keyword in keywords)


def _joined_by_places(sources: list[FrameSource]) -> list[FrameSource]:
    if len(sources) == 1:
        return sources
    try:
        positions = [source.frame_positions() for source in sources]
    except MetadataError:
        return sources  # the error is raised when they are opened
    found = [each for each in positions if each is not None]
    if len(found) < len(sources) or not _complete_each_other(found):
        return sources
    logger.info("%s: %d images are parts of one", sources[0].name, len(sources))
    counts = tuple(len(each) for each in found)
    firsts = (0, *itertools.accumulate(counts))[:-1]
    return [ConcatenatedSource(tuple(sources), firsts, counts)]


def _complete_each_other(parts: Sequence[FramePositions]) -> bool:
    """Whether all parts have the same planes and channels, and no two frames have one position."""
    number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    z = np.concatenate([np.zeros(len(p)) if p.z is None else p.z for p in parts])
    names = np.concatenate(
        [np.full(len(p), "") if p.channels is None else p.channels for p in parts]
    )
    channels, channel = np.unique(names, return_inverse=True)
    rows, columns = (
        np.concatenate([getattr(part, axis) for part in parts]) for axis in ("rows", "columns")
    )
    places = (channel * (rows.max() + 1) + rows) * (columns.max() + 1) + columns
    plane = focal_planes(z, places)
    stacks = (int(plane.max()) + 1) * len(channels)
    stack = plane * len(channels) + channel
    if len(np.unique(number * stacks + stack)) < len(parts) * len(np.unique(stack)):
        return False
    return len(np.unique(np.stack([places, plane]), axis=1).T) == len(places)


def is_derived(image: TiledImage) -> bool:
    """Whether an image is a segmentation or a parametric map."""
    sop_class = dicom.text(image.metadata, "SOPClassUID")
    return sop_class in dicom.SEGMENTATION_STORAGES or sop_class == dicom.PARAMETRIC_MAP_STORAGE


def respaced(images: Sequence[TiledImage], spacing: float) -> list[TiledImage]:
    """Return the images of a slide with spacings that replace those of their headers.

    Parameters
    ----------
    images : sequence of TiledImage
        Images of the slide. VOLUME, THUMBNAIL and derived images get new spacings, and volume
        images the origin of the largest image.
    spacing : float
        Pixel spacing of the largest VOLUME image in mm; without one, of the largest derived image.
        Spacings of others keep their proportion to it; where a spacing is absent, or a level has
        the same one as the largest image, both are assumed to cover one area.

    """
    scaled = [image for image in images if is_volume(image) or is_derived(image)]
    if not scaled:
        return list(images)
    base = max(scaled, key=lambda image: (is_volume(image), math.prod(image.size)))
    stated, origin = pixel_spacing_of(base._header), stated_origin(base._header)

    def spacing_of(image: TiledImage) -> tuple[float, float]:
        own = pixel_spacing_of(image._header)
        if own is not None and stated is not None and (is_derived(image) or own != stated):
            factors = np.divide(own, stated)
        else:
            factors = np.divide(base.size, image.size)
        down, across = (spacing * factors).tolist()
        return down, across

    members = set(map(id, scaled))
    return [
        image._respaced(Given(spacing_of(image), origin if is_volume(image) else None))
        if id(image) in members
        else image
        for image in images
    ]


def is_volume(image: TiledImage) -> bool:
    """Whether an image is a VOLUME or THUMBNAIL, and not derived."""
    return utils.is_volume_image(image.metadata) and not is_derived(image)


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    """Image with the attributes that assign it to a slide, read once: few headers are cached."""

    image: TiledImage
    key: tuple[str | None, str | None]
    series: str | None
    study: str | None
    uid: str | None
    is_volume: bool
    is_derived: bool
    is_label: bool
    is_overview: bool

    @classmethod
    def of(cls, image: TiledImage) -> _Member:
        header = image.metadata
        derived = is_derived(image)
        return cls(
            image,
            _key_of(image),
            dicom.text(header, "SeriesInstanceUID"),
            dicom.text(header, "StudyInstanceUID"),
            dicom.text(header, "SOPInstanceUID"),
            is_volume(image),
            derived,
            utils.is_label_image(header) and not derived,
            utils.is_overview_image(header) and not derived,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class SlideGroup:
    """Images of one glass in one frame of reference."""

    frame_of_reference_uid: str | None
    container: str | None
    """Container Identifier."""
    frames: frozenset[str]
    """Frame of Reference UIDs of volume and derived images: several only where levels or channels
    have different ones."""
    volumes: tuple[TiledImage, ...]
    """VOLUME and THUMBNAIL images."""
    derived: tuple[TiledImage, ...]
    """Segmentations and parametric maps."""
    others: tuple[TiledImage, ...]
    """LABEL and OVERVIEW images, and those of unknown flavors."""

    @property
    def images(self) -> tuple[TiledImage, ...]:
        """All images."""
        return (*self.volumes, *self.derived, *self.others)


class _Group:
    """Images of a slide, while they are collected."""

    def __init__(self, key: tuple[str | None, str | None]) -> None:
        self.key = key
        self.images: list[_Member] = []
        self.frames: set[str | None] = set()
        self.series: set[str | None] = set()
        self.studies: set[str | None] = set()
        self.uids: set[str | None] = set()

    def add(self, image: _Member) -> None:
        self.images.append(image)
        if image.is_volume or image.is_derived:
            self.frames.add(image.key[0])
        self.series.add(image.series)
        self.studies.add(image.study)
        self.uids.add(image.uid)

    @property
    def whole(self) -> SlideGroup:
        """The images as a SlideGroup."""
        volumes = [each for each in self.images if each.is_volume]
        derived = [each for each in self.images if each.is_derived]
        others = [each for each in self.images if not (each.is_volume or each.is_derived)]
        return SlideGroup(
            *self.key,
            frozenset(filter(None, self.frames)),
            *(tuple(each.image for each in some) for some in (volumes, derived, others)),
        )


def group_by_slide(images: Iterable[TiledImage]) -> list[SlideGroup]:
    """Group images by slide: by Frame of Reference UID and Container Identifier.

    A volume image that lacks one of the two joins the only slide that matches the other. A label or
    overview, which often has a frame of reference of its own, joins the slide of its container or
    series; a derived image joins the slide of its frame of reference. Without volume images,
    derived images form the slides.
    """
    found = [_Member.of(image) for image in images]
    roots = [image for image in found if image.is_volume]
    roots = roots or [image for image in found if image.is_derived]
    groups: dict[tuple[str | None, str | None], _Group] = {}
    incomplete = []
    for image in roots:
        if None in image.key:
            incomplete.append(image)
        else:
            groups.setdefault(image.key, _Group(image.key)).add(image)
    slides = list(groups.values())
    for image in incomplete:
        fitting = [slide for slide in slides if _may_belong(image, slide)]
        alike = [slide for slide in fitting if slide.key == image.key]
        joined = alike or fitting
        if len(joined) != 1:
            joined = [_Group(image.key)]
            slides += joined
        joined[0].add(image)
    slides = _with_nested_joined(slides)
    if slides:
        members = set(map(id, roots))
        for image in found:
            if id(image) not in members:
                for slide in _fitting_slides(image, slides):
                    slide.add(image)
    _share_associated(slides)
    return [slide.whole for slide in slides]


def _with_nested_joined(slides: list[_Group]) -> list[_Group]:
    """Join groups of one series that are levels or channels of one pyramid.

    Some converters give each level, or each channel, a Frame of Reference UID of its own.
    """
    by_series: dict[tuple[str | None, ...], list[_Group]] = {}
    for slide in slides:
        if len(slide.series) == 1 and all(image.is_volume for image in slide.images):
            by_series.setdefault(tuple(slide.series), []).append(slide)
    for (series,), parts in by_series.items():
        containers = {part.key[1] for part in parts} - {None}
        if series is None or len(parts) < 2 or len(containers) > 1:
            continue
        if not _nest([image.image for part in parts for image in part.images]):
            continue
        whole, *others = sorted(
            parts, key=lambda part: -max(math.prod(each.image.size) for each in part.images)
        )
        for image in [image for part in others for image in part.images]:
            whole.add(image)
        slides = [slide for slide in slides if not any(slide is part for part in others)]
        whole.key = whole.key[0], next(iter(containers), None)
        warn(
            f"{whole.images[0].image.name}: images of its series have {len(whole.frames)} Frame of"
            " Reference UIDs, but show one area: they are read as one slide",
            MetadataWarning,
        )
    return slides


def _nest(images: Sequence[TiledImage]) -> bool:
    """Whether images are levels and channels of one pyramid, with one centre and aspect ratio."""
    try:
        groups = group_levels([image.metadata for image in images], 0.0)
    except MetadataError:
        return False
    if groups.misfits or groups.associated:
        return False
    rows, columns = images[groups.base].size
    for level in groups.levels:
        r, c = images[level[0]].size
        if abs(rows / r / (columns / c) - 1) > 1 / r + 1 / c:
            return False
        names = [channel.identifier for i in level for channel in images[i].channels]
        if len(set(names)) < len(names):  # two scans of one area
            return False
    return True


def _share_associated(slides: list[_Group]) -> None:
    """Add labels and overviews to scans that lack them, from other scans of the container."""
    of_container: dict[str, list[_Group]] = {}
    for slide in slides:
        if (container := slide.key[1]) is not None:
            of_container.setdefault(container, []).append(slide)
    for scans in of_container.values():
        for has in (operator.attrgetter("is_label"), operator.attrgetter("is_overview")):
            without = [slide for slide in scans if not any(map(has, slide.images))]
            others = [image for slide in scans for image in slide.images if has(image)]
            for slide in without:
                for image in others:
                    slide.add(image)


def _may_belong(image: _Member, slide: _Group) -> bool:
    """Whether an identifier or the series of an image is that of a slide, and none contradicts."""
    pairs = list(zip(image.key, slide.key, strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return False
    return any(a is not None and a == b for a, b in pairs) or image.series in slide.series


def _fitting_slides(image: _Member, slides: list[_Group]) -> list[_Group]:
    """Return the slides of an image that isn't a volume image; with a warning, none."""
    frame, container = image.key
    if image.is_derived:  # its coordinates are valid in its own frame of reference only
        possible = [
            slide for slide in slides if None in (frame, *slide.frames) or frame in slide.frames
        ]
    else:  # a label identifies a patient: never assign it to a wrong slide
        possible = [
            slide
            for slide in slides
            if (container is not None and container == slide.key[1])
            or image.series in slide.series
            or (None in (container, slide.key[1]) and image.study in slide.studies)
        ]
    if len(possible) == 1:
        return possible
    by_reference = []
    if image.is_derived:
        uids = {uid for _, _, uid in image.image.get_references()}
        by_reference = [slide for slide in possible if not uids.isdisjoint(slide.uids)]
    by_frame = [slide for slide in possible if frame is not None and frame in slide.frames]
    by_series = [slide for slide in possible if image.series in slide.series]
    by_container = [
        slide for slide in possible if container is not None and slide.key[1] == container
    ]
    if found := by_reference or by_frame or by_series or by_container:
        return found
    what = "segmentation or parametric map" if image.is_derived else image.image.flavor
    warn(
        f"left out: {image.image.name}: {what} of none of the {len(slides)} slides (its frame of"
        f" reference is {frame}, its container {container})",
        MetadataWarning,
    )
    return []


def not_a_slide(sources: Sequence[FrameSource]) -> NotSlideError:
    """Return the error for instances that contain no slide."""
    names = ", ".join(source.name for source in sources[:3])
    return NotSlideError(
        f"{names}{', ...' if len(sources) > 3 else ''}: not a slide: no VOLUME or THUMBNAIL image,"
        f" nor one derived from it, among {dicom.counted(len(sources), 'instance')}"
    )


def list_slides(slides: Sequence[SlideGroup]) -> str:
    """Return a message that lists the slides and the arguments that choose one."""
    lines = [f"{len(slides)} slides are here; choose one with container_id=..."]
    for slide in slides:
        rows, columns = max((image.size for image in slide.images), key=math.prod)
        lines.append(
            f"  container {slide.container!r}, frame of reference {slide.frame_of_reference_uid}:"
            f" {len(slide.images)} images, up to {rows} × {columns} pixels"
        )
    lines.append("or, where two scans are of one container, with frame_of_reference_uid=...")
    return "\n".join(lines)
