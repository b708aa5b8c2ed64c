"""Which images belong to one slide."""

from __future__ import annotations

import itertools
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np

from dicomslide import utils
from dicomslide.backends.base import ConcatenatedSource, FrameSource
from dicomslide.channel import shared_channel
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.layout import geometry_of, grid_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.frames import FramePositions
    from dicomslide.image import TiledImage

__all__ = ["group_by_slide", "is_derived", "is_volume", "join_concatenations",
           "list_slides"]  # fmt: skip

logger = logging.getLogger(__name__)


def slide_key(image: TiledImage) -> tuple[str | None, str | None]:
    """Return (Frame of Reference UID, Container Identifier), None where absent."""
    return (
        utils.text(image.metadata, "FrameOfReferenceUID"),
        utils.text(image.metadata, "ContainerIdentifier"),
    )


def join_concatenations(sources: Sequence[FrameSource]) -> tuple[FrameSource, ...]:
    """Make one source of the parts of each image that was split.

    A Concatenation UID alone isn't believed: parts are of one flavor, and of one total pixel
    matrix. Parts without one are known by the places of their frames.
    """
    parts: dict[tuple[object, ...], list[FrameSource]] = {}
    for source in sources:
        metadata = source.metadata
        keywords = ("TotalPixelMatrixRows", "TotalPixelMatrixColumns")
        uid = utils.text(metadata, "ConcatenationUID") or source.name
        key = (uid, utils.image_flavor(metadata), *(metadata.get(k) for k in keywords))
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
    """Join sparse images of one series, matrix, path and plane, if no two frames share a place."""
    alike: dict[tuple[object, ...], list[FrameSource]] = {}
    for source in sources:
        metadata = source.metadata
        key: tuple[object, ...] = (source.name,)
        if (
            not isinstance(source, ConcatenatedSource)
            and utils.text(metadata, "SOPClassUID") == utils.VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE
            and utils.text(metadata, "DimensionOrganizationType") == "TILED_SPARSE"
        ):
            said = (utils.text(metadata, keyword) for keyword in _ALIKE)
            flavor, path = utils.image_flavor(metadata), shared_channel(metadata)
            key = (*said, flavor, path, *_matrix_of(metadata), source.transfer_syntax_uid)
        alike.setdefault(key, []).append(source)
    return tuple(joined for each in alike.values() for joined in _joined_by_places(each))


def _matrix_of(metadata: Dataset) -> tuple[object, ...]:
    """Return the tiles of a matrix, and where it lies on the slide, if the header says."""
    try:
        return grid_of(metadata), geometry_of(metadata)
    except MetadataError:
        keywords = ("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns")
        return tuple(metadata.get(keyword) for keyword in keywords)


def _joined_by_places(sources: list[FrameSource]) -> list[FrameSource]:
    if len(sources) == 1:
        return sources
    try:
        positions = [source.frame_positions() for source in sources]
    except MetadataError:
        return sources  # opening them will say what is wrong
    found = [each for each in positions if each is not None]
    if len(found) < len(sources) or not _complete_each_other(found):
        return sources
    logger.info("%s: %d images are parts of one", sources[0].name, len(sources))
    counts = tuple(len(each) for each in found)
    firsts = (0, *itertools.accumulate(counts))[:-1]
    return [ConcatenatedSource(tuple(sources), firsts, counts)]


def _complete_each_other(parts: Sequence[FramePositions]) -> bool:
    """Whether parts are of the same planes and channels, and no two frames share a place."""
    number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    z = np.concatenate([np.zeros(len(p)) if p.z is None else p.z for p in parts])
    names = np.concatenate(
        [np.full(len(p), "") if p.channels is None else p.channels for p in parts]
    )
    planes, plane = np.unique(z, return_inverse=True)
    channels, channel = np.unique(names, return_inverse=True)
    stack = plane * len(channels) + channel
    stacks = len(planes) * len(channels)
    if len(np.unique(number * stacks + stack)) < len(parts) * len(np.unique(stack)):
        return False
    rows, columns = (
        np.concatenate([getattr(part, axis) for part in parts]) for axis in ("rows", "columns")
    )
    places = (stack * (rows.max() + 1) + rows) * (columns.max() + 1) + columns
    return len(np.unique(places)) == len(places)


def is_derived(image: TiledImage) -> bool:
    """Whether an image is a segmentation or a parametric map."""
    sop_class = utils.text(image.metadata, "SOPClassUID")
    return sop_class in utils.SEGMENTATION_STORAGES or sop_class == utils.PARAMETRIC_MAP_STORAGE


def is_volume(image: TiledImage) -> bool:
    """Whether an image is a VOLUME or THUMBNAIL, and not derived."""
    return utils.is_volume_image(image.metadata) and not is_derived(image)


