"""What frames are asked for as: agreed on with each server, instance by instance."""

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
"""What frames are asked for as, one after the other, until a server agrees: nothing lossy."""
LOSSY_MEDIA_TYPES: tuple[MediaTypes, ...] = (("image/jpeg",), ("image/jls",), ("image/jp2",))
"""What frames of images that are lossy anyway are asked for as."""
DEFAULT: tuple[MediaTypes, ...] = (("*/*",), None)
"""At last, what server and client like best, unless they like to lose something."""
LONGEST_DOUBT = 12
"""Failures after which the pause isn't doubled any more until it is tried whether they passed."""
MOST_INSTANCES = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """What frames of an instance are asked for as."""

    media_types: MediaTypes
    doubts: int
    """How often something better was refused only by a failure, which may have passed."""
    until: float
    """When the better is tried again, by a clock that runs."""


class Negotiation:
    """What a server gives frames as, learnt from what it accepts and refuses.

    Parameters
    ----------
    clock : callable
        Seconds that run.

    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._agreed: OrderedDict[str, Agreement] = OrderedDict()  # by SOP Instance UID
        self._refused: set[MediaTypes] = set()  # by a server that has accepted another
        self._lock = ForkLock()

    def agreed_on(self, uid: str) -> Agreement | None:
        """Return what was agreed on for an instance, if that still holds."""
        with self._lock:
            found = self._agreed.get(uid)
            return None if found is None or self._clock() >= found.until else found

    def media_types(self, agreed: Agreement | None, *, lossy: bool) -> list[MediaTypes]:
        """Return what to ask for, what is most likely to be given first."""
        known = (*MEDIA_TYPES, *(LOSSY_MEDIA_TYPES if lossy else ()), *DEFAULT)
        with self._lock:
            hopeful = [each for each in known if each not in self._refused]
        first = [] if agreed is None else [agreed.media_types]
        return list(dict.fromkeys((*first, *hopeful, *known)))

    def agree(
        self, uid: str, media_types: MediaTypes, refused: set[MediaTypes], *, failed: bool
    ) -> None:
        """Agree on a media type: for a while only, if the server `failed` to give a better one."""
        with self._lock:
            known = self._agreed.get(uid, Agreement(media_types, 0, math.inf))
            if failed:  # the better is tried again with the next request, then after 1, 3, 7 ... s
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
