"""ICC profiles of scanners: colours that aren't those of sRGB."""

from __future__ import annotations

import struct

from dicomslide.testing import srgb_profile


def swapped_profile():
    """An RGB profile that isn't sRGB: the colorants of red and blue change places."""
    profile = bytearray(srgb_profile())
    (count,) = struct.unpack_from(">I", profile, 128)
    at = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = at[b"rXYZ"] + 4, at[b"bXYZ"] + 4
    profile[red : red + 8], profile[blue : blue + 8] = (
        profile[blue : blue + 8],
        profile[red : red + 8],
    )
    return bytes(profile)


def dimmed_profile():
    """An RGB profile that isn't sRGB: its three curves are a plain gamma of 1.2."""
    profile = bytearray(srgb_profile())
    (count,) = struct.unpack_from(">I", profile, 128)
    for i in range(count):
        signature, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if signature in (b"rTRC", b"gTRC", b"bTRC"):
            curve = struct.pack(">4sIIH", b"curv", 0, 1, round(1.2 * 256))
            profile[offset : offset + min(size, len(curve))] = curve[:size]
    return bytes(profile)
