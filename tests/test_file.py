"""Part 10 files as they are met: any offset table, damaged ones, and those that lie."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import dask
import numpy as np
import pydicom
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.part10 import frame_index, parsed
from dicomslide.backends.part10.file import FileSource, FileStore, is_dicom_file
from dicomslide.errors import (
    FrameDecodeError,
    FrameReadError,
    FrameWarning,
    MemoryLimitError,
    MetadataError,
    MetadataWarning,
    NotDicomError,
    SourceChangedError,
)
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing import PositionDrawing, SyntheticImage, position_values, write_image

ROOT = "1.2.840.10008.1.2"
NATIVE, BIG_ENDIAN, DEFLATED = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.1.99"
RLE, J2K, JPEG_XL = f"{ROOT}.5", f"{ROOT}.4.90", f"{ROOT}.4.110"
SHAPE, TILE = (50, 70), (16, 16)
NUM_FRAMES = 20
PIXEL_DATA = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"


def write(path, uid=NATIVE, *, shape=SHAPE, tile=TILE, change=None, **options):
    """An image whose pixels tell where they are."""
    formats = {k: options.pop(k) for k in ("samples", "bits_allocated", "floating", "planar")
               if k in options}  # fmt: skip
    formats = dict(samples=3, bits_allocated=8) | formats
    pixel_format = PixelFormat(
        rows=tile[0], columns=tile[1], bits_stored=formats["bits_allocated"], **formats
    )
    geometry = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.001), shape)
    image = SyntheticImage(
        geometry=geometry,
        drawing=PositionDrawing(pixel_format.samples, pixel_format.dtype),
        pixel_format=pixel_format,
        transfer_syntax_uid=uid,
        **options,
    )
    return write_image(path, image, change=change)


def matrix_of(path, on_error="raise"):
    slide = dicomslide.open_slide(path, correct_color=False, on_error=on_error)
    return slide.get_volume_images()[0].get_total_pixel_matrix()


def expected(shape=SHAPE, samples=3, dtype=np.uint8):
    return position_values(np.arange(shape[0]), np.arange(shape[1]), samples=samples, dtype=dtype)


def filled(frames, background=255):
    """The pixels with frames of the background."""
    pixels = expected()
    for frame in frames:
        row, column = divmod(frame, 5)
        pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = background
    return pixels


def item(value):
    return ITEM + struct.pack("<I", len(value)) + value


def extended_table(offsets, lengths):
    return b"".join(
        b"\xe0\x7f" + bytes([element]) + b"\0OV\0\0" + struct.pack("<I", 8 * len(values))
        + struct.pack(f"<{len(values)}Q", *values)
        for element, values in ((1, offsets), (2, lengths))
    )  # fmt: skip


class Encapsulated:
    """A file taken apart, to be put together in another way."""

    def __init__(self, path, uid=RLE, **options):
        self.path = write(path, uid, offset_table="empty", **options)
        data = self.path.read_bytes()
        at = data.rindex(PIXEL_DATA)
        self.head = data[:at]
        at += len(PIXEL_DATA) + 8
        self.frames = []
        while data[at : at + 4] == ITEM:
            (length,) = struct.unpack_from("<I", data, at + 4)
            self.frames.append([data[at + 8 : at + 8 + length]])
            at += 8 + length

    def offsets(self):
        sizes = [sum(8 + len(fragment) for fragment in frame) for frame in self.frames]
        return np.cumsum([0, *sizes])[:-1].tolist()

    def lengths(self):
        return [sum(map(len, frame)) for frame in self.frames]

    def save(self, *, table="basic", extended=None, tail=b""):
        """Write with an offset table, and an extended one of (offsets, lengths)."""
        if table == "basic":
            table = self.offsets()
        basic = item(b"" if table == "empty" else struct.pack(f"<{len(table)}I", *table))
        self.path.write_bytes(
            self.head
            + (b"" if extended is None else extended_table(*extended))
            + PIXEL_DATA
            + basic
            + b"".join(item(fragment) for frame in self.frames for fragment in frame)
            + DELIMITER
            + tail
        )
        return self.path


@pytest.fixture
def parts(tmp_path):
    return Encapsulated(tmp_path / "image.dcm")


# -- offset tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("fragments", [1, 2, 3])
@pytest.mark.parametrize("table", ["basic", "empty"])
@pytest.mark.parametrize("uid", [RLE, J2K])
def test_frames_are_found_by_any_table_and_in_any_fragments(tmp_path, uid, table, fragments):
    path = write(tmp_path / "image.dcm", uid, offset_table=table, fragments=fragments)
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


@pytest.mark.parametrize("uid", [RLE, J2K])
def test_frames_are_found_by_an_extended_table(tmp_path, uid):
    path = write(tmp_path / "image.dcm", uid, offset_table="extended")
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


def test_frames_that_share_their_bytes_are_found(tmp_path):
    path = tmp_path / "image.dcm"
    write(path, RLE, shape=(32, 64), offset_table="extended", share_frames=True)
    np.testing.assert_array_equal(matrix_of(path)[...], expected((32, 64)))


def test_unequal_numbers_of_fragments_are_split_at_codestreams(tmp_path):
    parts = Encapsulated(tmp_path / "image.dcm", J2K)
    for i in range(0, NUM_FRAMES, 3):
        (frame,) = parts.frames[i]
        parts.frames[i] = [frame[:100], frame[100:102], frame[102:]]
    np.testing.assert_array_equal(matrix_of(parts.save(table="empty"))[...], expected())


def test_unequal_numbers_of_fragments_are_split_by_a_basic_table(parts):
    for i in range(0, NUM_FRAMES, 3):
        (frame,) = parts.frames[i]
        parts.frames[i] = [frame[:100], frame[100:102], frame[102:]]
    np.testing.assert_array_equal(matrix_of(parts.save())[...], expected())


def test_fragments_that_nothing_assigns_to_frames_raise(parts):
    (frame,) = parts.frames[3]
    parts.frames[3] = [frame[:100], frame[100:]]
    with pytest.raises(MetadataError, match=r"image\.dcm.*20 frames.*21 fragments"):
        matrix_of(parts.save(table="empty"))[...]


def test_both_offset_tables_may_be_there(parts):
    path = parts.save(table="basic", extended=(parts.offsets(), parts.lengths()))
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


@pytest.mark.parametrize("surplus", [8, -8, 100_000])
def test_lengths_of_an_extended_table_may_be_wrong(parts, surplus):
    lengths = [max(0, length + surplus) for length in parts.lengths()]
    path = parts.save(table="empty", extended=(parts.offsets(), lengths))
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_lengths_that_lie_cost_no_memory(parts, table):
    """An item of 4 GiB, and frames of which each reaches to the end, are read as far as they go."""
    for frame in parts.frames:
        frame[0] += bytes(-len(frame[0]) % 2)
    parts.frames[0][0] += bytes(9 * 2**20)  # behind which 9 MiB come that are nobody's
    lengths = [2**40] * NUM_FRAMES
    tables = (parts.offsets(), lengths) if table == "extended" else None
    path = parts.save(table="basic" if tables is None else "empty", extended=tables)
    data = bytearray(path.read_bytes())
    at = data.rindex(DELIMITER) - 8 - len(parts.frames[-1][0])
    data[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(data)
    matrix = matrix_of(path)
    matrix[16:17, :1]
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(matrix[16:32, :], expected()[16:32])
        with pytest.raises(FrameReadError, match=r"image\.dcm, frame 20: .* 4294967280 bytes"):
            matrix[49:, 69:]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20


@pytest.mark.parametrize("table", ["basic", "empty", "extended"])
def test_frames_of_no_bytes_are_background(parts, table):
    empty = [0, 7, 8, 19]
    for frame in empty:
        parts.frames[frame] = [b""]
    tables = (parts.offsets(), parts.lengths())
    path = parts.save(
        table="empty" if table == "extended" else table,
        extended=tables if table == "extended" else None,
    )
    with pytest.warns(FrameWarning, match=r"image\.dcm, frame \d+: it has no bytes") as warned:
        pixels = matrix_of(path)[...]
    assert len(warned) == 1
    np.testing.assert_array_equal(pixels, filled(empty))
    np.testing.assert_array_equal(matrix_of(path, "fill")[...], filled(empty))  # warns no more


@pytest.mark.parametrize("wrong", [3, 10**6, 2**31])
@pytest.mark.parametrize("table", ["basic", "extended"])
def test_a_scan_finds_frames_where_an_offset_points_nowhere(parts, table, wrong):
    offsets = parts.offsets()
    offsets[5] = offsets[5] + wrong
    if table == "basic":
        path = parts.save(table=offsets)
    else:
        path = parts.save(table="empty", extended=(offsets, parts.lengths()))
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


def test_an_extended_table_that_does_not_count_padding_is_mended_by_a_scan(tmp_path):
    """As pydicom before 2.4.4 wrote it: worked out by its formula."""
    parts = Encapsulated(tmp_path / "image.dcm", J2K)
    frames = [frame + b"\0" * (i % 3) for i, (frame,) in enumerate(parts.frames)]
    parts.frames = [[frame + b"\0" * (len(frame) % 2)] for frame in frames]
    lengths = [len(frame) for frame in frames]
    assert any(length % 2 for length in lengths)
    offsets = [0]
    for length in lengths[:-1]:
        offsets.append(offsets[-1] + length + 8)
    path = parts.save(table="empty", extended=(offsets, lengths))
    matrix = matrix_of(path)
    np.testing.assert_array_equal(matrix[49:, 69:], expected()[49:, 69:])
    np.testing.assert_array_equal(matrix[...], expected())


@pytest.mark.parametrize("wrong", [3, 10**6, 2**31])
def test_offsets_that_point_nowhere_raise_where_a_scan_does_not_tell_either(parts, wrong):
    """For those that point at frames have them in another order."""
    offsets, lengths = parts.offsets(), parts.lengths()
    offsets[:2] = offsets[1::-1]
    offsets[5] = offsets[5] + wrong
    path = parts.save(table="empty", extended=(offsets, lengths))
    matrix = matrix_of(path)
    with pytest.raises(FrameReadError, match=r"image\.dcm, frame 6: ") as caught:
        matrix[16:32, :16]
    assert caught.value.frame == 5
    assert caught.value.source == str(path)
    np.testing.assert_array_equal(matrix[:16, :16], expected()[:16, 16:32])
    np.testing.assert_array_equal(matrix[:16, 32:64], expected()[:16, 32:64])
    with pytest.warns(FrameWarning, match="frame 6"):
        pixels = matrix_of(path, "fill")[16:32, :32]
    np.testing.assert_array_equal(pixels, filled([5])[16:32, :32])


@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("kind", ["reversed", "two swapped", "all zero", "one twice"])
def test_a_basic_table_that_does_not_ascend_is_not_believed(tmp_path, kind, fragments):
    """Items are in the order of frames (PS3.5 A.4)."""
    parts = Encapsulated(tmp_path / "image.dcm")
    parts.frames = [[frame[:64], frame[64:]][:fragments] if fragments > 1 else [frame]
                    for (frame,) in parts.frames]  # fmt: skip
    offsets = parts.offsets()
    table = {
        "reversed": offsets[::-1],
        "two swapped": [*offsets[:3], offsets[4], offsets[3], *offsets[5:]],
        "all zero": [0] * len(offsets),
        "one twice": [*offsets[:3], offsets[2], *offsets[4:]],
    }[kind]
    np.testing.assert_array_equal(matrix_of(parts.save(table=table))[...], expected())


def test_bytes_behind_the_pixel_data_are_ignored(parts):
    padding = b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 6) + bytes(6)
    for table in ("basic", "empty"):
        np.testing.assert_array_equal(matrix_of(parts.save(table=table, tail=padding)), expected())


def test_a_missing_delimiter_is_no_loss(parts):
    for table in ("basic", "empty"):
        path = parts.save(table=table)
        path.write_bytes(path.read_bytes()[: -len(DELIMITER)])
        np.testing.assert_array_equal(matrix_of(path), expected())


def test_pixel_data_that_do_not_begin_with_an_item_raise(parts):
    path = parts.save()
    data = path.read_bytes()
    at = data.rindex(PIXEL_DATA) + len(PIXEL_DATA)
    path.write_bytes(data[:at] + b"junk" + data[at + 4 :])
    with pytest.raises(MetadataError, match=r"image\.dcm"):
        matrix_of(path)[...]


# -- truncated files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "table"), [(NATIVE, "basic"), (RLE, "basic"), (RLE, "empty"), (RLE, "extended")]
)
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_frames_before_the_end_of_a_truncated_file_can_be_read(tmp_path, uid, table, fraction):
    path = write(tmp_path / "image.dcm", uid, offset_table=table)
    data = path.read_bytes()
    start = data.rindex(b"\xe0\x7f\x10\x00")
    path.write_bytes(data[: start + int(fraction * (len(data) - start))])
    matrix = matrix_of(path)
    lost = []
    for frame in range(NUM_FRAMES):
        row, column = divmod(frame, 5)
        here = slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16)
        try:
            pixels = matrix[here]
        except FrameReadError as error:
            lost.append((error.source, error.frame))
        else:
            np.testing.assert_array_equal(pixels, expected()[here])
    first = lost[0][1]
    assert lost == [(str(path), frame) for frame in range(first, NUM_FRAMES)]
    assert first == pytest.approx(fraction * NUM_FRAMES, abs=2)
    with pytest.warns(FrameWarning) as caught:
        pixels = matrix_of(path, "fill")[...]
    np.testing.assert_array_equal(pixels, filled(range(first, NUM_FRAMES)))
    assert len(caught) == len(lost)


@pytest.mark.parametrize("uid", [NATIVE, RLE])
def test_a_file_cut_in_its_header_raises(tmp_path, uid):
    path = write(tmp_path / "image.dcm", uid)
    data = path.read_bytes()
    for stop in (200, 400, 1500, data.rindex(b"\xe0\x7f\x10\x00")):
        path.write_bytes(data[:stop])
        with pytest.raises((MetadataError, dicomslide.NotSlideError), match=r"image\.dcm"):
            matrix_of(path)[...]


# -- headers that lie ------------------------------------------------------------------------


def setting(**values):
    def change(dataset):
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize("count", [1, 19, 21, 40])
@pytest.mark.parametrize("uid", [NATIVE, RLE])
def test_number_of_frames_that_contradicts_the_grid_raises(tmp_path, uid, count):
    path = write(tmp_path / "image.dcm", uid, change=setting(NumberOfFrames=count))
    with pytest.raises(MetadataError, match=rf"image\.dcm.*{count} frames"):
        matrix_of(path)[...]


@pytest.mark.parametrize("count", [19, 21])
def test_number_of_frames_that_contradicts_the_per_frame_groups_raises(tmp_path, count):
    path = write(tmp_path / "image.dcm", RLE, sparse=True, change=setting(NumberOfFrames=count))
    with pytest.raises(MetadataError, match=rf"image\.dcm.*20 items for {count} frames"):
        matrix_of(path)[...]


@pytest.mark.parametrize("table", ["basic", "empty", "extended"])
def test_fewer_encapsulated_frames_than_declared_raise(tmp_path, table):
    path = tmp_path / "image.dcm"
    write(path, RLE, offset_table=table, change=setting(NumberOfFrames=25, TotalPixelMatrixRows=80))
    with pytest.raises((MetadataError, FrameReadError), match=r"image\.dcm"):
        matrix_of(path)[79, 0, 0]


@pytest.mark.parametrize(
    "values",
    [
        dict(NumberOfFrames=25, TotalPixelMatrixRows=80),
        dict(Rows=32, TotalPixelMatrixRows=100),
        dict(Rows=15),
        dict(Columns=15),
        dict(BitsAllocated=1),
        dict(SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"),
        dict(PhotometricInterpretation="YBR_FULL_422"),
    ],
)
def test_native_pixel_data_of_another_size_than_described_are_refused(tmp_path, values):
    """Which of both lies can't be told, and all pixels behind would be shifted."""
    path = write(tmp_path / "image.dcm", change=setting(**values))
    matrix = matrix_of(path)
    with pytest.raises(MetadataError, match=r"image\.dcm: the header describes .* the pixel data"):
        matrix[0, 0, 0]
    with pytest.warns(FrameWarning, match="the header describes"):
        matrix_of(path, "fill")[0, 0, 0]


