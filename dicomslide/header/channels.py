"""Channels of an image: optical paths, segments or parameters, with their attributes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.enum import ChannelTypes
from dicomslide.header import dicom

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = ["Channel", "Channels", "channel_type_of", "channels_of", "have_other_channels",
           "shared_channel"]  # fmt: skip

_IDENTIFIERS = {
    ChannelTypes.OPTICAL_PATH: ("OpticalPathIdentificationSequence", "OpticalPathIdentifier"),
    ChannelTypes.SEGMENT: ("SegmentIdentificationSequence", "ReferencedSegmentNumber"),
    ChannelTypes.PARAMETER: ("RealWorldValueMappingSequence", "LUTLabel"),
}
"""Functional group that assigns a frame to a channel, and the channel's identifier in it."""
_DESCRIPTIONS = {
    ChannelTypes.OPTICAL_PATH: "OpticalPathDescription",
    ChannelTypes.SEGMENT: "SegmentLabel",
    ChannelTypes.PARAMETER: "LUTExplanation",
}
MOST_LINES = 50
"""Upper bound on the channels of a repr: a segmentation may have thousands."""
QUANTITY = ("246205007", "G-C1C6")
"""Code of the concept "Quantity" in SNOMED CT, and its retired identifier (PS3.3 C.7.6.16.2.11)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Channel:
    """One channel of an image."""

    type: ChannelTypes
    identifier: str
    """Optical Path Identifier, Segment Number, or LUT Label."""
    items: Sequence[Dataset] = dataclasses.field(repr=False)
    """Items of the Optical Path, Segment or Real World Value Mapping Sequence."""
    index: int
    """Zero-based index of the channel's item."""

    @property
    def item(self) -> Dataset:
        """Item of the Optical Path, Segment or Real World Value Mapping Sequence."""
        return self.items[self.index]

    @property
    def description(self) -> str | None:
        """Optical Path Description, Segment Label or LUT Explanation; None where absent."""
        return self._text(_DESCRIPTIONS[self.type])

    @property
    def wavelength(self) -> float | None:
        """Illumination Wave Length in nm; None where it is absent, or 0."""
        return dicom.number(self.item, "IlluminationWaveLength") or None

    @property
    def category(self) -> str | None:
        """Meaning of the Segmented Property Category Code."""
        return self._meaning("SegmentedPropertyCategoryCodeSequence")

    @property
    def property_type(self) -> str | None:
        """Meaning of the Segmented Property Type Code."""
        return self._meaning("SegmentedPropertyTypeCodeSequence")

    @property
    def algorithm(self) -> str | None:
        """Segment Algorithm Name, else Segment Algorithm Type."""
        return self._text("SegmentAlgorithmName") or self._text("SegmentAlgorithmType")

    @property
    def quantity(self) -> str | None:
        """Code Meaning of a parameter's Quantity (PS3.3 C.7.6.16.2.11); None where absent."""
        for item in dicom.items(self.item, "QuantityDefinitionSequence"):
            names = dicom.items(item, "ConceptNameCodeSequence")
            if any(dicom.text(name, "CodeValue") in QUANTITY for name in names):
                for code in dicom.items(item, "ConceptCodeSequence"):
                    return dicom.text(code, "CodeMeaning")
        return None

    @property
    def unit(self) -> str | None:
        """Code Value of the Measurement Units Code, in UCUM."""
        for code in dicom.items(self.item, "MeasurementUnitsCodeSequence"):
            return dicom.text(code, "CodeValue")
        return None

    @property
    def mapping(self) -> tuple[float, float] | None:
        """Real World Value (Slope, Intercept); None where the mapping isn't linear."""
        slope = dicom.number(self.item, "RealWorldValueSlope")
        intercept = dicom.number(self.item, "RealWorldValueIntercept")
        return None if slope is None or intercept is None else (slope, intercept)

    @property
    def mapping_table(self) -> NDArray[np.float64] | None:
        """Real World Value LUT Data: one value per stored value from the first mapped one on.

        None where the mapping is linear, or absent.
        """
        if self.mapping is not None:
            return None
        values: Any = self.item.get("RealWorldValueLUTData")
        if values is None or values == "":
            return None
        return np.atleast_1d(np.asarray(values, np.float64))

    @property
    def mapped_range(self) -> tuple[float, float]:
        """Real World Value (First, Last) Value Mapped; infinite where absent."""
        first = dicom.number(self.item, "RealWorldValueFirstValueMapped")
        last = dicom.number(self.item, "RealWorldValueLastValueMapped")
        return -math.inf if first is None else first, math.inf if last is None else last

    def __repr__(self) -> str:
        kind = self.type.value.replace("_", " ").lower()
        of = f", {self.wavelength:g} nm" if self.wavelength else ""
        return f"<{kind} {self.identifier}: {self.description or '-'}{of}>"

    def _value(self, keyword: str) -> Any:
        """Return a value of the item, without parsing all of it where there are very many."""
        items: Any = self.items
        return items.values(keyword)[self.index] if dicom.is_lazy(items) else self.item.get(keyword)

    def _text(self, keyword: str) -> str | None:
        value = self._value(keyword)
        return None if value is None else str(value).strip() or None

    def _meaning(self, keyword: str) -> str | None:
        items: Any = self.items
        if dicom.is_lazy(items):
            found: str | None = items.meanings(keyword)[self.index]
            return found
        return dicom.meaning_of(self.item.get(keyword))


