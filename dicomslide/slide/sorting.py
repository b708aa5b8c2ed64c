"""Sorting of instances into slides, by the few header values that identify a slide."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING, Protocol

from dicomslide.annotation.bulk import are_annotations_of
from dicomslide.backends.base import fetch_headers, without_header
from dicomslide.backends.concatenation import parts_of
from dicomslide.backends.part10.file import FileStore, check_opens
from dicomslide.backends.part10.source import Part10Source
from dicomslide.contents.collection import (
    group_by_slide,
    is_derived,
    is_volume,
    join_concatenations,
    not_a_slide,
)
from dicomslide.contents.contents import slide_of
from dicomslide.contents.pyramids import pyramids_of
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header import dicom
from dicomslide.image import TiledImage
from dicomslide.process.warn import once, warn
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource
    from dicomslide.contents.options import SlideOptions
    from dicomslide.header.geometry import SlideGeometry

__all__ = ["Instance", "Member", "Openable", "open_members", "sort_instances", "split"]


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """An instance with the values that identify its slide, without its header."""

    source: FrameSource
    """Source of the instance, without a cached header."""
    frame_of_reference_uid: str | None
    container: str | None
    study: str | None
    links: tuple[Hashable, ...]
    """Identifiers; instances that share one may belong to one slide."""
    rank: int
    """2 for a VOLUME image, 1 for a derived image, 0 for another image, -1 if it isn't an image."""
    pyramid: tuple[str | None, bool] | None
    """Pyramid UID, and whether Extended Depth of Field is YES; None unless the rank is 2."""
    placed: SlideGeometry | None
    """Position in the slide coordinate system; None if the header has none or the rank isn't 2."""

    @classmethod
    def of(cls, source: FrameSource) -> Instance:
        """Read the values from the header of an instance.

        Raises
        ------
        MetadataError
            When the header lacks an attribute that an image needs.

        """
        header = source.metadata
        if isinstance(source, Part10Source):
            source.check_complete()
        elif lacking := dicom.lacking_of(header):
            raise MetadataError(f"{source.name}: its header lacks {', '.join(lacking)}")
        frame, container, series, uid = (
            dicom.text(header, keyword)
            for keyword in (
                "FrameOfReferenceUID", "ContainerIdentifier", "SeriesInstanceUID", "SOPInstanceUID"
            )
        )  # fmt: skip
        rank = -1
        if dicom.is_tiled_image(header):
            image = TiledImage(source, header)
            rank = 2 if is_volume(image) else 1 if is_derived(image) else 0
        references = set() if rank in (0, 2) else _references(header)
        named = {"frame": frame, "container": container, "series": series}
        links = [(kind, value) for kind, value in named.items() if value]
        links += [("instance", each) for each in (uid or source.name, *sorted(references))]
        study = dicom.text(header, "StudyInstanceUID")
        pyramid, placed = None, None
        if rank == 2:
            depth = dicom.text(header, "ExtendedDepthOfField") == "YES"
            pyramid = dicom.text(header, "PyramidUID"), depth
            with contextlib.suppress(MetadataError):
                placed = image.geometry
        thin = without_header(source)
        return cls(thin, frame, container, study, tuple(links), rank, pyramid, placed)

    @property
    def is_complete(self) -> bool:
        """Whether both Container Identifier and Frame of Reference UID are present."""
        return None not in (self.frame_of_reference_uid, self.container)


def _references(header: Dataset) -> set[str]:
    """Return the UIDs of the instances that a header references."""
    items = [
        each
        for keyword in ("ReferencedImageSequence", "ReferencedSeriesSequence")
        for item in dicom.items(header, keyword)
        for each in (item, *dicom.items(item, "ReferencedInstanceSequence"))
    ]
    uids = (dicom.text(item, "ReferencedSOPInstanceUID") for item in items)
    return {uid for uid in uids if uid}


def sort_instances(instances: Iterable[Instance]) -> list[list[Instance]]:
    """Return the connected components of instances: those linked directly or through others."""
    instances = tuple(instances)
    incomplete = {each.study for each in instances if each.rank >= 0 and not each.is_complete}
    parents: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while (parent := parents.setdefault(node, node)) != node:
            parents[node] = node = parents[parent]
        return node

    for number, each in enumerate(instances):
        for link in each.links:
            parents[root(link)] = root(number)
        if each.study in incomplete:
            parents[root(("study", each.study))] = root(number)
    groups: dict[Hashable, list[Instance]] = {}
    for number, each in enumerate(instances):
        groups.setdefault(root(number), []).append(each)
    return list(groups.values())


