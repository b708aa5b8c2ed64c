"""What real files do to pixels: colour, sizes, offset tables, orders and bits of frames.

See the table in test_quirks.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import struct
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

import dicomslide
from dicomslide.errors import FrameDecodeError, FrameWarning, MetadataError
from dicomslide.pixels import PixelFormat
from dicomslide.testing import (
    encode_frame,
    position_values,
    srgb_profile,
)
from tests.support.derive import write_segmentation
from tests.support.quirky import (
    BASELINE,
    BIG_ENDIAN,
    JPEG_LS,
    NATIVE,
    RLE,
    ROOT,
    SHAPE,
    TILE,
    expected,
    open_stored,
    pixels_of,
    setting,
    write,
)

PIXEL_DATA = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"


def item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value


# -- 1, 2: colour ----------------------------------------------------------------------------


def smooth(channel: int, plane: int, tile: int) -> np.ndarray:
    """A tile without edges, for codecs that lose some."""
    row, column = np.mgrid[: TILE[0], : TILE[1]]
    stacked = np.stack([row * 9 + tile * 8, column * 7, 250 - row * 4 - column * 4], -1)
    return (stacked % 256).astype(np.uint8)


def pillow_frame(place: tuple[int, int, int], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(smooth(*place)).save(file, "JPEG", quality=97, **options)
    return file.getvalue()


CODESTREAMS = {
    "4:2:0": dict(subsampling="4:2:0"),
    "4:2:2": dict(subsampling="4:2:2"),
    "4:4:4": dict(subsampling="4:4:4"),
    "4:4:4 progressive": dict(subsampling="4:4:4", progressive=True),
    "4:2:0 progressive": dict(subsampling="4:2:0", progressive=True),
    "RGB, Adobe 0": dict(keep_rgb=True),
    "RGB, Adobe 0, progressive": dict(keep_rgb=True, progressive=True),
}


@pytest.mark.parametrize("claimed", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("options", CODESTREAMS.values(), ids=CODESTREAMS.keys())
def test_colour_is_that_of_the_frames(tmp_path, claimed, options):
    path = write(
        tmp_path / "image.dcm",
        BASELINE,
        encoded=lambda *place: pillow_frame(place, **options),
        change=setting(PhotometricInterpretation=claimed),
    )
    matrix = open_stored(path).get_volume_images()[0].get_total_pixel_matrix()
    for tile, pixels in enumerate(matrix):
        with Image.open(io.BytesIO(pillow_frame((0, 0, tile), **options))) as picture:
            np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))
        difference = np.abs(pixels.astype(int) - smooth(0, 0, tile))
        assert np.median(difference) <= 6


def test_a_conflict_of_colours_is_logged_once(tmp_path, caplog):
    dicomslide.clear_all("warnings of JPEG headers")
    path = write(
        tmp_path / "image.dcm",
        BASELINE,
        encoded=lambda *place: pillow_frame(place, subsampling="4:2:0"),
        change=setting(PhotometricInterpretation="RGB"),
    )
    with caplog.at_level(logging.INFO, "dicomslide"):
        pixels_of(open_stored(path))
    assert [record.getMessage() for record in caplog.records] == [
        "Photometric Interpretation is RGB; the JPEG codestream holds YCbCr and is decoded as that"
    ]


# -- 3: size of the codestream ---------------------------------------------------------------


def cropped(place: tuple[int, int, int], rows: int, columns: int, uid: str) -> bytes:
    """A frame of fewer pixels than its tile."""
    grid = (4, 3)
    row, column = divmod(place[2], grid[1])
    tile = position_values(row * TILE[0] + np.arange(rows), column * TILE[1] + np.arange(columns))
    pixel_format = PixelFormat(rows=rows, columns=columns, samples=3)
    return encode_frame(tile, pixel_format, uid)


@pytest.mark.parametrize("uid", [JPEG_LS, f"{ROOT}.4.90", f"{ROOT}.4.110"])
def test_cropped_frames_at_the_edge_are_whole(tmp_path, uid):
    """50 × 70 pixels: the last row of tiles has 2 rows, the last column of tiles 6 columns."""

    def frame(*place: int) -> bytes:
        row, column = divmod(place[2], 3)
        return cropped(place, min(16, 50 - 16 * row), min(32, 70 - 32 * column), uid)

    path = write(tmp_path / "image.dcm", uid, encoded=frame)
    slide = open_stored(path)
    np.testing.assert_array_equal(pixels_of(slide), expected())
    last = slide.get_volume_images()[0].get_total_pixel_matrix()[11]
    assert last.shape == (16, 32, 3)
    np.testing.assert_array_equal(last[:2, :6], expected()[48:, 64:])
    assert (last[2:] == 255).all()
    assert (last[:, 6:] == 255).all()


def test_frames_cut_in_half_warn_of_lost_pixels(tmp_path):
    def frame(*place: int) -> bytes:
        return cropped(place, 8 if place[2] == 4 else 16, 32, JPEG_LS)

    slide = open_stored(write(tmp_path / "image.dcm", JPEG_LS, encoded=frame))
    with pytest.warns(FrameWarning, match=r"image\.dcm, frame 5: .* 8 × 32 pixels of \(16, 32\)"):
        pixels = pixels_of(slide)
    kept = expected()
    kept[24:32, 32:64] = 255
    np.testing.assert_array_equal(pixels, kept)


@pytest.mark.parametrize(("rows", "columns"), [(17, 32), (16, 33)])
def test_frames_larger_than_their_tile_raise(tmp_path, rows, columns):
    def frame(*place: int) -> bytes:
        return cropped(place, rows, columns, JPEG_LS)

    slide = open_stored(write(tmp_path / "image.dcm", JPEG_LS, encoded=frame))
    said = rf"image\.dcm, frame \d+: .* {rows} × {columns} pixels .* declares 16 × 32"
    with pytest.raises(FrameDecodeError, match=said):
        pixels_of(slide)


# -- 6, 7: grey pixels -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "uid", [ROOT, NATIVE, BIG_ENDIAN, f"{ROOT}.1.99", RLE, f"{ROOT}.4.57", f"{ROOT}.4.70"]
)
def test_twelve_bits_in_sixteen(tmp_path, uid):
    @dataclasses.dataclass(frozen=True)
    class TwelveBits:
        def tile(self, rows, columns, channel, plane):
            return expected_of(rows, columns)

    def expected_of(rows, columns):
        return position_values(rows, columns, samples=1, dtype=np.uint16) % 4096

    path = write(tmp_path / "image.dcm", uid, samples=1, bits=12, drawing=TwelveBits())
    pixels = pixels_of(open_stored(path))
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, expected_of(np.arange(50), np.arange(70)))


def test_grey_pixels_are_as_stored_whatever_their_path_says(tmp_path):
    def change(dataset: pydicom.Dataset) -> None:
        (path,) = dataset.OpticalPathSequence
        path.ICCProfile = srgb_profile()
        path.IlluminationWaveLength = 0.0
        palette = pydicom.Dataset()
        for color in ("Red", "Green", "Blue"):
            setattr(palette, f"{color}PaletteColorLookupTableDescriptor", [256, 0, 16])
            # discrete segment of one 0, linear segment of 255 up to white
            segments = struct.pack("<6H", 0, 1, 0, 1, 255, 65535)
            setattr(palette, f"Segmented{color}PaletteColorLookupTableData", segments)
        path.PaletteColorLookupTableSequence = [palette]

    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        path = write(tmp_path / f"{bits}.dcm", samples=1, bits=bits, change=change)
        slide = dicomslide.open_slide(path)
        stored = expected(samples=1, dtype=dtype)
        np.testing.assert_array_equal(pixels_of(slide), stored)
        image = slide.to_dataset().image
        np.testing.assert_array_equal(image, np.rot90(stored[..., 0], -1))
        assert slide.channels[0].wavelength is None
        assert "wavelength" not in image.coords


# -- 8: padding ------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["none", "basic", "both"])
def test_frames_of_odd_length_are_found(tmp_path, table):
    path = write(tmp_path / "image.dcm", JPEG_LS, offset_table="empty")
    data = path.read_bytes()
    head, frames = data[: data.rindex(PIXEL_DATA)], []
    at = len(head) + len(PIXEL_DATA) + 8
    for _ in range(12):
        (length,) = struct.unpack_from("<I", data, at + 4)
        frame = data[at + 8 : at + 8 + length]
        frames.append(frame.rstrip(b"\0"))
        at += 8 + length
    assert any(len(frame) % 2 for frame in frames)
    offsets = np.cumsum([0, *(8 + len(frame) for frame in frames)])[:-1]
    if table == "both":
        for element, values in ((1, offsets), (2, [len(frame) for frame in frames])):
            head += struct.pack("<HH2sHI", 0x7FE0, element, b"OV", 0, 8 * 12)
            head += struct.pack("<12Q", *values)
    basic = b"" if table == "none" else struct.pack("<12I", *offsets)
    items = b"".join(map(item, [basic, *frames]))
    path.write_bytes(head + PIXEL_DATA + items + b"\xfe\xff\xdd\xe0" + bytes(4))
    np.testing.assert_array_equal(pixels_of(open_stored(path)), expected())


@pytest.mark.parametrize(
    "tail", [b"\0" * 33, b"\xff" * 5, b"junk behind"], ids=["zeros", "ones", "junk"]
)
def test_bytes_behind_the_end_of_an_image_are_ignored(tmp_path, tail):
    path = write(
        tmp_path / "image.dcm", BASELINE, encoded=lambda *place: pillow_frame(place) + tail
    )
    matrix = open_stored(path).get_volume_images()[0].get_total_pixel_matrix()
    with Image.open(io.BytesIO(pillow_frame((0, 0, 7)))) as picture:
        np.testing.assert_array_equal(matrix[7], np.asarray(picture))
    if not tail.strip(b"\0"):  # of others a lossless JPEG can't tell that nothing is missing
        path = write(
            tmp_path / "lossless.dcm",
            JPEG_LS,
            encoded=lambda *place: cropped(place, 16, 32, JPEG_LS) + tail,
        )
        np.testing.assert_array_equal(pixels_of(open_stored(path)), expected())


# -- 10: order of frames ---------------------------------------------------------------------


def morton(place: tuple[int, int, int]) -> tuple[int, int, int]:
    """Key of the Z-shaped order of tiles."""
    row, column = divmod(place[2], 3)
    bits = ((row >> i & 1) << (2 * i + 1) | (column >> i & 1) << (2 * i) for i in range(2))
    return (*place[:2], sum(bits))


@pytest.mark.parametrize("uid", [NATIVE, RLE])
@pytest.mark.parametrize("claim", ["TILED_FULL", "TILED_SPARSE", ...])
@pytest.mark.parametrize(
    "order", [morton, lambda place: place[::-1]], ids=["Morton", "all paths of a tile together"]
)
def test_frames_lie_where_they_say_under_a_claim_of_tiled_full(tmp_path, order, claim, uid):
    path = write(
        tmp_path / "image.dcm",
        uid,
        samples=1,
        bits=16,
        sparse=True,
        optical_paths=("DAPI", "FITC"),
        planes=(3.0, 5.0),
        arrange=lambda places: sorted(places, key=order),
        change=setting(DimensionOrganizationType=claim),
    )
    slide = open_stored(path)
    assert slide.focal_plane_offsets == (3.0, 5.0)
    for channel in range(2):
        for plane in range(2):
            np.testing.assert_array_equal(
                pixels_of(slide, channel_index=channel, focal_plane_index=plane),
                expected(SHAPE, channel, plane, samples=1, dtype=np.uint16),
            )


# -- 18: segmentations -----------------------------------------------------------------------


LABELS = np.random.default_rng(3).integers(0, 3, SHAPE).astype(np.uint8)


@pytest.mark.parametrize("tile", [(10, 10), (7, 9), (1, 1), (3, 1), (1, 13), (50, 70)])
@pytest.mark.parametrize("full", [False, True])
def test_bit_packed_segments_equal_highdicoms_reading(tmp_path, tile, full):
    """highdicom pads frames of less than a byte, others not: both are known by their length."""
    import highdicom as hd

    shape = (13, 19) if min(tile) == 1 else SHAPE
    source = write(tmp_path / "image.dcm", shape=shape)
    labels = LABELS[: shape[0], : shape[1]]
    options = dict(dimension_organization_type="TILED_FULL") if full else {}
    path = write_segmentation(
        tmp_path / "seg.dcm", source, labels, "BINARY", tile_size=tile, omit_empty_frames=False,
        **options,
    )  # fmt: skip
    slide = open_stored([source, path])
    theirs = hd.seg.segread(path).get_total_pixel_matrix() if min(tile) > 1 else None
    for number in (1, 2):
        index = slide.get_channel_index(str(number), "SEGMENT")
        pixels = pixels_of(slide, channel_index=index)
        assert pixels.dtype == bool
        np.testing.assert_array_equal(pixels[..., 0], labels == number)
        if theirs is not None:
            np.testing.assert_array_equal(pixels[..., 0], theirs[..., number - 1])


@pytest.mark.parametrize("uid", [ROOT, NATIVE, BIG_ENDIAN])
@pytest.mark.parametrize("tile", [(3, 3), (10, 10), (5, 1)])
def test_frames_padded_to_bytes(tmp_path, tile, uid):
    """Where each bit-packed frame is padded, rather than all of them together."""
    path = write(tmp_path / "image.dcm", uid, samples=1, bits=1, tile=tile)
    slide = open_stored(path)
    stored = expected(samples=1, dtype=bool)
    np.testing.assert_array_equal(pixels_of(slide), stored)
    matrix = slide.get_volume_images()[0].get_total_pixel_matrix()
    frames = [np.packbits(frame, bitorder="little").tobytes() for frame in matrix]
    packed = b"".join(frames)
    packed += b"\0" * (len(packed) % 2)
    order = ">" if uid == BIG_ENDIAN else "<"
    if order == ">":
        packed = np.frombuffer(packed, np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
    tag = struct.pack(order + "HH", 0x7FE0, 0x10)
    data = path.read_bytes()
    at = data.rindex(tag) + (4 if uid == ROOT else 8)
    path.write_bytes(data[:at] + struct.pack(order + "I", len(packed)) + packed)
    np.testing.assert_array_equal(pixels_of(open_stored(path)), stored)
    path.write_bytes(data[:at] + struct.pack(order + "I", len(packed) + 2) + packed + bytes(2))
    with pytest.raises(MetadataError, match="the header describes"):
        pixels_of(open_stored(path))


def test_a_label_map_with_palette_is_labels(tmp_path):
    import highdicom as hd

    source = write(tmp_path / "image.dcm")
    colors = hd.PaletteColorLUTTransformation.from_colors(["black", "red", "blue"])
    path = write_segmentation(
        tmp_path / "seg.dcm", source, LABELS, "LABELMAP", palette_color_lut_transformation=colors
    )
    assert pydicom.dcmread(path).PhotometricInterpretation == "PALETTE COLOR"
    slide = open_stored([source, path])
    image = slide.to_dataset().segmentation
    np.testing.assert_array_equal(image, np.rot90(LABELS, -1))
    for number in (1, 2):
        index = slide.get_channel_index(str(number), "SEGMENT")
        np.testing.assert_array_equal(
            pixels_of(slide, channel_index=index)[..., 0], number == LABELS
        )
