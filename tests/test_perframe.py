"""Frame positions from bytes, against pydicom's data sets; and concatenations."""

from __future__ import annotations

import struct

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.part10 import header as part10
from dicomslide.backends.part10.file import FileSource
from dicomslide.errors import FramePositionError, FrameReadError, MetadataError
from dicomslide.header import per_frame as perframe
from dicomslide.header.geometry import SlideGeometry
from dicomslide.header.per_frame import (
    UNDEFINED,
    PerFrameSpan,
    positions_of_dataset,
    scan_per_frame_groups,
)
from dicomslide.pixels import PixelFormat
from dicomslide.testing import (
    PositionDrawing,
    SyntheticImage,
    position_values,
    uid_of,
    write_image,
)

ROOT = "1.2.840.10008.1.2"
NATIVE, BIG_ENDIAN, DEFLATED, RLE = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.1.99", f"{ROOT}.5"
SHAPE, TILE = (50, 70), (16, 16)
GRID = (4, 5)
NUM_FRAMES = 20


def image_of(uid=NATIVE, *, shape=SHAPE, samples=1, **options):
    pixel_format = PixelFormat(
        rows=TILE[0], columns=TILE[1], samples=samples, bits_allocated=16, bits_stored=16
    )
    geometry = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.001), shape)
    return SyntheticImage(
        geometry=geometry,
        drawing=PositionDrawing(samples, pixel_format.dtype),
        pixel_format=pixel_format,
        transfer_syntax_uid=uid,
        **(dict(sparse=True) | options),
    )


def matrix_of(*paths, channel=0, plane=0):
    slide = dicomslide.open_slide(list(paths))
    return slide.get_volume_images(channel, plane)[0].get_total_pixel_matrix(channel, plane)


def expected(channel=0, plane=0):
    rows, columns = map(np.arange, SHAPE)
    return position_values(rows, columns, channel, plane, samples=1, dtype=np.uint16)


def scanned(path):
    """Positions as they are found in a file's bytes, and where the sequence ends."""
    header = part10.read_header(part10.MemoryBlob(str(path), path.read_bytes()))
    assert header.per_frame is not None
    blob = header.blob
    count = int(header.dataset.NumberOfFrames)
    return scan_per_frame_groups(blob.read, blob.size, header.per_frame, count)