class Openable(Protocol):
    """A slide of a cohort, which any process can open."""

    @property
    def sources(self) -> tuple[FrameSource, ...]:
        """Sources of its instances."""
        ...

    @property
    def later(self) -> tuple[int, ...]:
        """Indices of sources that aren't needed to open the slide."""
        ...

    @property
    def needed(self) -> Sequence[FrameSource]:
        """Sources whose headers are read when the slide is opened."""
        ...

    def open(self, options: SlideOptions) -> Slide:
        """Open the slide."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A slide of a cohort: its identifiers and the sources of its instances."""

    container: str | None
    frame_of_reference_uid: str | None
    sources: tuple[FrameSource, ...]
    pyramid: int | None = None
    """Zero-based index of its pyramid, if the glass slide has several."""
    later: tuple[int, ...] = ()
    """Indices of sources that aren't needed to open the slide: labels, overviews and the like."""

    @property
    def needed(self) -> list[FrameSource]:
        """Sources whose headers are read when the slide is opened."""
        return [each for i, each in enumerate(self.sources) if i not in self.later]

    def open(self, options: SlideOptions) -> Slide:
        """Open the slide."""
        return open_members(self.sources, options, self.later)


def split(instances: Sequence[Instance], tolerance: float) -> list[Member]:
    """Return the slides of linked instances; each pyramid of a glass slide is a slide.

    Headers are read again only if the values of the instances don't determine the slides.

    Parameters
    ----------
    instances : sequence of Instance
        A group of :func:`sort_instances`.
    tolerance : float
        Upper bound in mm on the distance between the centres of levels; a pixel if that is larger.

    Returns
    -------
    list of Member
        Empty if no instance is an image.

    Raises
    ------
    NotSlideError
        When no image is a VOLUME image or derived from one.
    MetadataError
        When a header can't be read.

    """
    rank = max(each.rank for each in instances)
    if rank < 0:
        return []
    if rank == 0:
        raise not_a_slide([each.source for each in instances])
    roots = [each for each in instances if each.rank == rank]
    keys = {(each.container, each.frame_of_reference_uid) for each in roots}
    if len(keys) == 1 and (
        len(roots) == 1 or (roots[0].is_complete and _are_of_one_pyramid(roots, tolerance))
    ):
        sources = tuple(each.source for each in instances)
        later = tuple(i for i, each in enumerate(instances) if each.rank == 0)
        return [Member(*keys.pop(), sources, later=later)]
    images, others = [], []
    fetch_headers(each.source for each in instances)
    for source in _without_copies([each.source for each in instances]):
        header = source.metadata
        if dicom.is_tiled_image(header):
            images.append(TiledImage(source, header))
        else:
            others.append(source)
    members = []
    for group in group_by_slide(images):
        its = [
            each for each in others if are_annotations_of(each.metadata, group.images, group.frames)
        ]
        pyramids = pyramids_of(group, tolerance)
        beside = set(map(id, group.others))
        members += [
            Member(
                group.container,
                group.frame_of_reference_uid,
                (*(image._source for image in pyramid.images), *its),
                number if len(pyramids) > 1 else None,
                tuple(i for i, image in enumerate(pyramid.images) if id(image) in beside),
            )
            for number, pyramid in enumerate(pyramids)
        ]
    return members


def _are_of_one_pyramid(roots: Sequence[Instance], tolerance: float) -> bool:
    """Whether images are certainly of one pyramid; False if headers must be compared."""
    if len({each.pyramid for each in roots}) > 1:
        return False
    placed = [each.placed for each in roots if each.placed is not None]
    if len({each.shape for each in placed}) > len({each.spacing for each in placed}):
        return False  # more sizes than spacings: perhaps pyramids of several regions
    return all(
        math.dist(each.center, placed[0].center) <= max(tolerance, *each.spacing)
        for each in placed[1:]
    )


@once()
def open_members(
    sources: Sequence[FrameSource], options: SlideOptions, later: Iterable[int] = ()
) -> Slide:
    """Open a slide; instances whose header can't be read are left out, with a warning.

    Parameters
    ----------
    sources : sequence of FrameSource
        Sources of the instances of the slide.
    options : SlideOptions
        Options of the slide.
    later : iterable of int
        Indices of sources whose headers are read when they are asked for.

    """
    put_off = {id(sources[i]) for i in later}
    now = [each for each in sources if id(each) not in put_off]
    fetch_headers(now)
    kept = []
    for source in _without_copies(now):
        try:
            check_opens(source.metadata)
        except MetadataError as error:
            warn(f"left out: {error}", MetadataWarning)
        else:
            kept.append(source)
    whole = list(join_concatenations(kept))
    # in the order that they have in the slide when all headers are read
    place = {each.identity: at for at, each in reversed(list(enumerate(sources)))}
    whole += _without_copies([each for each in sources if id(each) in put_off])
    whole.sort(key=lambda each: min(place[part.identity] for part in parts_of(each)))
    found = {id(each) for each in sources} & put_off
    return slide_of(
        Slide, whole, options, later=[i for i, each in enumerate(whole) if id(each) in found]
    )


def _without_copies(sources: Sequence[FrameSource]) -> Sequence[FrameSource]:
    files = [source for source in sources if isinstance(source, Part10Source)]
    return FileStore.of(files).sources if files else sources
