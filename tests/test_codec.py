"""Frames to pixels: every transfer syntax, against the source or an independent decoder."""

from __future__ import annotations

import functools
import io
import pickle
import struct
import subprocess
import sys

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import UID

from dicomslide.errors import FrameDecodeError, FramePositionError, FrameReadError
from dicomslide.pixels import DECODERS, PixelFormat, decode_frame, scratch_memory
from dicomslide.pixels.codestream import (
    ends_image,
    has_plain_tile_parts,
    is_lossy,
    jpeg_xl_size,
    parse_jpeg2000,
)
from dicomslide.testing import encode_frame

ROOT = "1.2.840.10008.1.2"
NATIVE = f"{ROOT}.1"
BIG_ENDIAN = f"{ROOT}.2"
DEFLATED_FRAME = f"{ROOT}.8.1"
RLE = f"{ROOT}.5"
BASELINE, EXTENDED = f"{ROOT}.4.50", f"{ROOT}.4.51"
JPEG_LOSSLESS = f"{ROOT}.4.57", f"{ROOT}.4.70"
JPEG_LS, JPEG_LS_NEAR = f"{ROOT}.4.80", f"{ROOT}.4.81"
J2K_LOSSLESS, J2K = f"{ROOT}.4.90", f"{ROOT}.4.91"
HTJ2K_LOSSLESS, HTJ2K_RPCL, HTJ2K = (f"{ROOT}.4.{n}" for n in (201, 202, 203))
JPEG_XL = tuple(f"{ROOT}.4.{n}" for n in (110, 111, 112))
LOSSY = (BASELINE, EXTENDED, JPEG_LS_NEAR, J2K, HTJ2K, *JPEG_XL[1:])
LOSSLESS = [uid for uid in DECODERS if uid not in LOSSY]
ENCAPSULATED = [uid for uid, decoder in DECODERS.items() if decoder.encapsulated]
WITH_END_MARKER = [uid for uid in ENCAPSULATED if ".4." in uid and uid not in JPEG_XL]
END_OF_IMAGE = b"\xff\xd9"

ROWS, COLUMNS = 32, 48
_y, _x = np.mgrid[:ROWS, :COLUMNS]
RGB = np.stack([_y * 7, _x * 5, 255 - _y * 3 - _x * 2], -1).astype(np.uint8)
SOURCES = {
    "rgb": RGB,
    "grey": RGB[:, :, 1:2].copy(),
    "grey 16": (_y * 2011 + _x * 41)[:, :, None].astype(np.uint16),
    "grey 12 in 16": (_y * 127 + _x)[:, :, None].astype(np.uint16),
}


def format_of(array, **changes):
    """How a header describes an array."""
    values = dict(
        rows=array.shape[0],
        columns=array.shape[1],
        samples=array.shape[2],
        bits_allocated=8 * array.itemsize,
        bits_stored=12 if array.dtype == np.uint16 and array.max() < 4096 else 8 * array.itemsize,
        photometric="RGB" if array.shape[2] == 3 else "MONOCHROME2",
    )
    return PixelFormat(**(values | changes))


def source_for(uid):
    """The array with which a transfer syntax is tried where one is enough."""
    return SOURCES["grey 12 in 16" if uid == EXTENDED else "rgb"]


@functools.cache
def frame_of(uid, kind=None):
    array = source_for(uid) if kind is None else SOURCES[kind]
    return encode_frame(array, format_of(array), uid)


def decoded_by_pydicom(frame, pixel_format, uid):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(uid)
    dataset.Rows, dataset.Columns = pixel_format.rows, pixel_format.columns
    dataset.SamplesPerPixel = pixel_format.samples
    dataset.PhotometricInterpretation = pixel_format.photometric
    if pixel_format.samples == 3:
        dataset.PlanarConfiguration = int(pixel_format.planar)
    dataset.BitsAllocated = pixel_format.bits_allocated
    dataset.BitsStored = pixel_format.bits_stored
    dataset.HighBit = pixel_format.bits_stored - 1
    dataset.PixelRepresentation = int(pixel_format.signed)
    dataset.NumberOfFrames = 1
    if DECODERS[uid].encapsulated:
        dataset.PixelData = encapsulate([frame])
    else:
        dataset.PixelData = frame + b"\0" * (len(frame) % 2)
        dataset["PixelData"].VR = "OW" if pixel_format.bits_allocated > 8 else "OB"
    return dataset.pixel_array.reshape(pixel_format.shape)


def difference(one, other):
    return int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())


# -- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rgb", "grey"])
@pytest.mark.parametrize("more", [0, 3])
def test_a_frame_is_decoded_into_scratch_memory(kind, more):
    array = SOURCES[kind]
    declared = format_of(array, rows=ROWS + more)
    scratch = scratch_memory(declared)
    scratch[...] = 99
    assert scratch.shape == declared.shape
    assert scratch.ctypes.data % 32  # or the decoder writes past the cache
    decoded = decode_frame(frame_of(BASELINE, kind), declared, BASELINE, scratch)
    assert np.shares_memory(decoded, scratch)
    expected = decode_frame(frame_of(BASELINE, kind), format_of(array), BASELINE)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("uid", LOSSLESS)
def test_lossless_frames_decode_to_their_source(uid, kind):
    array = SOURCES[kind]
    decoded = decode_frame(frame_of(uid, kind), format_of(array), uid)
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("kind", ["rgb", "grey"])
def test_baseline_decodes_as_pillow_does(kind):
    array = SOURCES[kind]
    frame = frame_of(BASELINE, kind)
    decoded = decode_frame(frame, format_of(array, photometric="YBR_FULL_422"), BASELINE)
    with Image.open(io.BytesIO(frame)) as image:
        np.testing.assert_array_equal(decoded, np.asarray(image).reshape(array.shape))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_of_pillow_decodes_as_pillow_does(progressive, subsampling):
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "JPEG", progressive=progressive, subsampling=subsampling)
    decoded = decode_frame(stream.getvalue(), format_of(RGB, photometric="YBR_FULL_422"), BASELINE)
    with Image.open(stream) as image:
        np.testing.assert_array_equal(decoded, np.asarray(image))