def assert_equal(found, oracle):
    assert (found is None) == (oracle is None)
    for name in ("rows", "columns", "z", "channels"):
        one, other = getattr(found, name), getattr(oracle, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(one, other)


def positions_by_pydicom(path):
    """(row, column, z, optical path) of each frame, without the package."""
    dataset = pydicom.dcmread(path)
    found = []
    for group in dataset.PerFrameFunctionalGroupsSequence:
        (place,) = group.PlanePositionSlideSequence
        paths = group.get("OpticalPathIdentificationSequence")
        found.append(
            (
                place.RowPositionInTotalImagePixelMatrix - 1,
                place.ColumnPositionInTotalImagePixelMatrix - 1,
                float(place.ZOffsetInSlideCoordinateSystem),
                paths[0].OpticalPathIdentifier if paths else None,
            )
        )
    return found


STACKS = {
    "one path and plane": {},
    "several paths and planes": dict(optical_paths=("DAPI", "a", "Cy 5"), planes=(2.5, 4.0)),
    "planes": dict(planes=(0.0, 1.25, 2.5)),
    "reversed": dict(order="reversed"),
    "with absent tiles": dict(absent=frozenset({(0, 0), (1, 3), (3, 4)})),
}


# -- scanned and read ------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("undefined_lengths", [False, True])
@pytest.mark.parametrize("uid", [ROOT, NATIVE, BIG_ENDIAN, RLE, DEFLATED])
def test_scan_finds_what_pydicom_reads(tmp_path, uid, undefined_lengths, stack):
    image = image_of(uid, undefined_lengths=undefined_lengths, **STACKS[stack])
    path = write_image(tmp_path / "image.dcm", image)
    found, _ = scanned(path)
    assert_equal(found, positions_of_dataset(pydicom.dcmread(path)))
    rows, columns, z, paths = zip(*positions_by_pydicom(path), strict=True)
    assert found.rows.tolist() == list(rows)
    assert found.columns.tolist() == list(columns)
    assert found.z.tolist() == list(z)
    assert (found.channels is None) == (paths[0] is None)
    if found.channels is not None:
        assert found.channels.tolist() == list(paths)


@pytest.mark.parametrize("undefined_lengths", [False, True])
@pytest.mark.parametrize("uid", [ROOT, NATIVE, BIG_ENDIAN, RLE])
def test_scan_ends_where_the_pixel_data_begin(tmp_path, uid, undefined_lengths):
    image = image_of(uid, undefined_lengths=undefined_lengths)
    path = write_image(tmp_path / "image.dcm", image)
    _, end = scanned(path)
    tag = b"\x7f\xe0\x00\x10" if uid == BIG_ENDIAN else b"\xe0\x7f\x10\x00"
    assert path.read_bytes()[end : end + 4] == tag


@pytest.mark.parametrize("block", [64, 68, 126, 128, 130, 4096])
@pytest.mark.parametrize("undefined_lengths", [False, True])
@pytest.mark.parametrize("uid", [ROOT, NATIVE])
def test_boundaries_of_blocks_do_not_matter(tmp_path, monkeypatch, uid, undefined_lengths, block):
    image = image_of(uid, undefined_lengths=undefined_lengths, **STACKS["several paths and planes"])
    path = write_image(tmp_path / "image.dcm", image)
    oracle = positions_of_dataset(pydicom.dcmread(path))
    _, end = scanned(path)
    monkeypatch.setattr(perframe, "BLOCK", block)
    found, found_end = scanned(path)
    assert_equal(found, oracle)
    assert found_end == end


@pytest.mark.parametrize("undefined_lengths", [False, True])
def test_search_is_enough_for_lawful_files(tmp_path, monkeypatch, undefined_lengths):
    def fail(*_):
        raise AssertionError("it walked")

    image = image_of(undefined_lengths=undefined_lengths, **STACKS["several paths and planes"])
    path = write_image(tmp_path / "image.dcm", image)
    monkeypatch.setattr(perframe, "_walk", fail)
    found, _ = scanned(path)
    assert len(found) == 6 * NUM_FRAMES


@pytest.mark.parametrize("stack", STACKS)
def test_sparse_images_are_assembled(tmp_path, stack):
    path = write_image(tmp_path / "image.dcm", image_of(**STACKS[stack]))
    options = STACKS[stack]
    for channel in range(len(options.get("optical_paths", "1"))):
        for plane in range(len(options.get("planes", "1"))):
            pixels = expected(channel, plane)
            for row, column in options.get("absent", ()):
                pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 0
            np.testing.assert_array_equal(matrix_of(path, channel=channel, plane=plane), pixels)


# -- sequences made by hand ------------------------------------------------------------------


def element(tag, vr, value, *, implicit=False, undefined=False):
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    length = UNDEFINED if undefined else len(value)
    if implicit:
        return head + struct.pack("<I", length) + value
    if vr in (b"SQ", b"OB", b"UN"):
        return head + vr + bytes(2) + struct.pack("<I", length) + value
    return head + vr + struct.pack("<H", length) + value


def item(content):
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content


def position(row, column, z="0", **options):
    """An item of the per-frame groups that says where its frame lies."""
    content = element(0x0040074A, b"DS", z.encode() + b" " * (len(z) % 2), **options)
    content += element(0x0048021E, b"SL", struct.pack("<i", column), **options)
    content += element(0x0048021F, b"SL", struct.pack("<i", row), **options)
    return element(0x0048021A, b"SQ", item(content), **options)


def decoy(**options):
    """A private element whose value looks like the elements that are searched for."""
    creator = element(0x00990010, b"LO", b"SOMEONE ", **options)
    return creator + element(0x00991001, b"OB", position(7777, 8888, "99", **options), **options)


def scan(items, count, *, implicit=False):
    data = b"before__" + items
    span = PerFrameSpan(8, len(items), implicit)

    def read(offset, length):
        return data[offset : offset + length]

    return scan_per_frame_groups(read, len(data), span, count)


PLACES = [(1, 1), (1, 17), (17, 1), (17, 17)]


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("among", [{2}, {0}, {0, 1, 2, 3}])
def test_decoys_in_private_elements_are_not_taken_for_positions(implicit, behind, among):
    items = b""
    for i, (row, column) in enumerate(PLACES):
        parts = [position(row, column, implicit=implicit)]
        if i in among:
            parts.insert(1 if behind else 0, decoy(implicit=implicit))
        items += item(b"".join(parts))
    found, end = scan(items, 4, implicit=implicit)
    assert end == 8 + len(items)
    assert found.rows.tolist() == [row - 1 for row, _ in PLACES]
    assert found.columns.tolist() == [column - 1 for _, column in PLACES]
    assert found.z.tolist() == [0.0] * 4


def test_a_first_value_in_an_item_is_kept_where_there_are_two():
    items = b"".join(item(position(*place) + position(999, 999)) for place in PLACES)
    found, _ = scan(items, 4)
    assert found.rows.tolist() == [row - 1 for row, _ in PLACES]


@pytest.mark.parametrize("implicit", [False, True])
def test_frames_of_which_only_some_have_positions_raise(implicit):
    items = b"".join(item(position(*place, implicit=implicit)) for place in PLACES[:3])
    items += item(element(0x00209111, b"SQ", b"", implicit=implicit))
    with pytest.raises(MetadataError, match="3 of 4 items"):
        scan(items, 4, implicit=implicit)


def test_frames_without_positions_give_none():
    items = item(element(0x00209111, b"SQ", b"")) * 4
    found, end = scan(items, 4)
    assert found is None
    assert end == 8 + len(items)


@pytest.mark.parametrize("count", [3, 5])
def test_items_for_another_number_of_frames_raise(count):
    items = b"".join(item(position(*place)) for place in PLACES)
    with pytest.raises(MetadataError, match=f"4 items for {count} frames"):
        scan(items, count)


def test_z_offsets_that_are_no_numbers_raise():
    with pytest.raises(MetadataError, match="Z Offset"):
        scan(b"".join(item(position(*place, "high")) for place in PLACES), 4)


@pytest.mark.parametrize("z", ["1.5", "+1.5", "1.5E0", "  1.5 "])
def test_z_offsets_are_decimal_strings(z):
    found, _ = scan(b"".join(item(position(*place, z)) for place in PLACES), 4)
    assert found.z.tolist() == [1.5] * 4


def test_segments_are_channels():
    segments = [2, 1, 2, 300]
    items = b""
    for place, segment in zip(PLACES, segments, strict=True):
        number = element(0x0062000B, b"US", struct.pack("<H", segment))
        items += item(position(*place) + element(0x0062000A, b"SQ", item(number)))
    found, _ = scan(items, 4)
    assert found.channels.tolist() == ["2", "1", "2", "300"]


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("segments", [(), (2, 1, 2, 300)], ids=["shared", "per frame"])
def test_segments_to_which_frames_merely_refer_are_no_channels(implicit, segments):
    """A source image that is a segmentation is named with its segment (PS3.3 10.3)."""

    def sequence(tag, content):
        return element(tag, b"SQ", item(content), implicit=implicit)

    def segment(number):
        return element(0x0062000B, b"US", struct.pack("<H", number), implicit=implicit)

    items = b""
    for i, place in enumerate(PLACES):
        parts = [sequence(0x00089124, sequence(0x00082112, segment(1)))]
        parts.append(position(*place, implicit=implicit))
        parts.extend(sequence(0x0062000A, segment(number)) for number in segments[i : i + 1])
        items += item(b"".join(parts))
    found, end = scan(items, 4, implicit=implicit)
    assert end == 8 + len(items)
    assert found.rows.tolist() == [row - 1 for row, _ in PLACES]
    expected = [str(number) for number in segments]
    assert ([] if found.channels is None else found.channels.tolist()) == expected


def test_sequence_of_unknown_vr_and_undefined_length_is_implicit():
    place = position(1, 17, implicit=True)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    private = element(0x00991001, b"UN", item(place) + end, undefined=True)
    private = private[:8] + struct.pack("<I", UNDEFINED) + private[12:]
    items = item(private + position(17, 1)) + item(position(1, 1))
    found, _ = scan(items, 2)
    assert len(found) == 2
    assert found.rows[1] == 0


@pytest.mark.parametrize("undefined_lengths", [False, True])
@pytest.mark.parametrize("uid", [ROOT, NATIVE, BIG_ENDIAN])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
def test_truncated_sequences_raise(tmp_path, uid, undefined_lengths, fraction):
    image = image_of(uid, undefined_lengths=undefined_lengths)
    path = write_image(tmp_path / "image.dcm", image)
    start = part10.read_header(part10.MemoryBlob("", path.read_bytes())).per_frame.start
    _, end = scanned(path)
    path.write_bytes(path.read_bytes()[: start + int(fraction * (end - start))])
    with pytest.raises(MetadataError, match="truncated"):
        scanned(path)
    with pytest.raises(MetadataError, match=r"image\.dcm"):
        FileSource.open(path).frame_positions()


# -- positions that are wrong ----------------------------------------------------------------


def moved(path, frame, *, row=None, column=None):
    """Write another position into a frame's item."""
    data = bytearray(path.read_bytes())
    for tag, value in ((0x021F, row), (0x021E, column)):
        if value is not None:
            at = -1
            for _ in range(frame + 1):
                at = data.index(struct.pack("<HH", 0x0048, tag) + b"SL\x04\x00", at + 1)
            data[at + 8 : at + 12] = struct.pack("<i", value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (dict(row=1, column=1), "frames 1 and 8 both lie at row 1, column 1"),
        (dict(row=51), "row 51, outside"),
        (dict(row=0), "row 0, outside"),
        (dict(row=-15), "row -15, outside"),
        (dict(column=1000), "column 1000, outside"),
        (dict(row=18), "row 18, which isn't on the grid"),
        (dict(column=34), "column 34, which isn't on the grid"),
    ],
)
def test_frames_that_lie_where_none_can_raise(tmp_path, place, message):
    path = moved(write_image(tmp_path / "image.dcm", image_of()), 7, **place)
    with pytest.raises(FramePositionError, match=rf"image\.dcm, frame 8: .*{message}") as caught:
        matrix_of(path)[...]
    assert (caught.value.source, caught.value.frame) == (str(path), 7)


