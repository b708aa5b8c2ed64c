"""Tiles make the matrix they were cut from, and frames lie where DICOM says."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

import dicomslide
from dicomslide import (
    FramePositionError,
    MetadataError,
    assemble_total_pixel_matrix,
    compute_frame_positions,
    disassemble_total_pixel_matrix,
)
from dicomslide.backends.part10.file import FileSource
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing import PositionDrawing, SyntheticImage, write_image

# -- assemble and disassemble ----------------------------------------------------------------


@st.composite
def cut_matrices(draw):
    """A matrix, the positions of all tiles of some size, in any order, and that size."""
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    samples = draw(st.sampled_from([(), (1,), (3,)]))
    dtype = draw(st.sampled_from([np.bool_, np.uint8, np.uint16, np.int16, np.float32]))
    values = np.arange(rows * columns * (*samples, 1)[0]).reshape(rows, columns, *samples)
    size = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    positions = [(r, c) for r in range(0, rows, size[0]) for c in range(0, columns, size[1])]
    return values.astype(dtype), draw(st.permutations(positions)), size


@given(cut_matrices())
def test_tiles_make_the_matrix_they_were_cut_from(cut):
    matrix, positions, size = cut
    tiles = disassemble_total_pixel_matrix(matrix, positions, *size)
    assert tiles.shape == (len(positions), *size, *matrix.shape[2:])
    whole = assemble_total_pixel_matrix(tiles, positions, *matrix.shape[:2])
    assert whole.dtype == matrix.dtype
    np.testing.assert_array_equal(whole, matrix)


@pytest.mark.parametrize("samples", [(), (1,)])
def test_tiles_are_those_of_highdicom(samples):
    import highdicom

    matrix = np.arange(1, 23 * 31 + 1, dtype=np.uint16).reshape(23, 31, *samples)
    positions = np.array([(r, c) for r in range(0, 23, 7) for c in range(0, 31, 10)], np.uint32)
    tiles = disassemble_total_pixel_matrix(matrix, positions, 7, 10)
    for tile, (row, column) in zip(tiles, positions.tolist(), strict=True):
        expected = highdicom.spatial.get_tile_array(matrix, row + 1, column + 1, 7, 10)
        np.testing.assert_array_equal(tile, expected)


@pytest.mark.parametrize(
    ("dtype", "samples", "background"),
    [
        (np.uint8, (3,), 255),
        (np.uint16, (3,), 65535),
        (np.float32, (3,), 1),
        (np.uint8, (1,), 0),
        (np.uint8, (), 0),
        (np.bool_, (), False),
        (np.float32, (), 0),
    ],
)
def test_what_no_tile_covers_is_white_in_colour_and_else_0(dtype, samples, background):
    tile = np.full((2, 3, *samples), 7, dtype)
    matrix = assemble_total_pixel_matrix([tile], [(2, 3)], 4, 7)
    assert matrix.shape == (4, 7, *samples)
    assert matrix.dtype == dtype
    covered = np.zeros((4, 7), bool)
    covered[2:4, 3:6] = True
    assert (matrix[covered] == dtype(7)).all()
    assert (matrix[~covered] == background).all()
    (cut,) = disassemble_total_pixel_matrix(matrix, [(3, 5)], 2, 3)
    assert (cut[0, 0] == dtype(7)).all()
    assert (cut[1:] == background).all()
    assert (cut[:, 2:] == background).all()


def test_sizes_are_integers_of_any_type():
    matrix = np.arange(300 * 2).reshape(300, 2)
    positions = np.array([[0, 0], [200, 0]], np.uint8)
    tiles = disassemble_total_pixel_matrix(matrix, positions, np.uint8(100), np.uint8(2))
    np.testing.assert_array_equal(tiles[1], matrix[200:])
    with pytest.raises(dicomslide.MemoryLimitError):
        # the product is 0 in 32 bits
        assemble_total_pixel_matrix(tiles, positions, np.int32(2**18), np.int32(2**18))


def test_of_tiles_that_overlap_the_last_is_seen():
    tiles = [np.full((2, 2), value) for value in (1, 2)]
    matrix = assemble_total_pixel_matrix(tiles, [(0, 0), (1, 1)], 3, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 2, 2], [0, 2, 2]]


def test_a_total_pixel_matrix_assembles_from_its_tiles(position_slide):
    image = dicomslide.open_slide(position_slide).get_volume_images()[0]
    matrix = image.get_total_pixel_matrix()
    whole = assemble_total_pixel_matrix(matrix, matrix.tile_positions, *image.size)
    np.testing.assert_array_equal(whole, matrix[...])
    inside = [0, 1, 2, 4]
    tiles = disassemble_total_pixel_matrix(
        matrix, matrix.tile_positions[inside], *matrix.tile_shape[:2]
    )
    np.testing.assert_array_equal(tiles, matrix[inside])


def test_impossible_tiles_are_value_errors():
    tile = np.zeros((2, 2), np.uint8)
    for tiles, positions, reason in (
        ([], [], "no tiles"),
        ([tile], [(0, 0), (0, 2)], "1 tiles, but 2 positions"),
        ([tile], [(4, 0)], r"tile 0 lies at \(4, 0\), outside"),
        ([tile, tile], [(0, 0), (-1, 0)], r"tile 1 lies at \(-1, 0\), outside"),
        ([tile, tile[..., None]], [(0, 0), (2, 2)], "tile 1 has shape"),
        ([tile, tile.astype(float)], [(0, 0), (2, 2)], "tile 1 has shape"),
        ([tile], [(0.5, 0)], "integers"),
        ([tile], [0], "integers"),
    ):
        with pytest.raises(ValueError, match=reason):
            assemble_total_pixel_matrix(tiles, positions, 4, 4)
    for matrix, positions, size, reason in (
        (np.zeros(4), [(0, 0)], (2, 2), "two or three dimensions"),
        (np.zeros((4, 4)), [(0, 0)], (0, 2), "are empty"),
        (np.zeros((4, 4)), [(0, 4)], (2, 2), "outside"),
    ):
        with pytest.raises(ValueError, match=reason):
            disassemble_total_pixel_matrix(matrix, positions, *size)


def test_sizes_are_checked_before_memory_is_taken():
    tile = np.zeros((2, 2), np.uint8)
    with pytest.raises(dicomslide.MemoryLimitError):
        assemble_total_pixel_matrix([tile], [(0, 0)], 10**7, 10**7)
    with pytest.raises(dicomslide.MemoryLimitError):
        disassemble_total_pixel_matrix(tile, [(0, 0)], 10**7, 10**7)


# -- where frames lie ------------------------------------------------------------------------

# the worked examples of orientation: origin, cosines, spacing, matrix; (3, 7) lies at
EXAMPLES = {
    "typical": ((10, 20), (0, -1, -1, 0), (0.001, 0.001), (20, 30), (9.997, 19.993)),
    "anisotropic": ((5, 40), (1, 0, 0, -1), (0.002, 0.0005), (20, 30), (5.0035, 39.994)),
    "turned": ((2, 3), (0, 1, 1, 0), (0.004, 0.002), (10, 25), (2.012, 3.014)),
    "mirrored": ((7, 8), (1, 0, 0, 1), (0.001, 0.001), (20, 30), (7.007, 8.003)),
    "oblique": (
        (10, 20),
        (0.75**0.5, 0.5, 0.5, -(0.75**0.5)),
        (0.001, 0.001),
        (20, 30),
        (10.007562, 20.000902),
    ),
}


def image_of(example="typical", *, tile=(3, 7), shape=None, **options):
    origin, (ux, uy, vx, vy), spacing, example_shape, _ = EXAMPLES[example]
    geometry = SlideGeometry(origin, (ux, uy), (vx, vy), spacing, shape or example_shape)
    pixel_format = PixelFormat(rows=tile[0], columns=tile[1])
    return SyntheticImage(
        geometry=geometry,
        drawing=PositionDrawing(1, np.uint8),
        pixel_format=pixel_format,
        **options,
    )


STACK = dict(optical_paths=("9", "10"), planes=(5.0, 7.0, 9.0))


def assert_places(dataset, places, image):
    """Compare with the (channel, plane, tile) of each frame, as they were written."""
    import highdicom

    positions, slide, channels, planes = compute_frame_positions(dataset)
    grid = image.grid
    assert positions.dtype == np.uint32
    assert channels.tolist() == [channel for channel, _, _ in places]
    assert planes.tolist() == [plane for _, plane, _ in places]
    for position, xyz, (_, plane, tile) in zip(positions, slide, places, strict=True):
        row, column = grid.position(tile)
        assert position.tolist() == [row * grid.tile_rows, column * grid.tile_columns]
        expected = highdicom.utils.compute_plane_position_tiled_full(
            row_index=row + 1,
            column_index=column + 1,
            x_offset=image.geometry.origin[0],
            y_offset=image.geometry.origin[1],
            rows=grid.tile_rows,
            columns=grid.tile_columns,
            image_orientation=(
                *image.geometry.row_direction,
                0.0,
                *image.geometry.column_direction,
                0.0,
            ),
            pixel_spacing=image.geometry.spacing,
        )[0]
        assert xyz[0] == pytest.approx(float(expected.XOffsetInSlideCoordinateSystem), abs=1e-6)
        assert xyz[1] == pytest.approx(float(expected.YOffsetInSlideCoordinateSystem), abs=1e-6)
        assert xyz[2] == pytest.approx(image.planes[plane] / 1000, abs=1e-12)


@pytest.mark.parametrize("example", EXAMPLES)
def test_frames_lie_where_the_worked_examples_say(tmp_path, example):
    image = image_of(example)
    path = write_image(tmp_path / "image.dcm", image)
    positions, slide, _, _ = compute_frame_positions(pydicom.dcmread(path))
    at = positions.tolist().index([3, 7])
    assert slide[at, :2] == pytest.approx(EXAMPLES[example][-1], abs=1e-6)
    assert slide[0].tolist() == pytest.approx([*EXAMPLES[example][0], 0.0])


@pytest.mark.parametrize("read", ["pydicom", "dicomslide"])
@pytest.mark.parametrize("sparse", [False, True], ids=["TILED_FULL", "TILED_SPARSE"])
@pytest.mark.parametrize("stack", [{}, STACK], ids=["one plane", "stack"])
def test_frames_lie_where_they_were_written(tmp_path, sparse, stack, read):
    options = dict(order="reversed", absent=frozenset({(1, 2)})) if sparse else {}
    image = image_of(sparse=sparse, **options, **stack)
    path = write_image(tmp_path / "image.dcm", image)
    dataset = pydicom.dcmread(path) if read == "pydicom" else FileSource.open(path).metadata
    assert_places(dataset, image.places(), image)


def test_positions_in_memory_are_read_from_bytes_and_from_items_alike(tmp_path):
    image = image_of(sparse=True, order="reversed", **STACK)
    path = write_image(tmp_path / "image.dcm", image)
    raw, parsed = (pydicom.dcmread(path, stop_before_pixels=True) for _ in range(2))
    for group in parsed.PerFrameFunctionalGroupsSequence:
        assert group.PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix
    by_json = Dataset.from_json(parsed.to_json())  # as it comes over DICOMweb
    assert not hasattr(by_json, "filename")
    for dataset in (raw, parsed, by_json):
        assert_places(dataset, image.places(), image)
    # no data set was made for a frame whose bytes say all
    assert raw.get_item("PerFrameFunctionalGroupsSequence").is_raw


def test_positions_are_those_that_highdicom_computes(tmp_path):
    import highdicom

    image = image_of(**STACK)
    dataset = pydicom.dcmread(write_image(tmp_path / "image.dcm", image))
    positions, slide, channels, planes = compute_frame_positions(dataset)
    theirs = list(highdicom.spatial.iter_tiled_full_frame_data(dataset))
    assert len(theirs) == len(positions)
    for i, (channel, plane, column, row, x, y, _) in enumerate(theirs):
        assert (channels[i] + 1, planes[i] + 1) == (channel, plane)
        assert positions[i].tolist() == [row - 1, column - 1]
        assert slide[i, :2] == pytest.approx((x, y))


def test_channels_count_along_items_though_some_have_no_frames(tmp_path):
    """The shared groups say to which of the items of the Optical Path Sequence frames belong."""

    def of_the_second_path(dataset):
        groups = dataset.SharedFunctionalGroupsSequence[0]
        groups.OpticalPathIdentificationSequence[0].OpticalPathIdentifier = "A"
        path = copy.deepcopy(dataset.OpticalPathSequence[0])
        path.OpticalPathIdentifier = "A"
        dataset.OpticalPathSequence.append(path)

    path = write_image(tmp_path / "image.dcm", image_of(), change=of_the_second_path)
    positions, _, channels, _ = compute_frame_positions(pydicom.dcmread(path))
    assert channels.tolist() == [1] * len(positions)


def test_a_million_frames_are_arithmetic():
    image = image_of(tile=(16, 16), shape=(16_000, 16_000))
    dataset = dicomslide.testing.image.header_of(image)
    assert dataset.NumberOfFrames == 1_000_000
    positions, slide, channels, planes = compute_frame_positions(dataset)
    assert positions[[0, 999, 1000, 999_999]].tolist() == [
        [0, 0],
        [0, 15984],
        [16, 0],
        [15984, 15984],
    ]
    np.testing.assert_allclose(slide[-1], [10 - 15.984, 20 - 15.984, 0], atol=1e-9)
    assert not channels.any()
    assert not planes.any()


def test_a_part_of_a_concatenation_knows_its_place(tmp_path):
    def as_part(dataset):
        dataset.ConcatenationUID = "1.2.3"
        dataset.ConcatenationFrameOffsetNumber = 10
        dataset.InConcatenationNumber = 2
        dataset.NumberOfFrames = 5

    dataset = pydicom.dcmread(write_image(tmp_path / "part.dcm", image_of(), change=as_part))
    positions, *_ = compute_frame_positions(dataset)
    assert positions.tolist() == [[6, 0], [6, 7], [6, 14], [6, 21], [6, 28]]


def test_missing_positions_are_a_metadata_error_that_says_so(tmp_path):
    image = image_of(sparse=True)
    path = write_image(tmp_path / "image.dcm", image)
    dataset = FileSource.open(path).metadata
    alone = Dataset()
    alone.update(dataset)
    with pytest.raises(MetadataError, match="no Per-Frame Functional Groups Sequence"):
        compute_frame_positions(alone)
    other = dataclasses.replace(image, instance_number=2)
    write_image(path, other)  # the file isn't any more the one that the header is from
    with pytest.raises(MetadataError, match=r"image\.dcm.*no Per-Frame Functional Groups Seq"):
        compute_frame_positions(dataset)
    path.unlink()
    with pytest.raises(MetadataError, match=r"image\.dcm.*no Per-Frame Functional Groups Seq"):
        compute_frame_positions(dataset)


def test_contradictory_positions_are_errors(tmp_path):
    path = write_image(tmp_path / "image.dcm", image_of(sparse=True))
    dataset = pydicom.dcmread(path)
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[3].PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix = 1
    with pytest.raises(FramePositionError, match="frames 1 and 4 both lie at row 1, column 1"):
        compute_frame_positions(dataset)
    groups[3].PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix = 71
    with pytest.raises(FramePositionError, match="frame 4: it lies at column 71, outside"):
        compute_frame_positions(dataset)
    del groups[3].PlanePositionSlideSequence
    with pytest.raises(MetadataError, match="34 of 35 items"):
        compute_frame_positions(dataset)
    del groups[3]
    with pytest.raises(MetadataError, match="34 items for 35 frames"):
        compute_frame_positions(dataset)


@pytest.mark.parametrize(
    "keyword", ["ImageOrientationSlide", "TotalPixelMatrixOriginSequence", "TotalPixelMatrixRows"]
)
def test_a_header_without_what_is_needed_is_a_metadata_error(tmp_path, keyword):
    path = write_image(tmp_path / "image.dcm", image_of(), change=lambda ds: delattr(ds, keyword))
    with pytest.raises(MetadataError, match=r"image\.dcm: n"):
        compute_frame_positions(pydicom.dcmread(path))