@pytest.mark.parametrize(
    ("uid", "kind", "tolerance"),
    [
        (EXTENDED, "grey 12 in 16", 1),  # another inverse cosine transform
        (JPEG_LS_NEAR, "rgb", 0),
        (JPEG_LS_NEAR, "grey 16", 0),
        (J2K, "rgb", 0),
        (J2K, "grey", 0),
        (J2K, "grey 16", 0),
        (HTJ2K, "rgb", 1),
        (HTJ2K, "grey", 1),
        (HTJ2K, "grey 16", 1),
        (HTJ2K_LOSSLESS, "rgb", 0),
        (J2K_LOSSLESS, "rgb", 0),
        (JPEG_LOSSLESS[0], "rgb", 0),
        (JPEG_LOSSLESS[1], "grey 16", 0),
        (RLE, "rgb", 0),
    ],
)
@pytest.mark.needs("pylibjpeg")
def test_frames_decode_as_pydicom_decodes_them(uid, kind, tolerance):
    array = SOURCES[kind]
    frame, pixel_format = frame_of(uid, kind), format_of(array)
    decoded = decode_frame(frame, pixel_format, uid)
    assert decoded.dtype == array.dtype
    assert difference(decoded, decoded_by_pydicom(frame, pixel_format, uid)) <= tolerance


@pytest.mark.parametrize("kind", ["rgb", "grey"])
@pytest.mark.parametrize("uid", [BASELINE, JPEG_LS_NEAR, J2K, HTJ2K, *JPEG_XL[1:]])
def test_lossy_frames_decode_to_nearly_their_source(uid, kind):
    array = SOURCES[kind]
    decoded = decode_frame(frame_of(uid, kind), format_of(array), uid)
    error = np.abs(decoded.astype(float) - array)
    assert error.mean() < 4
    assert error.max() < 40


def test_every_decoder_has_an_encoder_that_is_tried():
    assert len(LOSSLESS) + len(LOSSY) == len(DECODERS) == 21


# -- truncation ------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("uid", ENCAPSULATED)
def test_truncated_frames_raise(uid, fraction):
    frame = frame_of(uid)
    with pytest.raises(FrameDecodeError):
        decode_frame(frame[: int(len(frame) * fraction)], format_of(source_for(uid)), uid)


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("uid", WITH_END_MARKER)
def test_truncated_frames_with_an_end_marker_raise(uid, fraction):
    frame = frame_of(uid)
    cut = frame[: int(len(frame) * fraction)] + END_OF_IMAGE
    with pytest.raises(FrameDecodeError):
        decode_frame(cut, format_of(source_for(uid)), uid)


@pytest.mark.parametrize("uid", [*JPEG_LOSSLESS, EXTENDED, JPEG_LS, JPEG_LS_NEAR])
def test_missing_end_marker_raises_where_truncation_is_not_told_otherwise(uid):
    with pytest.raises(FrameDecodeError, match="EOI"):
        decode_frame(frame_of(uid)[:-2], format_of(source_for(uid)), uid)


def cut_in_scan_header(length):
    frame = frame_of(BASELINE)
    return frame[: frame.index(b"\xff\xda") + length] + END_OF_IMAGE


@pytest.mark.parametrize("length", range(2, 15))
def test_baseline_cut_in_its_scan_header_raises(length):
    with pytest.raises(FrameDecodeError):
        decode_frame(cut_in_scan_header(length), format_of(RGB), BASELINE)


def with_odd_scan_parameters(frame):
    """Se and Ah/Al of which libjpeg only warns."""
    end = frame.index(b"\xff\xda") + 2 + 12
    return frame[: end - 3] + b"\x00\x00\x00" + frame[end:]


def test_wrong_scan_parameters_of_baseline_are_harmless():
    expected = decode_frame(frame_of(BASELINE), format_of(RGB), BASELINE)
    decoded = decode_frame(with_odd_scan_parameters(frame_of(BASELINE)), format_of(RGB), BASELINE)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("end", [b"", END_OF_IMAGE])
def test_wrong_scan_parameters_do_not_hide_truncation(end):
    frame = with_odd_scan_parameters(frame_of(BASELINE))
    with pytest.raises(FrameDecodeError):
        decode_frame(frame[: int(len(frame) * 0.85)] + end, format_of(RGB), BASELINE)


@pytest.mark.parametrize("kind", ["rgb", "grey"])
def test_baseline_without_end_marker_decodes(kind):
    array, frame = SOURCES[kind], frame_of(BASELINE, kind)
    assert frame.endswith(END_OF_IMAGE)
    expected = decode_frame(frame, format_of(array), BASELINE)
    np.testing.assert_array_equal(decode_frame(frame[:-2], format_of(array), BASELINE), expected)


@pytest.mark.parametrize("padding", [1, 2, 8])
@pytest.mark.parametrize("uid", DECODERS)
def test_zeros_behind_a_frame_are_ignored(uid, padding):
    pixel_format = format_of(source_for(uid))
    np.testing.assert_array_equal(
        decode_frame(frame_of(uid) + bytes(padding), pixel_format, uid),
        decode_frame(frame_of(uid), pixel_format, uid),
    )


# -- codestream against header ---------------------------------------------------------------

KNOW_THEIR_SIZE = [uid for uid in ENCAPSULATED if ".4." in uid]