def group_by_slide(images: Iterable[TiledImage]) -> list[list[TiledImage]]:
    """Put images together that share a frame of reference and a container.

    A volume image that lacks one of both joins the only slide that has the other. A label or an
    overview, whose frame of reference is often its own, joins that of its container or series; a
    derived image that of its frame of reference. Where nothing but derived images is there, they
    are slides of their own.
    """
    images = tuple(images)
    roots = [image for image in images if is_volume(image)]
    roots = roots or [image for image in images if is_derived(image)]
    groups: dict[tuple[str | None, str | None], list[TiledImage]] = {}
    incomplete = []
    for image in roots:
        key = slide_key(image)
        if None in key:
            incomplete.append(image)
        else:
            groups.setdefault(key, []).append(image)
    slides = list(groups.values())
    for image in incomplete:
        fitting = [slide for slide in slides if _may_belong(image, slide)]
        alike = [slide for slide in fitting if slide_key(slide[0]) == slide_key(image)]
        if len(alike or fitting) == 1:
            (alike or fitting)[0].append(image)
        else:
            slides.append([image])
    if slides:
        members = set(map(id, roots))
        for image in images:
            if id(image) not in members:
                for slide in _fitting_slides(image, slides):
                    slide.append(image)
    _share_associated(slides)
    return slides


def _share_associated(slides: list[list[TiledImage]]) -> None:
    """Give a scan that has no label, or no overview, those of other scans of its container."""
    before = [tuple(slide) for slide in slides]
    for slide, own in zip(slides, before, strict=True):
        container = slide_key(own[0])[1]
        for has in (utils.is_label_image, utils.is_overview_image):
            if container is not None and not any(has(image.metadata) for image in own):
                slide.extend(
                    image
                    for other in before
                    if slide_key(other[0])[1] == container
                    for image in other
                    if has(image.metadata) and not is_derived(image)
                )


def _may_belong(image: TiledImage, slide: list[TiledImage]) -> bool:
    """Whether nothing that an image says keeps it from a slide, and something speaks for it."""
    pairs = list(zip(slide_key(image), slide_key(slide[0]), strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return False
    return any(a is not None and a == b for a, b in pairs) or _same(
        image, slide, "SeriesInstanceUID"
    )


def _same(image: TiledImage, others: list[TiledImage], keyword: str) -> bool:
    """Whether what an image says is what one of others says."""
    said = utils.text(image.metadata, keyword)
    return any(utils.text(other.metadata, keyword) == said for other in others)


def _fitting_slides(image: TiledImage, slides: list[list[TiledImage]]) -> list[list[TiledImage]]:
    """Return the slides to which an image belongs that isn't a volume image."""
    frame, container = slide_key(image)
    keys = [slide_key(slide[0]) for slide in slides]
    possible = list(zip(slides, keys, strict=True))
    if is_derived(image):  # its millimetres mean something in its own frame of reference only
        possible = [
            (slide, key) for slide, key in possible if None in (frame, key[0]) or frame == key[0]
        ]
    else:  # a label names a person: never one of another slide
        possible = [
            (slide, key)
            for slide, key in possible
            if (container is not None and container == key[1])
            or _same(image, slide, "SeriesInstanceUID")
            or (None in (container, key[1]) and _same(image, slide, "StudyInstanceUID"))
        ]
    if len(possible) == 1:
        return [possible[0][0]]
    by_reference = [
        slide for slide, _ in possible if is_derived(image) and _refers_to(image, slide)
    ]
    by_frame = [slide for slide, key in possible if frame is not None and key[0] == frame]
    by_container = [
        slide for slide, key in possible if container is not None and key[1] == container
    ]
    by_series = [slide for slide, _ in possible if _same(image, slide, "SeriesInstanceUID")]
    if found := by_reference or by_frame or by_container or by_series:
        return found
    what = "segmentation or parametric map" if is_derived(image) else image.flavor
    warnings.warn(
        f"left out: {image.name}: {what} of none of the {len(slides)} slides (its frame of"
        f" reference is {frame}, its container {container})",
        MetadataWarning,
        stacklevel=4,
    )
    return []


def _refers_to(image: TiledImage, others: list[TiledImage]) -> bool:
    uids = {uid for _, _, uid in image.get_references()}
    return any(utils.text(other.metadata, "SOPInstanceUID") in uids for other in others)


def list_slides(slides: list[list[TiledImage]]) -> str:
    """Say which slides there are, and how to choose one."""
    lines = [f"{len(slides)} slides are here; choose one with container_id=..."]
    for slide in slides:
        frame, container = slide_key(slide[0])
        rows, columns = max(image.size for image in slide)
        lines.append(
            f"  container {container!r}, frame of reference {frame}: {len(slide)} images, up to"
            f" {rows} × {columns} pixels"
        )
    lines.append("or, where two scans are of one container, with frame_of_reference_uid=...")
    return "\n".join(lines)
