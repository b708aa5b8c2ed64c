"""Look-up of channels and focal planes by index, for images and slides."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.header.tiling import plane_tolerance

if TYPE_CHECKING:
    from dicomslide.header.channels import Channel

__all__ = ["ChannelsAndPlanes"]


class ChannelsAndPlanes:
    """Base class of objects with channels and focal planes."""

    @property
    def name(self) -> str:
        """Name of the object for messages."""
        raise NotImplementedError

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels."""
        raise NotImplementedError

    @property
    def focal_plane_offsets(self) -> tuple[float, ...]:
        """Offset of each focal plane from the slide surface along Z, in µm."""
        raise NotImplementedError

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return len(self.channels)

    @property
    def num_focal_planes(self) -> int:
        """Number of focal planes."""
        return len(self.focal_plane_offsets)

    def get_channel_identifier(self, channel_index: int) -> str:
        """Get identifier of a channel.

        Parameters
        ----------
        channel_index : int
            Zero-based index into channels, in the order of their items

        Returns
        -------
        str
            Optical Path Identifier, Segment Number or LUT Label

        Raises
        ------
        ValueError
            When no channel is found for `channel_index`

        """
        return self._channel(channel_index).identifier

    def get_focal_plane_offset(self, focal_plane_index: int) -> float:
        """Get z offset in slide coordinate system of a focal plane.

        Parameters
        ----------
        focal_plane_index : int
            Zero-based index into focal planes, from the glass slide towards the coverslip

        Returns
        -------
        float
            Offset from the slide surface along the Z axis in micrometers

        Raises
        ------
        ValueError
            When no focal plane is found for `focal_plane_index`

        """
        index = self._check(focal_plane_index, self.num_focal_planes, "focal plane")
        return self.focal_plane_offsets[index]

    def get_focal_plane_index(self, focal_plane_offset: float) -> int:
        """Get index of a focal plane.

        Parameters
        ----------
        focal_plane_offset : float
            Offset from the slide surface along the Z axis in micrometers

        Returns
        -------
        int
            Zero-based index of the nearest focal plane

        Raises
        ------
        ValueError
            When none lies within half the smallest distance between planes, or within 0.5 µm
            where there is one plane only

        """
        offsets = self.focal_plane_offsets
        nearest = self._nearest_plane(focal_plane_offset)
        tolerance = plane_tolerance(offsets)
        if not abs(offsets[nearest] - focal_plane_offset) <= tolerance + 1e-9:
            raise ValueError(
                f"{self.name}: no focal plane within {tolerance:g} µm of {focal_plane_offset} µm;"
                f" there are {list(offsets)}"
            )
        return nearest

    def _nearest_plane(self, offset: float) -> int:
        return int(np.argmin(np.abs(np.array(self.focal_plane_offsets) - offset)))

    def _channel(self, channel_index: int) -> Channel:
        return self.channels[self._check(channel_index, self.num_channels, "channel")]

    def _check(self, index: int, count: int, kind: str) -> int:
        if not 0 <= operator.index(index) < count:
            raise ValueError(f"{self.name}: no {kind} {index}; there are {count}, from 0 on")
        return operator.index(index)