def test_samples_that_contradict_the_photometric_interpretation_are_refused(tmp_path):
    path = write(tmp_path / "image.dcm", change=setting(SamplesPerPixel=1))
    with pytest.raises(MetadataError, match="1 samples per pixel, but RGB has 3"):
        matrix_of(path)


def test_a_file_that_is_overwritten_in_place_is_noticed(tmp_path):
    path = write(tmp_path / "image.dcm")
    other = write(tmp_path / "other.dcm", shape=(80, 96), instance_number=2)
    matrix = matrix_of(path)
    matrix[:5, :5]
    with open(path, "r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match="open the slide again"):
        matrix[40:, :]


@pytest.mark.parametrize("offset_table", ["basic", "empty"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_file_that_was_cut_off_before_it_was_read_is_noticed(tmp_path, offset_table, sparse):
    path = write(tmp_path / "image.dcm", RLE, offset_table=offset_table, sparse=sparse)
    matrix = matrix_of(path)
    os.truncate(path, path.stat().st_size // 3)
    with pytest.raises(SourceChangedError, match="open the slide again"):
        matrix[:5, :5]


def test_a_file_that_is_cut_off_while_its_frames_are_found_is_noticed(tmp_path, monkeypatch):
    path = write(tmp_path / "image.dcm", RLE, offset_table="empty")
    matrix = matrix_of(path)
    locate = frame_index.locate_frames

    def cutting(*found):
        os.truncate(path, path.stat().st_size // 3)
        return locate(*found)

    monkeypatch.setattr(frame_index, "locate_frames", cutting)
    with pytest.raises(SourceChangedError, match="open the slide again"):
        matrix[:5, :5]


def test_a_file_that_ends_within_its_offset_table_is_refused(tmp_path):
    path = write(tmp_path / "image.dcm", RLE, offset_table="basic")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\xe0\x7f\x10\x00OB") + 26])
    with pytest.raises((MetadataError, FrameReadError), match=r"image\.dcm"):
        matrix_of(path)[0, 0, 0]


@pytest.mark.parametrize(
    "values",
    [
        dict(ImageOrientationSlide=["0", "1"]),
        dict(ImageOrientationSlide=None),
        dict(TotalPixelMatrixRows=None),
    ],
)
def test_damaged_headers_raise_errors_of_the_package(tmp_path, values):
    path = write(tmp_path / "image.dcm", change=setting(**values))
    with pytest.raises(dicomslide.DicomSlideError, match=r"image\.dcm"):
        dicomslide.open_slide(path).get_slide_region((0, 0), 0, (1, 1))


def test_spacing_with_a_decimal_comma_is_no_spacing(tmp_path):
    path = write(tmp_path / "image.dcm", change=setting(ImagedVolumeWidth=None))
    data = path.read_bytes()
    at = data.index(b"(\0\x30\0DS") + 8
    length = int.from_bytes(data[at - 2 : at], "little")
    spacing = b"0,0005\\0,0005".ljust(length)[:length]
    path.write_bytes(data[:at] + spacing + data[at + length :])
    slide = dicomslide.open_slide(path)
    with pytest.raises(MetadataError, match="no Pixel Spacing"):
        slide.get_slide_region((0, 0), 0, (1, 1))


def test_rows_that_contradict_compressed_frames_raise(tmp_path):
    path = write(tmp_path / "image.dcm", RLE, change=setting(Rows=32, TotalPixelMatrixRows=100))
    with pytest.raises(FrameDecodeError, match=r"image\.dcm, frame 1: "):
        matrix_of(path)[0, 0, 0]
    with pytest.warns(FrameWarning, match="frame 1"):
        assert matrix_of(path, "fill")[0, 0, 0] == 255


@pytest.mark.parametrize(
    "values",
    [
        dict(Rows=0),
        dict(BitsAllocated=12),
        dict(SamplesPerPixel=2),
        dict(Columns=None),
        dict(BitsAllocated=None),
    ],
)
def test_impossible_pixel_descriptions_raise(tmp_path, values):
    path = write(tmp_path / "image.dcm", change=setting(**values))
    with pytest.raises((MetadataError, dicomslide.NotSlideError), match=r"image|1\.2\.826"):
        matrix_of(path)[...]


# -- transfer syntaxes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "tile", "samples", "bits"),
    [
        ((15, 21), (5, 7), 1, 8),  # frames that begin within a 16-bit word
        ((13, 20), (5, 7), 1, 8),
        ((5, 7), (5, 7), 1, 8),
        ((15, 21), (5, 7), 3, 8),
        ((50, 70), (16, 16), 3, 8),
        ((15, 21), (5, 7), 1, 16),
        ((15, 21), (5, 7), 1, 1),
        ((30, 30), (10, 10), 1, 1),  # frames that begin within a byte
        ((25, 34), (10, 10), 1, 1),
    ],
)
@pytest.mark.parametrize("uid", [ROOT, NATIVE, BIG_ENDIAN, DEFLATED])
def test_native_frames_of_any_size(tmp_path, uid, shape, tile, samples, bits):
    path = write(
        tmp_path / "image.dcm", uid, shape=shape, tile=tile, samples=samples, bits_allocated=bits
    )
    dtype = {1: np.bool_, 8: np.uint8, 16: np.uint16}[bits]
    pixels = matrix_of(path)[...]
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, expected(shape, samples, dtype))


@pytest.mark.parametrize(
    ("uid", "tile", "samples", "bits"),
    [
        (ROOT, (5, 7), 1, 8),
        (BIG_ENDIAN, (5, 7), 1, 8),
        (BIG_ENDIAN, (5, 7), 3, 8),
        (BIG_ENDIAN, (5, 7), 1, 16),
        (DEFLATED, (5, 7), 1, 16),
        (NATIVE, (10, 10), 1, 1),
    ],
)
def test_native_frames_are_those_of_pydicom(tmp_path, uid, tile, samples, bits):
    path = write(
        tmp_path / "image.dcm", uid, shape=(20, 30), tile=tile, samples=samples,
        bits_allocated=bits,
    )  # fmt: skip
    frames = pydicom.dcmread(path).pixel_array.reshape(-1, *tile, samples)
    matrix = matrix_of(path)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(matrix._reader.read_tiles(index), frame)


@pytest.mark.parametrize("tile", [(16, 16), (5, 7)])
def test_big_endian_bytes_that_are_not_swapped(tmp_path, tile):
    """Pixel Data of VR OB is a string of bytes, whatever the byte order."""
    path = write(tmp_path / "image.dcm", BIG_ENDIAN, shape=(20, 30), tile=tile)
    data = path.read_bytes()
    at = data.rindex(b"\x7f\xe0\x00\x10OW")
    words = np.frombuffer(data[at + 12 :], np.uint8).reshape(-1, 2)
    path.write_bytes(data[: at + 4] + b"OB" + data[at + 6 : at + 12] + words[:, ::-1].tobytes())
    np.testing.assert_array_equal(matrix_of(path)[...], expected((20, 30)))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("uid", [NATIVE, BIG_ENDIAN, DEFLATED])
def test_float_and_double_float_pixel_data(tmp_path, uid, bits):
    def parametric_map(dataset):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.30"
        del dataset.PixelRepresentation

    path = write(
        tmp_path / "map.dcm", uid, samples=1, bits_allocated=bits, floating=True,
        change=parametric_map,
    )  # fmt: skip
    source = FileSource.open(path)
    image = dicomslide.TiledImage(source, source.metadata)
    pixels = image.get_total_pixel_matrix()[...]
    dtype = np.dtype(f"f{bits // 8}")
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, expected(samples=1, dtype=dtype))


@pytest.mark.parametrize("floating", [False, True])
def test_pixel_data_of_another_kind_than_described_are_refused(tmp_path, floating):
    """Integers aren't taken for floating-point numbers of as many bits, nor the other way round."""

    def described_as_the_other(dataset):
        if not floating:
            dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.30"
            del dataset.PixelRepresentation

    path = write(
        tmp_path / "map.dcm", samples=1, bits_allocated=32, floating=floating,
        change=described_as_the_other,
    )  # fmt: skip
    source = FileSource.open(path)
    matrix = dicomslide.TotalPixelMatrix(source, source.metadata)
    with pytest.raises(MetadataError, match=r"map\.dcm: .* 7FE000(08|10)"):
        matrix[...]


def test_jpeg_xl_which_pydicom_does_not_know(tmp_path):
    path = write(tmp_path / "image.dcm", JPEG_XL)
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("uid", [ROOT, NATIVE, BIG_ENDIAN, RLE])
def test_elements_of_sequences_before_the_pixel_data_are_passed_over(tmp_path, uid, sparse):
    path = write(tmp_path / "image.dcm", uid, sparse=sparse, undefined_lengths=sparse)
    data = path.read_bytes()
    order = ">" if uid == BIG_ENDIAN else "<"

    def element(group, number, vr, length, value=b""):
        head = struct.pack(order + "HH", group, number)
        if uid != ROOT:
            head += vr + bytes(2)
        return head + struct.pack(order + "I", length) + value

    def delimiter(number):
        return struct.pack(order + "HHI", 0xFFFE, number, 0)

    extra = (
        element(0x5400, 0x0100, b"SQ", 0xFFFFFFFF)  # Waveform Sequence
        + struct.pack(order + "HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        + element(0x5400, 0x1010, b"OW", 4, b"\xe0\x7f\x10\x00")
        + delimiter(0xE00D)
        + delimiter(0xE0DD)
        + element(0x5600, 0x0020, b"OF", 8, bytes(8))  # Spectroscopy Data
    )
    at = data.rindex(b"\x7f\xe0\x00\x10" if uid == BIG_ENDIAN else b"\xe0\x7f\x10\x00")
    path.write_bytes(data[:at] + extra + data[at:])
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


def test_private_and_invalid_elements_do_no_harm(tmp_path):
    def change(dataset):
        block = dataset.private_block(0x0099, "SOMEONE", create=True)
        block.add_new(1, "OB", b"\xe0\x7f\x10\x00OW")

    path = write(tmp_path / "image.dcm", RLE, change=change)
    data = path.read_bytes()
    for valid, invalid in (
        (b"20260102", b"2026-1-2"),
        (b"SYNTHETIC-1 ", b"SYN\\THETIC1 "),
    ):
        assert valid in data
        data = data.replace(valid, invalid)
    path.write_bytes(data)
    np.testing.assert_array_equal(matrix_of(path)[...], expected())


def test_unknown_transfer_syntax_raises(tmp_path):
    path = write(tmp_path / "image.dcm")
    data = path.read_bytes()
    path.write_bytes(data.replace(NATIVE.encode() + b"\0", b"1.2.840.10008.1.2.9\0", 1))
    with pytest.raises(MetadataError, match=r"image\.dcm.*1\.2\.840\.10008\.1\.2\.9.*supported"):
        dicomslide.open_slide(path)


# -- deflated --------------------------------------------------------------------------------


def bomb(path, size):
    """A deflated file of an element that inflates to `size` bytes."""
    data = write(path, DEFLATED, shape=(16, 16)).read_bytes()
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size) + bytes(size)
    (length,) = struct.unpack_from("<I", data, 140)
    start = 144 + length
    inflated = zlib.decompress(data[start:], wbits=-15)
    inflated = inflated[: inflated.rindex(b"\xe0\x7f\x10\x00")]
    path.write_bytes(data[:start] + zlib.compress(inflated + pixels, wbits=-15))
    return path


def test_deflated_data_sets_grow_to_the_memory_limit_only(tmp_path):
    path = bomb(tmp_path / "bomb.dcm", 20_000_000)
    assert path.stat().st_size < 100_000
    with (
        dicomslide.set_options(memory_limit_bytes=1_000_000),
        pytest.raises(MemoryLimitError, match=r"bomb\.dcm"),
    ):
        FileSource.open(path)
    with pytest.raises(MetadataError, match="768 bytes; the pixel data have 20000000"):
        FileSource.open(path).read_frames([0])


def test_truncated_deflated_data_sets_raise(tmp_path):
    path = write(tmp_path / "image.dcm", DEFLATED)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MetadataError, match=r"image\.dcm.*truncated"):
        FileSource.open(path)


# -- files and folders -----------------------------------------------------------------------


def test_what_is_not_dicom_raises(tmp_path):
    path = tmp_path / "notes.txt"
    for content in (b"", b"notes", bytes(4096)):
        path.write_bytes(content)
        assert not is_dicom_file(path)
        with pytest.raises(NotDicomError, match=r"notes\.txt"):
            FileSource.open(path)
        with pytest.raises(NotDicomError, match=r"notes\.txt"):
            FileStore.open([path])


def test_a_preamble_alone_is_not_an_image(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(MetadataError, match=r"image\.dcm"):
        FileSource.open(path)


def test_a_path_that_does_not_exist_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        dicomslide.open_slide(tmp_path / "missing.dcm")


def test_a_store_of_local_files_refuses_urls():
    with pytest.raises(NotDicomError, match="a URL, but only local files"):
        FileStore.open("s3://bucket/slide")


def test_a_folder_without_dicom_files_raises(tmp_path):
    with pytest.raises(NotDicomError, match=tmp_path.name):
        dicomslide.open_slide(tmp_path)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(NotDicomError, match=tmp_path.name):
        dicomslide.open_slide(tmp_path)
    with pytest.raises(NotDicomError, match="empty list"):
        FileStore.open([])


def test_a_broken_file_in_a_folder_is_left_out_with_a_warning(tmp_path):
    path = write(tmp_path / "image.dcm")
    data = path.read_bytes()
    (tmp_path / "broken.dcm").write_bytes(data[:133] + b"broken" * 20)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.warns(MetadataWarning, match=r"left out: .*broken\.dcm"):
        matrix = matrix_of(tmp_path)
    np.testing.assert_array_equal(matrix[...], expected())


@pytest.mark.parametrize("element", [(0x0028, 0x0010), (0x0028, 0x0100), (0x0048, 0x0007)])
def test_a_file_whose_image_can_not_be_placed_is_left_out_of_a_folder(tmp_path, element):
    """Rows, Bits Allocated, Total Pixel Matrix Rows: of three bytes, which no number has."""
    write(tmp_path / "image.dcm")
    path = write(tmp_path / "broken.dcm")
    dataset = pydicom.dcmread(path)
    dataset[element] = pydicom.DataElement(element, "LO", "abc")  # written as four bytes
    dataset.SOPInstanceUID = "1.2.3"
    dataset.save_as(path)
    data = path.read_bytes()
    head = struct.pack("<HH", *element)
    assert data.count(head + b"LO\4\0abc ") == 1
    vr = b"US\3\0" if element[0] == 0x0028 else b"UL\3\0"
    path.write_bytes(data.replace(head + b"LO\4\0abc ", head + vr + b"abc"))
    with pytest.raises(MetadataError, match=r"broken\.dcm: the header can't be read"):
        matrix_of(path)
    with pytest.warns(MetadataWarning, match=r"left out: .*broken\.dcm: the header can't be read"):
        matrix = matrix_of(tmp_path)
    np.testing.assert_array_equal(matrix[...], expected())


def test_files_in_folders_of_a_folder_are_found(tmp_path):
    folder = tmp_path / "study" / "series"
    folder.mkdir(parents=True)
    write(folder / "image.dcm")
    np.testing.assert_array_equal(matrix_of(tmp_path)[...], expected())


def cut(data, path, how):
    """A copy that a download left behind."""
    start = data.rindex(b"\xe0\x7f\x10\x00")
    end = {
        "of the last frame": len(data) - 40,
        "of most frames": start + (len(data) - start) // 4,
        "of all pixels": start,
        "of half the header": data.index(b"\x28\0\x02\0US"),
        "zeros": start + (len(data) - start) // 2,
    }[how]
    path.write_bytes(data[:end] + bytes(len(data) - end if how == "zeros" else 0))


def ways_in(folder):
    """By what a slide is opened."""
    yield lambda: dicomslide.open_slide(folder)
    yield lambda: dicomslide.open_slide(sorted(folder.iterdir()))
    yield lambda: dicomslide.open_slide(sorted(folder.iterdir())[::-1])
    yield lambda: dicomslide.open_slide(f"local://{folder}")
    yield lambda: next(iter(dicomslide.open_slides(folder).values()))


HALVES = ["of the last frame", "of most frames", "of all pixels", "of half the header"]


@pytest.mark.parametrize(
    ("uid", "table", "how"),
    [(RLE, table, how) for table in ("basic", "extended", "empty") for how in (*HALVES, "zeros")]
    + [(NATIVE, "basic", how) for how in HALVES],
)
@pytest.mark.parametrize("name", ["a.dcm", "z.dcm"])
@pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")
def test_of_copies_of_one_instance_the_whole_one_is_read(tmp_path, uid, table, how, name):
    path = write(tmp_path / "image.dcm", uid, offset_table=table)
    cut(path.read_bytes(), tmp_path / name, how)
    for opened in ways_in(tmp_path):
        slide = opened()
        assert slide.get_volume_images()[0]._source.path.endswith("image.dcm")
        np.testing.assert_array_equal(
            slide.get_image_region((30, 40), 0, (20, 30)).shape, (20, 30, 3)
        )


def test_of_broken_copies_the_longest_is_read_and_the_others_are_named(tmp_path):
    path = write(tmp_path / "b.dcm", RLE)
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    (tmp_path / "a.dcm").write_bytes(data[:-2000])
    (tmp_path / "c.dcm").write_bytes(data[:-1500])
    with pytest.warns(MetadataWarning, match=r"left out: .*[ac]\.dcm .* of .*b\.dcm") as warned:
        store = FileStore.open(tmp_path)
    assert [source.path for source in store.sources] == [str(path)]
    assert len(warned) == 2


def test_a_second_file_of_one_instance_is_left_out_with_a_warning(tmp_path):
    path = write(tmp_path / "image.dcm")
    shutil.copy(path, tmp_path / "image copy.dcm")
    with pytest.warns(MetadataWarning, match=r"image\.dcm has the SOP Instance UID of"):
        store = FileStore.open(tmp_path)
    assert len(store.sources) == 1


def test_a_file_that_is_named_twice_is_one_file(tmp_path):
    path = write(tmp_path / "image.dcm")
    assert len(FileStore.open([path, path, tmp_path]).sources) == 1


def test_the_source_of_an_instance_is_found_by_its_uid(tmp_path):
    paths = [write(tmp_path / f"{i}.dcm", instance_number=i) for i in (1, 2)]
    store = FileStore.open(tmp_path)
    for path, metadata in zip(paths, store.metadata, strict=True):
        assert store.source(copy.deepcopy(metadata)).path == str(path)
    with pytest.raises(MetadataError, match="no file"):
        store.source(pydicom.Dataset())


# -- sources ---------------------------------------------------------------------------------


def test_a_source_pickles_small_and_reads_the_same(tmp_path):
    source = FileSource.open(write(tmp_path / "image.dcm", RLE, sparse=True))
    frames = source.read_frames(range(NUM_FRAMES))
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    dicomslide.clear_all("parsed files")  # as in another process
    again = pickle.loads(pickled)
    assert again == source
    assert again.identity == source.identity
    assert hash(again.identity) == hash(source.identity)
    assert again.read_frames(range(NUM_FRAMES)) == frames


def test_frames_come_in_the_order_in_which_they_are_asked_for(tmp_path):
    source = FileSource.open(write(tmp_path / "image.dcm"))
    one, two = source.read_frames([3]), source.read_frames([11])
    assert source.read_frames([11, 3, 3, 11]) == two + one + one + two
    assert source.read_frames([]) == []


@pytest.mark.parametrize("index", [-1, NUM_FRAMES, 10**9])
def test_a_frame_that_is_not_there_raises(tmp_path, index):
    path = write(tmp_path / "image.dcm")
    with pytest.raises(FrameReadError, match="20 frames") as caught:
        FileSource.open(path).read_frames([0, index])
    assert (caught.value.source, caught.value.frame) == (str(path), index)


def test_a_file_that_was_changed_is_noticed_when_it_is_opened_again(tmp_path):
    path = write(tmp_path / "image.dcm", RLE)
    matrix = matrix_of(path)
    pixels = matrix[...]
    os.remove(path)
    write(path, RLE, shape=(40, 70))
    dicomslide.clear_all("decoded frames")
    np.testing.assert_array_equal(matrix[...], pixels)  # the open file is still the old one
    dicomslide.clear_all("parsed files", "decoded frames")
    with pytest.raises(SourceChangedError, match=r"image\.dcm.*open the slide again"):
        matrix[...]
    np.testing.assert_array_equal(matrix_of(path)[...], expected((40, 70)))


def test_many_files_are_read_once_and_few_stay_open(tmp_path, monkeypatch):
    first = write(tmp_path / "0.dcm", RLE)
    paths = [Path(shutil.copy(first, tmp_path / f"{i}.dcm")) for i in range(1, 200)]
    read = []
    header_of = parsed.part10.read_header
    monkeypatch.setattr(
        parsed.part10, "read_header", lambda blob: read.append(blob.name) or header_of(blob)
    )
    sources = [FileSource.open(path) for path in paths]
    frames = sources[0].read_frames([0, 3])
    for _ in range(2):
        assert {source.metadata.NumberOfFrames for source in sources} == {NUM_FRAMES}
        assert all(source.read_frames([0, 3]) == frames for source in sources)
    assert len(read) == len(paths)
    if os.path.isdir("/proc/self/fd"):
        descriptors = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        opened = [each for each in descriptors if os.path.islink(each)]
        here = [each for each in opened if os.readlink(each).startswith(str(tmp_path))]
        assert len(here) <= 128
    os.utime(paths[0], ns=(0, 10**9))  # closed meanwhile, and another when it is opened again
    with pytest.raises(SourceChangedError):
        sources[0].read_frames([0])


def test_a_file_of_other_time_is_another_file(tmp_path):
    path = write(tmp_path / "image.dcm", RLE)
    source = FileSource.open(path)
    os.utime(path, ns=(0, source.mtime_ns + 10**9))
    assert FileSource.open(path).identity != source.identity
    dicomslide.clear_all("parsed files")
    with pytest.raises(SourceChangedError):
        source.read_frames([0])


def test_a_relative_path_is_kept_as_an_absolute_one(tmp_path, monkeypatch):
    write(tmp_path / "image.dcm")
    monkeypatch.chdir(tmp_path)
    assert FileSource.open("image.dcm").path == str(tmp_path / "image.dcm")


def test_a_wrong_offset_of_the_last_frame_leaves_the_others(tmp_path):
    path = write(tmp_path / "image.dcm", RLE, offset_table="basic")
    frames = list(map(bytes, FileSource.open(path).read_frames(range(NUM_FRAMES))))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0") + 12
    count = int.from_bytes(data[at + 4 : at + 8], "little") // 4
    last = at + 8 + 4 * (count - 1)
    wrong = int.from_bytes(data[last : last + 4], "little") + 6
    data[last : last + 4] = wrong.to_bytes(4, "little")
    path.write_bytes(data)
    source = FileSource.open(path)
    assert list(map(bytes, source.read_frames(range(count - 2)))) == frames[:-2]
    assert list(map(bytes, source.read_frames(range(count)))) == frames


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
def test_a_pipe_in_a_folder_is_not_waited_for(position_slide, tmp_path):
    folder = shutil.copytree(position_slide, tmp_path / "slide")
    os.mkfifo(folder / "pipe")
    assert FileStore.open(folder).sources == FileStore.open(sorted(folder.glob("*.dcm"))).sources


@pytest.fixture
def pipe(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes by name here")
    os.mkfifo(tmp_path / "pipe.dcm")
    return tmp_path / "pipe.dcm"


def test_a_pipe_that_is_named_is_refused_and_not_waited_for(pipe, position_slide):
    level = position_slide / "level-0.dcm"
    for source in (pipe, [level, pipe], f"file://{pipe}"):
        with pytest.raises(NotDicomError, match=r"pipe\.dcm: not a file"):
            dicomslide.open_slide(source)
    assert not is_dicom_file(pipe)
    with pytest.raises(NotDicomError, match=r"pipe\.dcm: not a file"):
        dicomslide.open_slides(pipe)
    cohort = dicomslide.open_slides([level, pipe])
    assert list(map(str, cohort.failures)) == [str(pipe)]
    with pytest.raises(NotDicomError, match="not a file"):
        dicomslide.open_slide("/dev/zero")
    assert not xr.backends.plugins.list_engines()["dicomslide"].guess_can_open(str(pipe))


def test_a_pipe_that_a_pattern_finds_is_passed_over(pipe, position_slide):
    shutil.copy(position_slide / "level-0.dcm", pipe.parent / "level-0.dcm")
    for source in (pipe.parent, str(pipe.parent / "*"), str(pipe.parent / "*.dcm")):
        cohort = dicomslide.open_slides(source)
        assert len(cohort) == 1
        assert not cohort.failures


def test_a_file_replaced_by_one_of_its_size_and_time_is_opened_anew(tmp_path):
    path = write(tmp_path / "image.dcm")
    pixels = matrix_of(path)[...]
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-SHAPE[0] * SHAPE[1] :] = bytes(SHAPE[0] * SHAPE[1])  # the last tiles
    (tmp_path / "new").write_bytes(data)
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tmp_path / "new", path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    found = matrix_of(path)
    assert (found[...] != pixels).any()
    assert not found[48:, 48:].any()
    assert dask.base.tokenize(found) != dask.base.tokenize(matrix_of(write(tmp_path / "b.dcm")))


def test_a_file_rewritten_in_place_with_its_old_time_is_opened_anew(tmp_path):
    path = write(tmp_path / "image.dcm")
    before, old = path.stat(), matrix_of(path)
    pixels, name = old[...], pydicom.dcmread(path).ContainerIdentifier
    data = bytearray(path.read_bytes())
    data[-SHAPE[0] * SHAPE[1] :] = bytes(SHAPE[0] * SHAPE[1])  # the last tiles
    at = data.index(name.encode())
    data[at : at + len(name)] = b"x" * len(name)
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert after.st_ino == before.st_ino
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    found = matrix_of(path)
    assert FileSource.open(path).metadata.ContainerIdentifier == "x" * len(name)
    assert (found[...] != pixels).any()
    assert not found[48:, 48:].any()
    assert dask.base.tokenize(found) != dask.base.tokenize(old)


def test_an_open_file_is_read_on_when_its_permissions_and_links_change(tmp_path):
    path = write(tmp_path / "image.dcm")
    matrix = matrix_of(path)
    sent = pickle.dumps(matrix)
    pixels = matrix[...]
    path.chmod(0o400)
    os.link(path, tmp_path / "backup")
    dicomslide.clear_all()
    np.testing.assert_array_equal(matrix[...], pixels)
    dicomslide.clear_all()
    np.testing.assert_array_equal(pickle.loads(sent)[...], pixels)


def test_a_source_from_another_machine_has_another_inode_there(tmp_path):
    path = write(tmp_path / "image.dcm")
    source = dataclasses.replace(FileSource.open(path), node=(1, 2))
    assert len(source.read_frames([0, 1])) == 2
