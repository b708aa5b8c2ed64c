"""False colours of fluorescence channels, by what they are called and by their wavelengths."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ChannelHint", "color_of_name", "color_of_wavelength", "false_colors"]

WHITE = "#FFFFFF"
SPARE = ("#0000FF", "#00FF00", "#FF0000", "#00FFFF", "#FF00FF", "#FFFF00")
"""Colours of channels of which nothing is known, in turn."""
SPECTRUM = (
    (480.0, "#0000FF"), (505.0, "#00FFFF"), (550.0, "#00FF00"), (580.0, "#FFFF00"),
    (605.0, "#FF8000"), (645.0, "#FF0000"),
)  # fmt: skip
"""Colours of emitted light up to a wavelength in nm."""
FAR_RED = "#FF00FF"
"""Colour of longer wavelengths, which the eye hardly sees: told from red."""
STOKES_SHIFT = 30.0
"""Typical distance from the illumination to the emission of a fluorochrome in nm."""
EMISSIONS = {
    "dapi": 461, "hoechst": 461, "amca": 448, "pacificblue": 455, "bfp": 448, "dna": 461,
    "cfp": 475, "spectrumaqua": 480,
    "fitc": 519, "gfp": 509, "egfp": 509, "cy2": 506, "spectrumgreen": 524, "sytoxgreen": 523,
    "yfp": 527, "cy3": 570, "tritc": 572, "pe": 578, "rhodamine": 576,
    "rfp": 583, "tdtomato": 581, "dsred": 583, "cy3.5": 596, "spectrumorange": 588,
    "mcherry": 610, "texasred": 615, "propidiumiodide": 617, "spectrumred": 612,
    "cy5": 670, "apc": 660, "cy5.5": 694, "cy7": 773, "draq5": 697, "percp": 677,
    "pecy5": 667, "pecy7": 785, "apccy7": 785,
}  # fmt: skip
"""Wavelength in nm at which fluorochromes emit most, by their names without blanks."""
NUMBERED = {
    # fluorochromes whose number is the excitation: Alexa Fluor 488, AF488, ATTO 647N, CF568, ...
    r"(?:alexa(?:fluor)?|af|atto|cf|dylight|star(?:red)?|janelia(?:fluor)?|jf)": STOKES_SHIFT,
    # ... and the emission: Opal 570, Qdot 655, Brilliant Violet 421
    r"(?:opal|qdot|qd|bv|brilliantviolet)": 0.0,
}
"""Families of fluorochromes, and the distance in nm from their number to their emission."""
WORDS = {
    "blue": "#0000FF", "green": "#00FF00", "red": "#FF0000", "cyan": "#00FFFF",
    "magenta": "#FF00FF", "yellow": "#FFFF00", "orange": "#FF8000",
    "brightfield": WHITE, "transmitted": WHITE, "transmission": WHITE,
    "autofluorescence": "#808080",
}  # fmt: skip
"""Colours by words in the names of channels."""


class ChannelHint(NamedTuple):
    """What is known of a channel that tells its false colour."""

    color: str = ""
    """Recommended colour, ``#RRGGBB``."""
    names: Sequence[str] = ()
    """Description, coded description, identifier; the first that tells a colour counts."""
    emission: float | None = None
    """Wavelength in nm that reaches the camera."""
    illumination: float | None = None
    """Wavelength in nm of the excitation or the illumination."""


def color_of_name(name: str) -> str | None:
    """Return the colour of a fluorochrome or a colour word in a name; None where it has none.

    Parameters
    ----------
    name : str
        Such as ``"DAPI"``, ``"CD8 (Alexa Fluor 647)"`` or ``"Opal570-CD3"``.

    """
    words = re.findall(r"[a-z]+[\d.]*|\d+", name.casefold())
    # names of two words are found, too: Texas Red, Alexa Fluor 647
    runs = ["".join(words[i : i + n]) for n in (3, 2, 1) for i in range(len(words) - n + 1)]
    for run in runs:
        found = re.match(r"([a-z]+?)(\d{3})[a-z]?$", run)
        for family, shift in NUMBERED.items():
            if found and re.fullmatch(family, found[1]):
                return color_of_wavelength(float(found[2]) + shift)
        known = EMISSIONS.get(re.sub(r"^(dapi|dna|hoechst)\d+$", r"\1", run))
        if known:
            return color_of_wavelength(known)
    return next((WORDS[word] for word in words if word in WORDS), None)


def color_of_wavelength(emission: float) -> str:
    """Return the colour of emitted light of a wavelength in nm, as ``#RRGGBB``."""
    return next((color for end, color in SPECTRUM if emission < end), FAR_RED)


def false_colors(channels: Sequence[ChannelHint]) -> list[str]:
    """Return a colour for each channel, as ``#RRGGBB``.

    It is the recommended one; else that of its name, of its emission, or of its illumination.
    Channels that tell none have one of six colours that no other channel has, as long as there is
    one; a single channel is white.

    Parameters
    ----------
    channels : sequence of ChannelHint
        The channels of an image.

    """
    known = [_known(channel) for channel in channels]
    if known == [None]:
        return [WHITE]
    free = [color for color in SPARE if color not in known]
    spare = itertools.cycle([*free, *(SPARE if len(free) < known.count(None) else ())] or SPARE)
    return [color or next(spare) for color in known]


def _known(channel: ChannelHint) -> str | None:
    if channel.color:
        return channel.color
    for name in channel.names:
        found = color_of_name(name)
        if found:
            return found
    if channel.emission:
        return color_of_wavelength(channel.emission)
    if channel.illumination:
        return color_of_wavelength(channel.illumination + STOKES_SHIFT)
    return None
