"""Media types in which frames are requested, determined for each server and instance."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AS_STORED", "Agreement", "MediaTypes", "Negotiation"]

MediaTypes: TypeAlias = tuple[str | tuple[str, str], ...] | None

_UID = "1.2.840.10008.1.2"
AS_STORED: MediaTypes = (("application/octet-stream", "*"),)  # byte for byte
MEDIA_TYPES: tuple[MediaTypes, ...] = (
    AS_STORED,
    (("*/*", "*"),),
    ("application/octet-stream",),  # decoded by the server
    (("image/jls", f"{_UID}.4.80"),),
    (("image/jp2", f"{_UID}.4.90"),),
    (("image/jpeg", f"{_UID}.4.70"),),
    (("image/dicom-rle", f"{_UID}.5"),),
)
"""Lossless media types, requested one after the other until the server sends frames."""
LOSSY_MEDIA_TYPES: tuple[MediaTypes, ...] = (("image/jpeg",), ("image/jls",), ("image/jp2",))
"""Further media types for images that are lossy already."""
DEFAULT: tuple[MediaTypes, ...] = (("*/*",), None)
"""Last media types: the default of the server or client; lossy frames are refused afterwards."""
LONGEST_DOUBT = 12
"""Number of failures after which the pause before the next trial isn't doubled any more."""
MOST_INSTANCES = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """Media type in which frames of an instance are requested."""

    media_types: MediaTypes
    doubts: int
    """Number of times that a better media type failed for a reason that may be temporary."""
    until: float
    """Time at which the better one is tried again, by a monotonic clock."""


class Negotiation:
    """Media types that a server accepts, by its replies.

    Parameters
    ----------
    clock : callable
        Returns the seconds of a monotonic clock.

    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._agreed: OrderedDict[str, Agreement] = OrderedDict()  # by SOP Instance UID
        self._refused: set[MediaTypes] = set()  # by a server that has accepted another
        self._lock = ForkLock()

    def agreed_on(self, uid: str) -> Agreement | None:
        """Return the agreement on an instance; None if there is none, or it has expired."""
        with self._lock:
            found = self._agreed.get(uid)
            return None if found is None or self._clock() >= found.until else found

    def media_types(self, agreed: Agreement | None, *, lossy: bool) -> list[MediaTypes]:
        """Return media types to request, the most likely to be accepted first."""
        known = (*MEDIA_TYPES, *(LOSSY_MEDIA_TYPES if lossy else ()), *DEFAULT)
        with self._lock:
            hopeful = [each for each in known if each not in self._refused]
        first = [] if agreed is None else [agreed.media_types]
        return list(dict.fromkeys((*first, *hopeful, *known)))

    def agree(
        self, uid: str, media_types: MediaTypes, refused: set[MediaTypes], *, failed: bool
    ) -> None:
        """Record an accepted media type; it expires if a better one `failed` temporarily."""
        with self._lock:
            known = self._agreed.get(uid, Agreement(media_types, 0, math.inf))
            if failed:  # the better one is tried again at once, then after 1, 3, 7 ... s
                doubts = min(known.doubts + 1, LONGEST_DOUBT)
                until = self._clock() + 2 ** (doubts - 1) - 1
                known = Agreement(media_types, doubts, until)
            elif known.media_types != media_types:
                known = Agreement(media_types, 0, math.inf)
            self._agreed[uid] = known
            self._agreed.move_to_end(uid)
            if len(self._agreed) > MOST_INSTANCES:
                self._agreed.popitem(last=False)
            good = {each.media_types for each in self._agreed.values()}
            self._refused = (self._refused | refused) - good