def test_a_first_frame_that_lies_outside_is_named(tmp_path):
    path = moved(write_image(tmp_path / "image.dcm", image_of()), 0, row=1000)
    with pytest.raises(FramePositionError, match=r"image\.dcm, frame 1: "):
        matrix_of(path)[...]


def test_a_frame_of_a_channel_that_is_not_there_raises(tmp_path):
    path = write_image(tmp_path / "image.dcm", image_of(optical_paths=("DAPI", "FITC")))
    data = path.read_bytes()
    tag = b"\x48\x00\x06\x01SH\x04\x00"
    at = data.rindex(tag + b"FITC")
    path.write_bytes(data[:at] + tag + b"XXXX" + data[at + 12 :])
    with pytest.raises(FramePositionError, match=r"frame 40: .*'XXXX'"):
        matrix_of(path)[...]


def test_positions_win_over_tiled_full(tmp_path):
    def claim_full(dataset):
        dataset.DimensionOrganizationType = "TILED_FULL"

    path = tmp_path / "image.dcm"
    write_image(path, image_of(order="reversed"), change=claim_full)
    np.testing.assert_array_equal(matrix_of(path), expected())


def test_tiled_sparse_without_positions_raises(tmp_path):
    def claim_sparse(dataset):
        dataset.DimensionOrganizationType = "TILED_SPARSE"

    path = write_image(tmp_path / "image.dcm", image_of(sparse=False), change=claim_sparse)
    with pytest.raises(MetadataError, match=r"image\.dcm.*no positions"):
        matrix_of(path)[...]