@pytest.mark.parametrize(("rows", "columns"), [(ROWS - 1, COLUMNS), (ROWS, COLUMNS - 1), (8, 8)])
@pytest.mark.parametrize("uid", KNOW_THEIR_SIZE)
def test_codestream_larger_than_the_tile_raises(uid, rows, columns):
    pixel_format = format_of(source_for(uid), rows=rows, columns=columns)
    with pytest.raises(FrameDecodeError, match=rf"{ROWS} × {COLUMNS}.*{rows} × {columns}"):
        decode_frame(frame_of(uid), pixel_format, uid)


@pytest.mark.parametrize("uid", KNOW_THEIR_SIZE)
def test_codestream_smaller_than_the_tile_gives_the_smaller_array(uid):
    array = source_for(uid)
    pixel_format = format_of(array, rows=2 * ROWS, columns=COLUMNS + 5)
    np.testing.assert_array_equal(
        decode_frame(frame_of(uid), pixel_format, uid),
        decode_frame(frame_of(uid), format_of(array), uid),
    )


@pytest.mark.parametrize("uid", [NATIVE, BIG_ENDIAN, RLE, DEFLATED_FRAME, f"{ROOT}.1.98"])
def test_too_few_pixels_raise_where_the_frame_has_no_size_of_its_own(uid):
    with pytest.raises(FrameDecodeError):
        decode_frame(frame_of(uid), format_of(RGB, rows=ROWS + 1), uid)


@pytest.mark.parametrize(("stored", "declared"), [("rgb", "grey"), ("grey", "rgb")])
@pytest.mark.parametrize("uid", [uid for uid in KNOW_THEIR_SIZE if uid != EXTENDED] + [RLE])
def test_wrong_number_of_samples_raises(uid, stored, declared):
    with pytest.raises(FrameDecodeError):
        decode_frame(frame_of(uid, stored), format_of(SOURCES[declared]), uid)


@pytest.mark.parametrize(
    "uid",
    [uid for uid in KNOW_THEIR_SIZE if uid not in (BASELINE, EXTENDED)] + [RLE],
)
def test_more_bits_than_allocated_raise(uid):
    pixel_format = format_of(SOURCES["grey"])
    with pytest.raises(FrameDecodeError):
        decode_frame(frame_of(uid, "grey 16"), pixel_format, uid)


def test_twelve_bit_jpeg_in_eight_bit_image_raises():
    with pytest.raises(FrameDecodeError, match="12 bits"):
        decode_frame(frame_of(EXTENDED), format_of(SOURCES["grey"]), EXTENDED)


def test_eight_bit_codestream_in_sixteen_bit_image_is_widened():
    pixel_format = format_of(SOURCES["grey"], bits_allocated=16, bits_stored=8)
    decoded = decode_frame(frame_of(J2K_LOSSLESS, "grey"), pixel_format, J2K_LOSSLESS)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, SOURCES["grey"])


# -- garbage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"", b"\0", b"\xff", b"garbage!" * 4, bytes(64)])
@pytest.mark.parametrize("uid", DECODERS)
def test_garbage_raises(uid, garbage):
    with pytest.raises(FrameDecodeError):
        decode_frame(garbage, format_of(source_for(uid)), uid)


def decode_or_refuse(data, uid):
    pixel_format = format_of(source_for(uid))
    try:
        decoded = decode_frame(data, pixel_format, uid)
    except FrameDecodeError:
        return
    assert decoded.dtype == pixel_format.dtype
    assert decoded.ndim == 3
    assert decoded.shape[2] == pixel_format.samples
    assert 0 < decoded.shape[0] <= ROWS
    assert 0 < decoded.shape[1] <= COLUMNS


MAGIC = {
    ".4.5": b"\xff\xd8\xff",
    ".4.7": b"\xff\xd8\xff",
    ".4.8": b"\xff\xd8\xff",
    ".4.9": b"\xff\x4f\xff\x51",
    ".4.2": b"\xff\x4f\xff\x51",
    ".4.1": b"\xff\x0a",
}


@pytest.mark.parametrize("uid", ENCAPSULATED)
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=400), magic=st.booleans())
def test_random_bytes_decode_lawfully_or_raise(uid, data, magic):
    start = MAGIC.get(uid[len(ROOT) :][:4], b"") if magic else b""
    decode_or_refuse(start + data, uid)


@pytest.mark.parametrize("uid", ENCAPSULATED)
@settings(max_examples=40, deadline=None)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    start=st.floats(0, 0.2),
    stop=st.floats(0.5, 1),
    end=st.sampled_from([b"", END_OF_IMAGE]),
)
@example(flips=[], start=0.0, stop=1.0, end=b"")
def test_damaged_frames_decode_lawfully_or_raise(uid, flips, start, stop, end):
    data = bytearray(frame_of(uid))
    for at, value in flips:
        data[int(at * len(data))] = value
    first = 0 if start < 0.1 else int(start * len(data))
    decode_or_refuse(bytes(data[first : int(stop * len(data))]) + end, uid)


def patched(uid, changes):
    """A frame with other bytes at places counted from the start."""
    data = bytearray(frame_of(uid))
    for at, value in changes.items():
        data[at : at + len(value)] = value
    return bytes(data)


LETHAL = {
    "RLE segment beyond the frame": (RLE, {12: struct.pack("<I", 0x90000000)}),
    "RLE segment at the end": (RLE, {12: struct.pack("<I", 1 << 20)}),
    "RLE segments in descending order": (RLE, {8: struct.pack("<I", 3000)}),
    "RLE segment within the header": (RLE, {4: struct.pack("<I", 0)}),
    "HTJ2K tile grid of senseless size": (
        HTJ2K_LOSSLESS,
        {24: b"\0\xa6\0\0\x18\0\x59\x10\xaf"},
    ),
}


