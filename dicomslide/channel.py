"""The channels of an image: optical paths, segments, or parameters."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dicomslide import utils
from dicomslide.enum import ChannelTypes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

__all__ = ["Channel", "channels_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Channel:
    """One channel of an image."""

    type: ChannelTypes
    identifier: str
    """Optical Path Identifier, Segment Number, or LUT Label."""
    item: Dataset | None = None
    """The item that describes it; None where the header has none."""

    @property
    def description(self) -> str | None:
        """What a person calls it: Optical Path Description, Segment Label, LUT Explanation."""
        if self.item is None:
            return None
        keyword = {
            ChannelTypes.OPTICAL_PATH: "OpticalPathDescription",
            ChannelTypes.SEGMENT: "SegmentLabel",
            ChannelTypes.PARAMETER: "LUTExplanation",
        }[self.type]
        return utils.text(self.item, keyword)

    @property
    def wavelength(self) -> float | None:
        """Illumination Wave Length in nm; None where it is absent, or 0."""
        return (
            None if self.item is None else utils.number(self.item, "IlluminationWaveLength") or None
        )

    @property
    def icc_profile(self) -> bytes | None:
        """ICC Profile of an optical path."""
        return None if self.item is None else self.item.get("ICCProfile")


def channels_of(image: Dataset) -> tuple[Channel, ...]:
    """Return the channels of an image, in the order of their items.

    An image without any item has one channel, an implied optical path "1".
    """
    sop_class = utils.text(image, "SOPClassUID")
    if sop_class == utils.PARAMETRIC_MAP_STORAGE:
        kind, keyword, items = ChannelTypes.PARAMETER, "LUTLabel", _parameters(image)
    elif sop_class in utils.SEGMENTATION_STORAGES:
        kind, keyword = ChannelTypes.SEGMENT, "SegmentNumber"
        items = utils.items(image, "SegmentSequence")
    else:
        kind, keyword = ChannelTypes.OPTICAL_PATH, "OpticalPathIdentifier"
        items = utils.items(image, "OpticalPathSequence")
    found = tuple(
        Channel(kind, utils.text(item, keyword) or str(i + 1), item) for i, item in enumerate(items)
    )
    return found or (Channel(kind, "1"),)


def _parameters(image: Dataset) -> Sequence[Dataset]:
    """Return the mappings of a parametric map, one for each LUT Label, in item order."""
    labelled: dict[str, Dataset] = {}
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in utils.items(image, keyword):
            for item in utils.items(group, "RealWorldValueMappingSequence"):
                labelled.setdefault(utils.text(item, "LUTLabel") or "", item)
    return list(labelled.values())
