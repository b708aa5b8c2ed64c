"""Native words of which not all bits are pixels (PS3.5 8.1.1)."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from dicomslide.pixels import PixelFormat
from dicomslide.testing.encode import encode_frame
from tests.support.quirky import (
    BIG_ENDIAN,
    NATIVE,
    RLE,
    changed,
    open_stored,
    pixels_of,
    setting,
    write,
)

SHAPE, TILE = (32, 64), (16, 32)
DEFLATED, ENCAPSULATED = f"{NATIVE}.99", f"{NATIVE}.98"


def any_words(bits: int, seed: int = 1) -> np.ndarray:
    """Four frames in which every bit of a word may be set."""
    dtype = np.dtype(f"u{bits // 8}")
    return np.random.default_rng(seed).integers(0, 2**bits, (4, *TILE), dtype, endpoint=False)


def write_words(path, words, uid=NATIVE, **described):
    """An image of words as they are, described in another way."""
    bits = 8 * words.itemsize
    write(path, NATIVE if uid != BIG_ENDIAN else uid, shape=SHAPE, tile=TILE, samples=1, bits=bits)
    # big-endian bytes are the halves of 16-bit words (PS3.5 A.3)
    stored = words.view(">u2").astype("<u2") if uid == BIG_ENDIAN and bits == 8 else words
    order = ">" if uid == BIG_ENDIAN and bits > 8 else "<"

    def change(dataset):
        setting(**described)(dataset)
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
        if uid in (RLE, ENCAPSULATED):
            whole = PixelFormat(
                rows=TILE[0], columns=TILE[1], bits_allocated=bits, bits_stored=bits
            )
            frames = [encode_frame(frame[..., None], whole, uid) for frame in words]
            dataset.PixelData = encapsulate(frames)
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = uid

    changed(path, change)
    return path


def assembled(frames: np.ndarray) -> np.ndarray:
    """Put four frames, in rows, into their matrix."""
    rows = [np.concatenate([*frames[i : i + 2]], axis=1) for i in (0, 2)]
    return np.concatenate(rows)


def taken(words: np.ndarray, stored: int, high: int, *, signed: bool) -> np.ndarray:
    """The values that bits `high` − `stored` + 1 to `high` hold, bit by bit."""
    values = np.zeros(words.shape, np.int64)
    for bit in range(stored):
        weight = -(1 << bit) if signed and bit == stored - 1 else 1 << bit
        values += weight * (words.astype(np.int64) >> (high - stored + 1 + bit) & 1)
    return values


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(
    ("uid", "bits", "stored"),
    [
        (uid, *bits)
        for uid in (NATIVE, BIG_ENDIAN, DEFLATED, RLE)
        for bits in ((16, 12), (16, 15), (16, 8), (8, 5), (32, 20))
        if (uid, bits[0]) != (RLE, 32)  # which is none of RLE
    ],
)
def test_bits_above_those_stored_are_no_part_of_a_pixel(tmp_path, uid, signed, bits, stored):
    path = write_words(
        tmp_path / "image.dcm", any_words(bits), uid,
        BitsStored=stored, HighBit=stored - 1, PixelRepresentation=signed,
    )  # fmt: skip
    found = pixels_of(open_stored(path))[..., 0]
    expected = pydicom.dcmread(path).pixel_array
    np.testing.assert_array_equal(found, assembled(expected), strict=True)


@pytest.mark.parametrize("uid", [NATIVE, BIG_ENDIAN, DEFLATED, RLE, ENCAPSULATED])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("place", [(16, 12, 15), (16, 12, 13), (16, 1, 15), (8, 4, 6)])
def test_bits_below_those_stored_are_no_part_of_a_pixel(tmp_path, uid, signed, place):
    bits, stored, high = place
    words = any_words(bits)
    path = write_words(
        tmp_path / "image.dcm", words, uid,
        BitsStored=stored, HighBit=high, PixelRepresentation=int(signed),
    )  # fmt: skip
    found = pixels_of(open_stored(path))[..., 0]
    assert found.dtype == np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    np.testing.assert_array_equal(found, taken(assembled(words), stored, high, signed=signed))


@pytest.mark.parametrize(("stored", "high"), [(12, 7), (12, 16), (12, ...), (16, 15), (20, 19)])
def test_a_high_bit_without_room_for_bits_stored_is_not_believed(tmp_path, stored, high):
    words = any_words(16)
    path = write_words(tmp_path / "image.dcm", words, BitsStored=stored, HighBit=high)
    np.testing.assert_array_equal(
        pixels_of(open_stored(path))[..., 0], assembled(words) & (2 ** min(stored, 16) - 1)
    )