@pytest.mark.parametrize("case", LETHAL)
def test_damage_neither_ends_nor_stops_the_process(case):
    """In a process of its own, for a decoder in C may crash or go on for ever."""
    uid, changes = LETHAL[case]
    code = (
        "import sys, dicomslide.pixels as c\n"
        "from dicomslide.errors import FrameDecodeError\n"
        f"f = c.PixelFormat(rows={ROWS}, columns={COLUMNS}, samples=3, photometric='RGB')\n"
        "try:\n"
        f"    c.decode_frame(sys.stdin.buffer.read(), f, {uid!r})\n"
        "except FrameDecodeError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=patched(uid, changes),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, b"refused")


# -- colour of JPEG --------------------------------------------------------------------------


def segments(jpeg):
    """(marker, start, end) of the segments before the entropy-coded data."""
    at = 2
    while True:
        marker = jpeg[at + 1]
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield marker, at, end
        if marker == 0xDA:
            return
        at = end


def bare(jpeg):
    """Without application markers."""
    kept = [jpeg[at:end] for marker, at, end in segments(jpeg) if not 0xE0 <= marker <= 0xEF]
    *_, (_, _, end) = segments(jpeg)
    return jpeg[:2] + b"".join(kept) + jpeg[end:]


def with_ids(jpeg, ids):
    """With other component identifiers in SOF and SOS."""
    data = bytearray(jpeg)
    for marker, at, _ in segments(jpeg):
        if marker in (0xC0, 0xDA):
            first, step = (at + 10, 3) if marker == 0xC0 else (at + 5, 2)
            for i, identifier in enumerate(ids):
                data[first + i * step] = identifier
    return bytes(data)


def marked(jpeg, *markers):
    return jpeg[:2] + b"".join(markers) + jpeg[2:]


JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
ADOBE = [b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) for transform in (0, 1)]


def jpeg_of(stored, subsampling="444"):
    """A baseline JPEG of RGB, stored as that or as YCbCr, without markers and with ids 1, 2, 3."""
    array = RGB
    if stored == "YCbCr":
        jpeg = simplejpeg.encode_jpeg(array, 98, colorspace="RGB", colorsubsampling=subsampling)
    else:
        jpeg = imagecodecs.jpeg8_encode(array, level=98, colorspace="RGB", outcolorspace="RGB")
    return with_ids(bare(bytes(jpeg)), (1, 2, 3))


COLOURS = {
    "Adobe 1, claimed RGB": (marked(jpeg_of("YCbCr"), ADOBE[1]), "RGB"),
    "Adobe 1, claimed YBR": (marked(jpeg_of("YCbCr"), ADOBE[1]), "YBR_FULL_422"),
    "Adobe 0, claimed YBR": (marked(jpeg_of("RGB"), ADOBE[0]), "YBR_FULL_422"),
    "Adobe 0, claimed RGB": (marked(jpeg_of("RGB"), ADOBE[0]), "RGB"),
    "JFIF, claimed RGB": (marked(jpeg_of("YCbCr"), JFIF), "RGB"),
    "JFIF, claimed YBR": (marked(jpeg_of("YCbCr"), JFIF), "YBR_FULL_422"),
    "JFIF and Adobe 0, claimed RGB": (marked(jpeg_of("RGB"), JFIF, ADOBE[0]), "RGB"),
    "JFIF and Adobe 0, claimed YBR": (marked(jpeg_of("RGB"), JFIF, ADOBE[0]), "YBR_FULL_422"),
    "Adobe 0 and JFIF, claimed YBR": (marked(jpeg_of("RGB"), ADOBE[0], JFIF), "YBR_FULL_422"),
    "JFIF and Adobe 1, claimed RGB": (marked(jpeg_of("YCbCr"), JFIF, ADOBE[1]), "RGB"),
    "4:2:0, claimed RGB": (jpeg_of("YCbCr", "420"), "RGB"),
    "4:2:2, claimed RGB": (jpeg_of("YCbCr", "422"), "RGB"),
    "4:2:0 with ids RGB, claimed RGB": (with_ids(jpeg_of("YCbCr", "420"), b"RGB"), "RGB"),
    "ids RGB, claimed YBR": (with_ids(jpeg_of("RGB"), b"RGB"), "YBR_FULL_422"),
    "ids RGB, claimed RGB": (with_ids(jpeg_of("RGB"), b"RGB"), "RGB"),
    "nothing, claimed RGB": (jpeg_of("RGB"), "RGB"),
    "nothing, claimed YBR 422": (jpeg_of("YCbCr"), "YBR_FULL_422"),
    "nothing, claimed YBR": (jpeg_of("YCbCr"), "YBR_FULL"),
    "other ids, claimed RGB": (with_ids(jpeg_of("RGB"), (0, 1, 2)), "RGB"),
    "other ids, claimed YBR": (with_ids(jpeg_of("YCbCr"), (0, 1, 2)), "YBR_FULL_422"),
}


@pytest.mark.parametrize("case", COLOURS)
def test_colour_of_jpeg_is_that_of_the_codestream(case):
    jpeg, photometric = COLOURS[case]
    decoded = decode_frame(jpeg, format_of(RGB, photometric=photometric), BASELINE)
    assert difference(decoded, RGB) <= 12


def test_colour_cases_differ_where_they_are_taken_for_each_other():
    """What the test above would see if a branch were wrong."""
    jpeg = jpeg_of("RGB")
    wrong = decode_frame(jpeg, format_of(RGB, photometric="YBR_FULL_422"), BASELINE)
    assert difference(wrong, RGB) > 60


@pytest.mark.parametrize("stored", ["RGB", "YBR_FULL"])
def test_lossless_jpeg_of_ybr_becomes_rgb(stored):
    array = RGB if stored == "RGB" else convert_color_space(RGB, "RGB", "YBR_FULL")
    frame = bare(
        bytes(imagecodecs.jpeg8_encode(array, lossless=True, colorspace="RGB", outcolorspace="RGB"))
    )
    frame = with_lossless_ids(frame)
    pixel_format = format_of(RGB, photometric=stored)
    decoded = decode_frame(frame, pixel_format, JPEG_LOSSLESS[1])
    assert difference(decoded, RGB) <= (0 if stored == "RGB" else 3)