class Channels(tuple[Channel, ...]):
    """Tuple of channels whose repr has one line per channel."""

    __slots__ = ()

    def __repr__(self) -> str:
        width = len(str(len(self) - 1))
        lines = [f"{i:{width}}  {channel!r}" for i, channel in enumerate(self[:MOST_LINES])]
        if len(self) > MOST_LINES:
            lines.append(f"and {len(self) - MOST_LINES:,} more")
        return "\n".join([dicom.counted(len(self), "channel"), *lines])


def channel_type_of(image: Dataset) -> ChannelTypes:
    """Return the type of an image's channels, by its SOP Class UID."""
    sop_class = dicom.text(image, "SOPClassUID")
    if sop_class == dicom.PARAMETRIC_MAP_STORAGE:
        return ChannelTypes.PARAMETER
    if sop_class in dicom.SEGMENTATION_STORAGES:
        return ChannelTypes.SEGMENT
    return ChannelTypes.OPTICAL_PATH


def channels_of(
    image: Dataset,
    of_frames: Sequence[str] | NDArray[np.str_] = (),
    frame_groups: Callable[[Sequence[int]], Sequence[Dataset]] | None = None,
) -> tuple[Channel, ...]:
    """Return the channels of an image, in the order of their items.

    An image without items has one channel, with the identifier "1".

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    of_frames : sequence of str
        Channel identifier of each frame, from the per-frame functional groups; else empty.
    frame_groups : callable, optional
        Function of frame indices that returns their per-frame functional groups: they describe
        the parameters that the shared groups lack.

    Returns
    -------
    tuple of Channel

    """
    kind = channel_type_of(image)
    keyword = "SegmentNumber" if kind is ChannelTypes.SEGMENT else _IDENTIFIERS[kind][1]
    items: Sequence[Dataset]
    if kind is ChannelTypes.PARAMETER:
        items = _mappings(dicom.items(image, "SharedFunctionalGroupsSequence"))
        if not items and len(of_frames) and frame_groups is not None:
            _, firsts = np.unique(of_frames, return_index=True)
            items = _mappings(frame_groups(sorted(firsts.tolist())))
    else:
        items = dicom.items(image, {
            ChannelTypes.OPTICAL_PATH: "OpticalPathSequence",
            ChannelTypes.SEGMENT: "SegmentSequence",
        }[kind])  # fmt: skip
    identifiers = dicom.texts(items, keyword)
    found = tuple(Channel(kind, name or str(i + 1), items, i) for i, name in enumerate(identifiers))
    return found or (Channel(kind, "1", (_implied(keyword),), 0),)


def _implied(keyword: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    setattr(item, keyword, 1 if keyword == "SegmentNumber" else "1")
    return item


def shared_channel(image: Dataset) -> str | None:
    """Return the channel identifier of all frames, from the Shared Functional Groups Sequence.

    None where it is absent, or where a parametric map has several mappings of the same frames.
    """
    sequence, keyword = _IDENTIFIERS[channel_type_of(image)]
    named = [
        dicom.text(item, keyword)
        for group in dicom.items(image, "SharedFunctionalGroupsSequence")
        for item in dicom.items(group, sequence)
    ]
    return named[0] if len(named) == 1 else None


def have_other_channels(image: Dataset, other: Dataset) -> bool:
    """Whether no channel of an image is one of another: by identifier, description, wavelength."""
    here, there = (
        {channel.identifier: channel for channel in channels_of(each)} for each in (image, other)
    )
    return all(
        any(
            mine and theirs and mine != theirs
            for mine, theirs in (
                (here[each].description, there[each].description),
                (here[each].wavelength, there[each].wavelength),
            )
        )
        for each in here.keys() & there.keys()
    )


def _mappings(groups: Sequence[Dataset]) -> list[Dataset]:
    """Return the Real World Value Mapping items of functional groups, one per LUT Label."""
    labelled: dict[str, Dataset] = {}
    for group in groups:
        for item in dicom.items(group, "RealWorldValueMappingSequence"):
            labelled.setdefault(dicom.text(item, "LUTLabel") or "", item)
    return list(labelled.values())