# -- concatenations --------------------------------------------------------------------------


class Part(SyntheticImage):
    """A run of the frames of an image."""

    span: slice

    def places(self):
        return super().places()[self.span]


def write_part(folder, number, first, stop, *, uid=NATIVE, sparse=False, total=True, **options):
    def change(dataset):
        dataset.SOPInstanceUID = uid_of("part", number)
        dataset.ConcatenationUID = uid_of("concatenation")
        dataset.SOPInstanceUIDOfConcatenationSource = uid_of("source")
        dataset.InConcatenationNumber = number
        if total:
            dataset.InConcatenationTotalNumber = 2
        dataset.ConcatenationFrameOffsetNumber = first
        dataset.NumberOfFrames = stop - first

    image = image_of(uid, sparse=sparse, **options)
    part = Part(**{name: getattr(image, name) for name in image.__dataclass_fields__})
    object.__setattr__(part, "span", slice(first, stop))
    return write_image(folder / f"part-{number}.dcm", part, change=change)


def tiles_of(first, stop):
    """The pixels with those frames only."""
    pixels = np.zeros_like(expected())
    for frame in range(first, stop):
        row, column = divmod(frame, GRID[1])
        here = slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16)
        pixels[here] = expected()[here]
    return pixels


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("uid", [NATIVE, RLE])
@pytest.mark.parametrize("cut", [1, 7, 10, 19])
def test_parts_of_a_concatenation_are_one_image(tmp_path, uid, sparse, cut):
    one = write_part(tmp_path, 1, 0, cut, uid=uid, sparse=sparse)
    two = write_part(tmp_path, 2, cut, NUM_FRAMES, uid=uid, sparse=sparse)
    np.testing.assert_array_equal(matrix_of(one, two), expected())
    np.testing.assert_array_equal(matrix_of(two, one), expected())