def with_lossless_ids(jpeg):
    """With component identifiers 1, 2, 3, which don't tell colours."""
    data = bytearray(jpeg)
    for marker, at, _ in segments(jpeg):
        if marker in (0xC3, 0xDA):
            first, step = (at + 10, 3) if marker == 0xC3 else (at + 5, 2)
            data[first : first + 3 * step : step] = bytes((1, 2, 3))
    return bytes(data)


@pytest.mark.parametrize("uid", [RLE, JPEG_LS])
def test_lossless_frames_stored_as_ybr_become_rgb(uid):
    ybr = convert_color_space(RGB, "RGB", "YBR_FULL")
    frame = encode_frame(ybr, format_of(ybr), uid)
    decoded = decode_frame(frame, format_of(ybr, photometric="YBR_FULL"), uid)
    np.testing.assert_array_equal(decoded, convert_color_space(ybr, "YBR_FULL", "RGB"))


# -- JPEG 2000 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mct", "photometric"),
    [
        (True, "YBR_RCT"),
        (True, "YBR_ICT"),
        (True, "RGB"),
        (True, "YBR_FULL_422"),
        (True, "YBR_FULL"),
        (False, "RGB"),
        (False, "YBR_FULL_422"),  # OrthancWSI: RGB under this claim
        (False, "YBR_RCT"),
    ],
)
def test_components_of_jpeg_2000_are_rgb(mct, photometric):
    frame = bytes(imagecodecs.jpeg2k_encode(RGB, codecformat="j2k", reversible=True, mct=mct))
    decoded = decode_frame(frame, format_of(RGB, photometric=photometric), J2K_LOSSLESS)
    np.testing.assert_array_equal(decoded, RGB)


def test_jpeg_2000_stored_as_ybr_without_transform_becomes_rgb():
    ybr = convert_color_space(RGB, "RGB", "YBR_FULL")
    frame = bytes(imagecodecs.jpeg2k_encode(ybr, codecformat="j2k", reversible=True, mct=False))
    decoded = decode_frame(frame, format_of(RGB, photometric="YBR_FULL"), J2K_LOSSLESS)
    np.testing.assert_array_equal(decoded, convert_color_space(ybr, "YBR_FULL", "RGB"))


@pytest.mark.parametrize("uid", [HTJ2K_LOSSLESS, HTJ2K_RPCL, HTJ2K])
@pytest.mark.parametrize("stored", [J2K_LOSSLESS, J2K])
def test_plain_jpeg_2000_under_a_htj2k_uid_decodes(uid, stored):
    np.testing.assert_array_equal(
        decode_frame(frame_of(stored), format_of(RGB), uid),
        decode_frame(frame_of(stored), format_of(RGB), stored),
    )


def test_htj2k_under_a_jpeg_2000_uid_decodes():
    decoded = decode_frame(frame_of(HTJ2K_LOSSLESS), format_of(RGB), J2K_LOSSLESS)
    np.testing.assert_array_equal(decoded, RGB)


def test_jp2_boxes_around_jpeg_2000_are_passed_over():
    frame = bytes(imagecodecs.jpeg2k_encode(RGB, codecformat="jp2", reversible=True))
    np.testing.assert_array_equal(decode_frame(frame, format_of(RGB), J2K_LOSSLESS), RGB)


@pytest.mark.parametrize("samples", [1, 3])
def test_lossy_htj2k_does_not_wrap_around(samples):
    rng = np.random.default_rng(0)
    array = np.where(rng.random((64, 64, samples)) < 0.5, 0, 255).astype(np.uint8)
    frame = encode_frame(array, format_of(array), HTJ2K)
    decoded = decode_frame(frame, format_of(array), HTJ2K)
    assert difference(decoded, array) < 64
    coarse = imagecodecs.htj2k_encode(np.squeeze(array), reversible=False, level=0.02)
    assert difference(decode_frame(bytes(coarse), format_of(array), HTJ2K), array) < 160


# -- HTJ2K: OpenJPH where it may be used, which must not be told from OpenJPEG -----------------

_rng = np.random.default_rng(0)
_slope = np.add.outer(np.arange(64) * 2, np.arange(128))[:, :, None]
LARGER = {  # of a size that is plain for OpenJPH
    "rgb": (_slope + _rng.integers(0, 40, (64, 128, 3))).astype(np.uint8),
    "grey": (_slope + _rng.integers(0, 9, (64, 128, 1))).astype(np.uint8),
    "grey 16": _rng.integers(0, 1 << 16, (64, 128, 1), np.uint16),
    "extremes": _rng.choice([0, 255], (64, 128, 3)).astype(np.uint8),
}


def htj2k_of(array, **options):
    return bytes(imagecodecs.htj2k_encode(np.squeeze(array), **({"reversible": True} | options)))


def by_openjpeg(frame):
    pixels = imagecodecs.jpeg2k_decode(frame)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def is_plain(frame):
    view = memoryview(frame)
    header = parse_jpeg2000(view)
    return header.plain_htj2k and has_plain_tile_parts(view, header.tile_parts)


PLAIN = {
    "alone": {},
    "in parts": dict(tilepart=1, tlm=True),
    "few levels": dict(resolutions=3),
    "without a colour transform": dict(rgb=False),
}


@pytest.mark.parametrize("options", PLAIN)
@pytest.mark.parametrize("kind", LARGER)
def test_plain_htj2k_decodes_to_its_source_and_as_openjpeg_has_it(kind, options):
    array = LARGER[kind]
    frame = htj2k_of(array, **PLAIN[options])
    assert is_plain(frame)
    decoded = decode_frame(frame, format_of(array), HTJ2K_LOSSLESS)
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)
    np.testing.assert_array_equal(decoded, by_openjpeg(frame))


