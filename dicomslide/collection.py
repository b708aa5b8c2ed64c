"""Which images belong to one slide."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from dicomslide import utils
from dicomslide.backends.base import ConcatenatedSource, FrameSource
from dicomslide.errors import MetadataWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dicomslide.image import TiledImage


__all__ = ["group_by_slide", "is_derived", "is_volume", "join_concatenations",
           "list_slides"]  # fmt: skip


def slide_key(image: TiledImage) -> tuple[str | None, str | None]:
    """Return (Frame of Reference UID, Container Identifier), None where absent."""
    return (
        utils.text(image.metadata, "FrameOfReferenceUID"),
        utils.text(image.metadata, "ContainerIdentifier"),
    )


def join_concatenations(sources: Sequence[FrameSource]) -> tuple[FrameSource, ...]:
    """Make one source of the parts of each concatenation.

    A UID alone isn't believed: parts are of one flavor, and of one total pixel matrix.
    """
    parts: dict[tuple[object, ...], list[FrameSource]] = {}
    for source in sources:
        metadata = source.metadata
        keywords = ("TotalPixelMatrixRows", "TotalPixelMatrixColumns")
        uid = utils.text(metadata, "ConcatenationUID") or source.name
        key = (uid, utils.image_flavor(metadata), *(metadata.get(k) for k in keywords))
        parts.setdefault(key, []).append(source)
    return tuple(
        each[0] if len(each) == 1 else ConcatenatedSource.of(each) for each in parts.values()
    )


def is_derived(image: TiledImage) -> bool:
    """Whether an image is a segmentation or a parametric map."""
    sop_class = utils.text(image.metadata, "SOPClassUID")
    return sop_class in utils.SEGMENTATION_STORAGES or sop_class == utils.PARAMETRIC_MAP_STORAGE


def is_volume(image: TiledImage) -> bool:
    """Whether an image is a VOLUME or THUMBNAIL, and not derived."""
    return utils.is_volume_image(image.metadata) and not is_derived(image)


def group_by_slide(images: Iterable[TiledImage]) -> list[list[TiledImage]]:
    """Put images together that share a frame of reference and a container.

    An image that lacks one of both joins the only slide that has the other; a label or an
    overview, whose frame of reference is often its own, that of its container or series.
    """
    volumes = [image for image in images if is_volume(image)]
    groups: dict[tuple[str | None, str | None], list[TiledImage]] = {}
    incomplete = []
    for image in volumes:
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
    for image in images:
        if not is_volume(image):
            for slide in slides if len(slides) == 1 else _fitting_slides(image, slides):
                slide.append(image)
    return slides


def _may_belong(image: TiledImage, slide: list[TiledImage]) -> bool:
    """Whether nothing that an image says keeps it from a slide, and something speaks for it."""
    pairs = list(zip(slide_key(image), slide_key(slide[0]), strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return False
    return any(a is not None and a == b for a, b in pairs) or _same_series(image, slide)


def _same_series(image: TiledImage, others: list[TiledImage]) -> bool:
    uid = utils.text(image.metadata, "SeriesInstanceUID")
    return any(utils.text(other.metadata, "SeriesInstanceUID") == uid for other in others)


def _fitting_slides(image: TiledImage, slides: list[list[TiledImage]]) -> list[list[TiledImage]]:
    frame, container = slide_key(image)
    by_frame = [slide for slide in slides if frame is not None and slide_key(slide[0])[0] == frame]
    by_container = [
        slide for slide in slides if container is not None and slide_key(slide[0])[1] == container
    ]
    by_series = [slide for slide in slides if _same_series(image, slide)]
    if found := by_frame or by_container or by_series:
        return found
    warnings.warn(
        f"left out: {image.name}: {image.flavor} of none of the {len(slides)} slides",
        MetadataWarning,
        stacklevel=4,
    )
    return []


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