def test_parts_in_transfer_syntaxes_of_their_own_are_one_image(tmp_path):
    one = write_part(tmp_path, 1, 0, 7, uid=RLE)
    two = write_part(tmp_path, 2, 7, NUM_FRAMES, uid=NATIVE)
    np.testing.assert_array_equal(matrix_of(one, two), expected())
    np.testing.assert_array_equal(matrix_of(two, one), expected())


def test_parts_of_several_channels_and_planes_are_one_image(tmp_path):
    options = dict(optical_paths=("DAPI", "FITC"), planes=(0.0, 2.0))
    one = write_part(tmp_path, 1, 0, 33, **options)
    two = write_part(tmp_path, 2, 33, 80, **options)
    for channel in range(2):
        for plane in range(2):
            pixels = matrix_of(one, two, channel=channel, plane=plane)
            np.testing.assert_array_equal(pixels, expected(channel, plane))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize(("first", "stop"), [(7, 20), (0, 7), (6, 13)])
def test_a_part_alone_puts_its_frames_at_their_tiles(tmp_path, first, stop, total, sparse):
    path = write_part(tmp_path, 2, first, stop, total=total, sparse=sparse)
    np.testing.assert_array_equal(matrix_of(path), tiles_of(first, stop))


def test_a_missing_part_in_the_middle_raises_where_it_is_read(tmp_path):
    one = write_part(tmp_path, 1, 0, 5)
    three = write_part(tmp_path, 3, 10, NUM_FRAMES)
    matrix = matrix_of(one, three)
    np.testing.assert_array_equal(matrix[:16, :], expected()[:16])
    np.testing.assert_array_equal(matrix[32:, :], expected()[32:])
    with pytest.raises(FrameReadError, match=r"frame 6: .*isn't here"):
        matrix[16:32, :16]


def test_a_missing_first_part_raises_or_is_background(tmp_path):
    two = write_part(tmp_path, 2, 5, 10)
    three = write_part(tmp_path, 3, 10, NUM_FRAMES)
    matrix = matrix_of(two, three)
    np.testing.assert_array_equal(matrix[16:, :], expected()[16:])
    with pytest.raises(FrameReadError, match=r"frame 1: .*isn't here"):
        matrix[:16, :16]


def test_sparse_parts_with_a_gap_are_read_or_refused(tmp_path):
    one = write_part(tmp_path, 1, 0, 5, sparse=True)
    three = write_part(tmp_path, 3, 10, NUM_FRAMES, sparse=True)
    with pytest.raises(MetadataError, match="hold 15 frames of 20"):
        matrix_of(one, three)[...]


def test_parts_that_claim_the_same_frames_raise(tmp_path):
    one = write_part(tmp_path, 1, 0, 12)
    two = write_part(tmp_path, 2, 10, NUM_FRAMES)
    with pytest.raises(MetadataError, match=r"part-2\.dcm: it starts at frame 11"):
        dicomslide.open_slide([one, two])


def test_frames_of_parts_come_in_the_order_in_which_they_are_asked_for(tmp_path):
    one = FileSource.open(write_part(tmp_path, 1, 0, 12))
    two = FileSource.open(write_part(tmp_path, 2, 12, NUM_FRAMES))
    joined = ConcatenatedSource.of([two, one])
    assert joined.read_frames([13, 0, 12, 11]) == [
        *two.read_frames([1]),
        *one.read_frames([0]),
        *two.read_frames([0]),
        *one.read_frames([11]),
    ]
    with pytest.raises(FrameReadError, match="frame 21"):
        joined.read_frames([20])


def test_errors_in_a_part_name_the_part_and_its_frame(tmp_path):
    one = write_part(tmp_path, 1, 0, 12)
    two = write_part(tmp_path, 2, 12, NUM_FRAMES)
    two.write_bytes(two.read_bytes()[:-600])
    with pytest.raises(FrameReadError, match=r"part-2\.dcm, frame 7: "):
        matrix_of(one, two)[...]