def test_twelve_bits_of_plain_htj2k_decode_as_openjpeg_has_them():
    frame = bytearray(htj2k_of(LARGER["grey"]))
    frame[42] = 11  # Ssiz: the samples move by the change of the middle, 2**11 - 2**7
    start = frame.index(b"\xff\x5c") + 5
    end = frame.index(b"\xff\x64")
    frame[start:end] = bytes(exponent + (4 << 3) for exponent in frame[start:end])  # QCD
    array = LARGER["grey"].astype(np.uint16) + 2048 - 128
    decoded = decode_frame(bytes(frame), format_of(array), HTJ2K_LOSSLESS)
    assert is_plain(bytes(frame))
    np.testing.assert_array_equal(decoded, by_openjpeg(bytes(frame)))


UNUSUAL = {
    "lossy": dict(reversible=False),
    "coarse": dict(reversible=False, level=0.05),
    "tiles": dict(tile=(64, 32)),
    "odd blocks": dict(resolutions=6),
}


@pytest.mark.parametrize("options", UNUSUAL)
@pytest.mark.parametrize("kind", ["rgb", "grey 16", "extremes"])
def test_unusual_htj2k_decodes_as_openjpeg_has_it(kind, options):
    array = LARGER[kind]
    frame = htj2k_of(array, **UNUSUAL[options])
    assert not is_plain(frame)
    decoded = decode_frame(frame, format_of(array), HTJ2K)
    np.testing.assert_array_equal(decoded, by_openjpeg(frame))


def test_reversible_htj2k_that_overshoots_is_clipped():
    frame = bytearray(htj2k_of(LARGER["extremes"], rgb=False))
    style = frame.index(b"\xff\x52")
    assert frame[style + 8] == 0
    frame[style + 8] = 1  # what were red, green and blue is turned once more
    assert is_plain(bytes(frame))
    expected = by_openjpeg(bytes(frame))
    assert difference(imagecodecs.htj2k_decode(bytes(frame)), expected) == 255  # OpenJPH wraps
    decoded = decode_frame(bytes(frame), format_of(expected), HTJ2K_LOSSLESS)
    np.testing.assert_array_equal(decoded, expected)


# OpenJPH reports damage in a block from where Python can't raise
ignores_what_python_could_not_raise = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def decodes(decode, *args):
    try:
        decode(*args)
    except (FrameDecodeError, imagecodecs.Jpeg2kError):
        return False
    return True


@ignores_what_python_could_not_raise
@pytest.mark.parametrize("value", [0x00, 0x01, 0xFF])
@pytest.mark.parametrize("kind", ["rgb", "grey", "grey 16"])
def test_damage_to_htj2k_is_noticed_wherever_openjpeg_notices_it(kind, value):
    array = LARGER[kind]
    frame = htj2k_of(array, tilepart=1, tlm=True)
    missed = 0
    for at in range(2, len(frame) - 2, 23):
        damaged = frame[:at] + bytes([value]) + frame[at + 1 :]
        seen = not decodes(decode_frame, damaged, format_of(array), HTJ2K_LOSSLESS)
        missed += not seen and not decodes(imagecodecs.jpeg2k_decode, damaged)
    assert missed == 0


def test_block_of_tiny_htj2k_that_is_longer_than_the_codestream_is_refused():
    array = np.full((64, 128, 3), 255, np.uint8)
    frame = bytearray(htj2k_of(array))
    assert is_plain(bytes(frame))
    frame[frame.index(b"\xff\x93") + 3] = 0xFF  # in the first packet's header
    assert decodes(imagecodecs.htj2k_decode, bytes(frame))  # OpenJPH takes what there is
    assert not decodes(decode_frame, bytes(frame), format_of(array), HTJ2K_LOSSLESS)


MAIN_HEADER = {  # marker, offset from its first byte, value
    "capabilities of part 15 and another": (0xFF50, 5, 0x03),
    "several sets of blocks": (0xFF50, 8, 0x20),
    "layers": (0xFF52, 7, 2),
    "unknown progression": (0xFF52, 5, 9),
    "fewer levels": (0xFF52, 9, 4),
    "more levels": (0xFF52, 9, 9),
    "wide blocks": (0xFF52, 10, 8),
    "plain JPEG 2000 blocks": (0xFF52, 12, 0x00),
    "either kind of blocks": (0xFF52, 12, 0xC0),
    "another transform": (0xFF52, 13, 0),
    "own precincts": (0xFF52, 4, 1),
    "quantisation": (0xFF5C, 4, 0x22),
    "no guard bits": (0xFF5C, 4, 0x00),
    "large exponent": (0xFF5C, 6, 0xF8),
    "small exponent": (0xFF5C, 6, 0x08),
    "subsampling": (0xFF51, 41, 2),
    "other precision": (0xFF51, 43, 9),
}


@pytest.mark.parametrize("case", MAIN_HEADER)
def test_htj2k_of_an_unusual_main_header_is_left_to_openjpeg(case):
    marker, offset, value = MAIN_HEADER[case]
    array = LARGER["rgb"]
    frame = bytearray(htj2k_of(array))
    frame[frame.index(marker.to_bytes(2, "big")) + offset] = value
    assert not is_plain(bytes(frame))
    if decodes(decode_frame, bytes(frame), format_of(array), HTJ2K):
        decoded = decode_frame(bytes(frame), format_of(array), HTJ2K)
        np.testing.assert_array_equal(decoded, by_openjpeg(bytes(frame)))


@ignores_what_python_could_not_raise
@pytest.mark.parametrize("kind", ["rgb", "grey 16"])
def test_errors_that_openjph_may_lose_are_noticed(kind):
    """Versions of imagecodecs differ in which of its errors arrive."""
    array = LARGER[kind]
    frame = htj2k_of(array)
    refused = 0
    for at in range(frame.index(b"\xff\x93") + 2, len(frame) - 2, 17):
        damaged = frame[:at] + b"\xff\xff" + frame[at + 2 :]
        try:
            pixels = decode_frame(damaged, format_of(array), HTJ2K_LOSSLESS)
        except FrameDecodeError:
            refused += 1
        else:
            assert pixels[-1].any()  # else a row that was never filled
            by_openjpeg(damaged)  # which refuses it neither
    assert refused


@ignores_what_python_could_not_raise
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["rgb", "grey", "grey 16"])
def test_htj2k_cut_short_is_refused_though_its_lengths_were_mended(kind, fraction):
    array = LARGER[kind]
    frame = htj2k_of(array)
    start = frame.index(b"\xff\x90\x00\x0a")
    kept = start + 14 + int((len(frame) - start - 16) * fraction)
    mended = frame[: start + 6] + struct.pack(">I", kept - start) + frame[start + 10 : kept]
    with pytest.raises(FrameDecodeError):
        decode_frame(mended + END_OF_IMAGE, format_of(array), HTJ2K_LOSSLESS)


def test_comment_that_looks_like_a_tile_part_does_not_end_the_main_header():
    frame = htj2k_of(LARGER["rgb"])
    comment = b"\xff\x64" + struct.pack(">HH", 16, 0) + b"\xff\x90\x00\x0a" + bytes(8)
    start = frame.index(b"\xff\x90\x00\x0a")
    commented = frame[:start] + comment + frame[start:]
    assert is_plain(commented)
    decoded = decode_frame(commented, format_of(LARGER["rgb"]), HTJ2K_LOSSLESS)
    np.testing.assert_array_equal(decoded, LARGER["rgb"])


@pytest.mark.parametrize("zeros", [0, 1, 14, 15, 16, 40])
def test_end_of_image_is_found_before_any_padding(zeros):
    assert ends_image(memoryview(b"pixels" + END_OF_IMAGE + bytes(zeros)))
    assert not ends_image(memoryview(b"pixels" + END_OF_IMAGE[:1] + bytes(zeros)))
    assert not ends_image(memoryview(bytes(zeros)))


# -- native ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "order"), [(ROOT, "<"), (NATIVE, "<"), (BIG_ENDIAN, ">"), (f"{ROOT}.1.98", "<")]
)
@pytest.mark.parametrize("kind", ["u1", "u2", "i1", "i2", "u4", "i4"])
def test_native_integers_of_any_width_and_sign(uid, order, kind):
    limits = np.iinfo(kind)
    array = np.linspace(limits.min, limits.max, 35).astype(kind).reshape(5, 7, 1)
    pixel_format = format_of(array, signed=kind[0] == "i", bits_stored=8 * array.itemsize)
    decoded = decode_frame(array.astype(order + kind).tobytes(), pixel_format, uid)
    assert decoded.dtype == np.dtype(kind)
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize(("uid", "order"), [(NATIVE, "<"), (BIG_ENDIAN, ">")])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_native_floats(uid, order, kind):
    array = np.linspace(-1e6, 1e6, 35).astype(kind).reshape(5, 7, 1)
    array[0, 0] = np.nan
    decoded = decode_frame(
        array.astype(order + kind).tobytes(), format_of(array, floating=True), uid
    )
    assert decoded.dtype == np.dtype(kind)
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("shape", [(5, 7, 1), (8, 8, 1), (1, 1, 1), (10, 10, 1)])
def test_bit_packed_pixels_are_boolean(shape):
    array = np.random.default_rng(0).random(shape) < 0.5
    pixel_format = PixelFormat(rows=shape[0], columns=shape[1], bits_allocated=1, bits_stored=1)
    frame = np.packbits(array.ravel(), bitorder="little").tobytes()
    decoded = decode_frame(frame, pixel_format, NATIVE)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("uid", [NATIVE, f"{ROOT}.1.98", DEFLATED_FRAME])
def test_planar_configuration_of_native_frames(uid):
    planar = format_of(RGB, planar=True)
    frame = encode_frame(RGB, planar, uid)
    np.testing.assert_array_equal(decode_frame(frame, planar, uid), RGB)
    if uid == NATIVE:
        assert frame == b"".join(RGB[:, :, i].tobytes() for i in range(3))


@pytest.mark.parametrize("uid", [RLE, J2K_LOSSLESS, JPEG_LS])
def test_planar_configuration_of_compressed_frames_is_ignored(uid):
    np.testing.assert_array_equal(
        decode_frame(frame_of(uid), format_of(RGB, planar=True), uid), RGB
    )


@pytest.mark.parametrize("planar", [False, True])
def test_native_ybr_full_becomes_rgb_as_pydicom_has_it(planar):
    ybr = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    frame = (np.moveaxis(ybr, -1, 0) if planar else ybr).tobytes()
    pixel_format = format_of(ybr, photometric="YBR_FULL", planar=planar)
    np.testing.assert_array_equal(
        decode_frame(frame, pixel_format, NATIVE), convert_color_space(ybr, "YBR_FULL", "RGB")
    )


def test_native_ybr_full_422_becomes_rgb_as_pydicom_has_it():
    frame = np.random.default_rng(0).integers(0, 256, 6 * 10 * 2, np.uint8).tobytes()
    pixel_format = PixelFormat(rows=6, columns=10, samples=3, photometric="YBR_FULL_422")
    assert pixel_format.native_bits == 8 * len(frame)
    np.testing.assert_array_equal(
        decode_frame(frame, pixel_format, NATIVE), decoded_by_pydicom(frame, pixel_format, NATIVE)
    )


@pytest.mark.parametrize("uid", [RLE, J2K_LOSSLESS, JPEG_LS, JPEG_LOSSLESS[1]])
def test_signs_of_codestreams_without_signs_are_those_of_bits_stored(uid):
    values = np.linspace(-2048, 2047, ROWS * COLUMNS).astype(np.int16).reshape(ROWS, COLUMNS, 1)
    pattern = values.view(np.uint16) if uid == RLE else (values & 0xFFF).astype(np.uint16)
    frame = encode_frame(pattern, format_of(pattern, bits_stored=12), uid)
    pixel_format = format_of(values, signed=True, bits_stored=12)
    decoded = decode_frame(frame, pixel_format, uid)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_decodes(wrap):
    for uid in (NATIVE, BASELINE, J2K_LOSSLESS):
        decoded = decode_frame(wrap(frame_of(uid)), format_of(RGB), uid)
        assert difference(decoded, RGB) <= 12


# -- JPEG XL ---------------------------------------------------------------------------------


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(1, 1), (8, 8), (256, 256), (256, 248), (8, 16), (5, 7), (100, 100), (512, 1), (513, 2),
     (1, 600), (2, 9000), (100, 120), (90, 120), (60, 90), (90, 160), (80, 100), (50, 100)],
)  # fmt: skip
def test_size_of_jpeg_xl_is_read_from_its_header(rows, columns, container):
    array = np.zeros((rows, columns), np.uint8)
    data = imagecodecs.jpegxl_encode(array, level=90, effort=1, usecontainer=container)
    assert jpeg_xl_size(memoryview(data)) == (rows, columns)


def test_jpeg_xl_in_its_container_decodes():
    data = bytes(imagecodecs.jpegxl_encode(RGB, lossless=True, usecontainer=True))
    assert data[4:8] == b"JXL "
    np.testing.assert_array_equal(decode_frame(data, format_of(RGB), JPEG_XL[0]), RGB)


def test_jpeg_xl_of_recompressed_jpeg_decodes_to_the_jpeg():
    jpeg = simplejpeg.encode_jpeg(RGB, 95, colorspace="RGB", colorsubsampling="444")
    data = imagecodecs.jpegxl_encode_jpeg(jpeg)
    decoded = decode_frame(bytes(data), format_of(RGB, photometric="YBR_FULL_422"), JPEG_XL[1])
    assert difference(decoded, simplejpeg.decode_jpeg(jpeg, "RGB")) <= 6


# -- errors ----------------------------------------------------------------------------------


def test_unsupported_transfer_syntax_is_an_error_that_names_supported_ones():
    mpeg = "1.2.840.10008.1.2.4.100"
    with pytest.raises(FrameDecodeError) as caught:
        decode_frame(b"", format_of(RGB), mpeg)
    message = str(caught.value)
    assert mpeg in message
    for uid, decoder in DECODERS.items():
        assert uid in message
        assert decoder.name in message


@pytest.mark.parametrize("kind", [FrameDecodeError, FrameReadError, FramePositionError])
def test_frame_errors_pickle_with_their_place(kind):
    error = pickle.loads(pickle.dumps(kind("it broke").located("slide.dcm", 41)))
    assert type(error) is kind
    assert (error.reason, error.source, error.frame) == ("it broke", "slide.dcm", 41)
    assert str(error) == "slide.dcm, frame 42: it broke"


def test_located_keeps_a_place_that_is_known():
    assert FrameReadError("it broke", "part.dcm").located("slide.dcm", 0).source == "part.dcm"


def test_located_keeps_a_frame_that_is_known():
    error = FrameReadError("it broke", "part.dcm", 7).located("slide.dcm", 0)
    assert (error.source, error.frame) == ("part.dcm", 7)


@pytest.mark.parametrize(
    "changes", [dict(rows=0), dict(columns=-1), dict(samples=2), dict(bits_allocated=12)]
)
def test_impossible_pixel_formats_raise(changes):
    with pytest.raises(ValueError, match="isn't"):
        PixelFormat(**(dict(rows=1, columns=1) | changes))


def test_rle_of_wrong_segment_count_raises():
    frame = struct.pack("<I", 2) + frame_of(RLE)[4:]
    with pytest.raises(FrameDecodeError, match="segments"):
        decode_frame(frame, format_of(RGB), RLE)


@pytest.mark.parametrize("uid", JPEG_LOSSLESS)
@pytest.mark.parametrize("fill", [1, 2])
def test_bytes_that_fill_up_to_the_end_marker_are_no_data(uid, fill):
    """T.81 B.1.1.2: DCMTK makes the length of lossless JPEG even so."""
    frame = frame_of(uid)
    assert frame.endswith(END_OF_IMAGE)
    filled = frame[:-2] + b"\xff" * fill + END_OF_IMAGE
    np.testing.assert_array_equal(decode_frame(filled, format_of(RGB), uid), RGB)
    with pytest.raises(FrameDecodeError):
        decode_frame(frame[:-40] + b"\xff" * fill + END_OF_IMAGE, format_of(RGB), uid)


def test_the_byte_that_makes_a_length_even_may_be_any():
    frame = frame_of(JPEG_LS)
    frame += b"\0" * (1 - len(frame) % 2)  # CharLS in DCMTK leaves what was in memory
    np.testing.assert_array_equal(decode_frame(frame + b"\xe6", format_of(RGB), JPEG_LS), RGB)
    assert not ends_image(memoryview(b"pixel" + END_OF_IMAGE + b"\xe6\xe6"))


@pytest.mark.parametrize("uid", [uid for uid in ENCAPSULATED if uid not in JPEG_XL])
def test_a_codestream_tells_whether_it_is_lossy(uid):
    assert is_lossy(memoryview(frame_of(uid))) == (uid in LOSSY)


@pytest.mark.parametrize("cut", [0, 2, 4, 12, 20, 30])
@pytest.mark.parametrize("uid", [JPEG_LS_NEAR, J2K, BASELINE])
def test_of_damaged_headers_nothing_is_said(uid, cut):
    assert not is_lossy(memoryview(frame_of(uid)[:cut]))
