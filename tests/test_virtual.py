"""Virtual Zarr: pixels through zarr are those of the slide; what can't be is refused by name."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.errors import FrameDecodeError, FramePositionError, NotVirtualError
from dicomslide.pixels import PixelFormat
from dicomslide.testing import ENCODERS, encode_frame, write_image, write_slide
from tests.support.derive import mapping, write_map, write_segmentation
from tests.support.optional import need
from tests.support.quirky import (
    BASELINE,
    BIG_ENDIAN,
    EXTENDED,
    J2K,
    NATIVE,
    RLE,
    bit_packed,
    changed,
    expected,
    open_stored,
    pyramid,
    setting,
    twelve_bits,
    write,
)

need("virtualizarr", "zarr")
import obstore  # noqa: E402
import zarr  # noqa: E402
from obspec_utils.registry import ObjectStoreRegistry  # noqa: E402
from virtualizarr import open_virtual_datatree  # noqa: E402
from virtualizarr.manifests import ManifestArray, ManifestGroup, ManifestStore  # noqa: E402
from virtualizarr.parsers.typing import Parser  # noqa: E402

from dicomslide.virtual import DicomParser  # noqa: E402
from dicomslide.virtual.codec import FrameCodec  # noqa: E402
from dicomslide.virtual.documents import array_document  # noqa: E402

UID = "1.2.840.10008.1.2"
DEFLATED, ENCAPSULATED_NATIVE = f"{UID}.1.99", f"{UID}.1.98"
HAS_ZARR_CODECS = importlib.util.find_spec("imagecodecs.zarr") is not None
"""Whether imagecodecs has codecs of zarr 3: its releases for Python 3.12 and later."""


def registry():
    return ObjectStoreRegistry({"file://": obstore.store.LocalStore()})


def through_zarr(variable):
    """Read a virtual array as zarr reads it."""
    from zarr.core.metadata.v3 import ArrayV3Metadata

    metadata = ArrayV3Metadata.from_dict(array_document(variable, "."))
    array = ManifestArray(metadata, variable.data.manifest)
    store = ManifestStore(ManifestGroup(arrays={"image": array}), registry=registry())
    return zarr.open_array(store, path="image", mode="r")[...]


def codec_names(variable):
    return [codec.to_dict()["name"] for codec in variable.data.metadata.codecs]


def assert_same(slide, **options):
    """Assert that the variables of the virtual tree have pixels and attributes of the slide."""
    virtual = slide.to_virtual(**options)
    ours = slide.to_datatree(orientation="stored", mask_and_scale=False, **options)
    assert virtual.groups == ours.groups
    checked = 0
    for path in ours.groups:
        theirs = virtual[path].dataset
        assert theirs.attrs == ours[path].attrs
        assert set(theirs.coords) == set(ours[path].coords)
        for name, variable in ours[path].dataset.data_vars.items():
            if name.endswith("_scanned"):
                assert name not in theirs
                continue
            found = theirs[name].variable
            assert (found.dims, found.dtype) == (variable.dims, variable.dtype)
            assert found.attrs == variable.attrs
            np.testing.assert_array_equal(through_zarr(found), variable.values)
            checked += 1
    assert checked
    return virtual


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [uid for uid in ENCODERS if uid not in (DEFLATED, BIG_ENDIAN)])
@pytest.mark.parametrize("samples", [1, 3])
def test_pixels_of_every_transfer_syntax_are_those_of_the_slide(tmp_path, uid, samples):
    path = tmp_path / "image.dcm"
    if uid != EXTENDED:
        write(path, uid, samples=samples)
    elif samples == 1:  # 12 bits
        write_image(path, twelve_bits())
    else:
        write(path, uid, encoded=pillow_frame)
    assert_same(open_stored(path))


@pytest.mark.parametrize("table", ["basic", "extended", "empty"])
@pytest.mark.parametrize("uid", [BASELINE, RLE, ENCAPSULATED_NATIVE])
def test_frames_are_found_by_any_offset_table(tmp_path, uid, table):
    assert_same(open_stored(write(tmp_path / "image.dcm", uid, offset_table=table)))


@pytest.mark.parametrize("uid", [NATIVE, BIG_ENDIAN, RLE, J2K])
def test_words_of_sixteen_bits_have_their_byte_order(tmp_path, uid):
    path = write(tmp_path / "image.dcm", uid, samples=1, bits=16)
    virtual = assert_same(open_stored(path))
    if uid in (NATIVE, BIG_ENDIAN):
        assert codec_names(virtual["level_0"].image.variable) == ["bytes"]


def test_planes_of_samples_are_transposed_by_zarr(tmp_path):
    form = PixelFormat(rows=16, columns=32, samples=3, planar=True)
    path = write(tmp_path / "image.dcm", pixel_format=form, change=setting(PlanarConfiguration=1))
    virtual = assert_same(open_stored(path))
    assert codec_names(virtual["level_0"].image.variable) == ["transpose", "bytes"]


def test_bits_beside_those_stored_are_left_out(tmp_path):
    path = write_image(tmp_path / "image.dcm", dataclasses.replace(
        twelve_bits(), transfer_syntax_uid=NATIVE))  # fmt: skip
    dataset = pydicom.dcmread(path)
    words = np.frombuffer(dataset.PixelData, "<u2") | 0xF000
    dataset.PixelData = words.tobytes()
    dataset.save_as(path)
    virtual = assert_same(open_stored(path))
    assert codec_names(virtual["level_0"].image.variable) == ["dicomslide_frame"]
    assert through_zarr(virtual["level_0"].image.variable).max() < 4096


def test_channels_and_focal_planes_are_dims(tmp_path):
    write_slide(tmp_path / "slide", shape=(60, 70), tile_shape=(32, 32), downsamples=(1, 2),
                samples=1, bits=16, drawing="position", transfer_syntax_uid=NATIVE,
                optical_paths=("1", "2"), planes=(0.0, 1.5, 3.0))  # fmt: skip
    virtual = assert_same(open_stored(tmp_path / "slide"), associated=True)
    assert virtual["level_1"].image.dims == ("channel", "z", "row", "column")
    assert {"label", "overview"} <= virtual.children.keys()


@pytest.mark.parametrize("uid", [NATIVE, BASELINE])
def test_absent_tiles_are_absent_chunks_with_the_background(tmp_path, uid):
    write_slide(tmp_path / "slide", shape=(60, 70), tile_shape=(32, 32), downsamples=(1,),
                sparse=True, absent=[(0, 1), (1, 2)], transfer_syntax_uid=uid)  # fmt: skip
    virtual = assert_same(open_stored(tmp_path / "slide"))
    variable = virtual["level_0"].image.variable
    assert len(variable.data.manifest.dict()) == 4
    assert (through_zarr(variable)[:32, 32:64] == 255).all()


def test_frames_without_bytes_are_absent_chunks(tmp_path):
    shape, tile = (32, 64), (16, 32)
    pixels = expected(shape)

    def encoded(channel, plane, number):
        row, column = divmod(number, 2)
        here = pixels[16 * row : 16 * row + 16, 32 * column : 32 * column + 32]
        return b"" if number == 1 else encode_frame(here, form, RLE)

    form = PixelFormat(rows=tile[0], columns=tile[1], samples=3)
    path = write(tmp_path / "image.dcm", RLE, shape=shape, tile=tile, encoded=encoded)
    variable = open_stored(path).to_virtual()["level_0"].image.variable
    found = through_zarr(variable)
    assert (found[:16, 32:] == 255).all()
    np.testing.assert_array_equal(found[:16, :32], pixels[:16, :32])
    np.testing.assert_array_equal(found[16:], pixels[16:])


def test_a_concatenation_is_one_array_of_several_files(tmp_path):
    for number, frames in enumerate([slice(0, 5), slice(5, 12)]):
        write(
            tmp_path / f"{number}.dcm",
            arrange=lambda places, frames=frames: places[frames],
            instance_number=number + 1,
            change=setting(
                ConcatenationUID="1.2.3",
                SOPInstanceUIDOfConcatenationSource="1.2.4",
                InConcatenationNumber=number + 1,
                InConcatenationTotalNumber=2,
                ConcatenationFrameOffsetNumber=frames.start,
                NumberOfFrames=frames.stop - frames.start,
            ),
        )
    virtual = assert_same(open_stored(tmp_path))
    paths = {entry["path"] for entry in virtual["level_0"].image.data.manifest.dict().values()}
    assert len(paths) == 2


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    tile=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    samples=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_any_matrix_tiles_and_order_of_frames(tmp_path_factory, shape, tile, samples, seed):
    def arrange(places):
        order = np.random.default_rng(seed).permutation(len(places))
        return [places[i] for i in order[: max(1, len(order) - seed % 3)]]

    path = tmp_path_factory.mktemp("any") / "image.dcm"
    write(path, shape=shape, tile=tile, samples=samples, sparse=True, arrange=arrange)
    slide = open_stored(path)
    pixels = through_zarr(slide.to_virtual()["level_0"].image.variable)
    ours = slide.get_image_region((0, 0), 0, shape)
    np.testing.assert_array_equal(pixels.reshape(ours.shape), ours)


# -- JPEG ------------------------------------------------------------------------------------------


def pillow_frame(*place, size=(32, 16), mode="RGB", **options):
    """Return a JPEG frame that Pillow has encoded."""
    pixels = np.random.default_rng(place).integers(0, 255, (*size[::-1], 3), np.uint8)
    picture = Image.fromarray(pixels).resize(size).convert(mode)
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=90, **options)
    return target.getvalue()


@pytest.mark.parametrize("claimed", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"subsampling": "4:4:4"}])
def test_colours_of_jpeg_are_decided_by_its_markers(tmp_path, claimed, options):
    path = write(
        tmp_path / "image.dcm",
        BASELINE,
        encoded=lambda *place: pillow_frame(*place, **options),
        change=setting(PhotometricInterpretation=claimed),
    )
    assert_same(open_stored(path))


def test_frames_of_different_colour_spaces_have_our_codec(tmp_path):
    path = write(
        tmp_path / "image.dcm",
        BASELINE,
        encoded=lambda *place: pillow_frame(*place, keep_rgb=place[-1] % 2 == 1),
    )
    virtual = assert_same(open_stored(path))
    assert codec_names(virtual["level_0"].image.variable) == ["dicomslide_frame"]


def test_one_frame_of_another_colour_space_decides_the_codec(tmp_path):
    """Frame 24 of 49 is neither at an edge, nor in a sample by place."""

    def encoded(channel, plane, tile):
        return pillow_frame(tile, size=(16, 16), keep_rgb=tile == 24)

    path = write(tmp_path / "image.dcm", BASELINE, shape=(112, 112), tile=(16, 16),
                 encoded=encoded)  # fmt: skip
    virtual = assert_same(open_stored(path))
    assert codec_names(virtual["level_0"].image.variable) == ["dicomslide_frame"]


def blank_tiles(*numbers):
    """Return an encoder of frames of which some are blank, by another encoder: RGB, and short."""

    def encoded(channel, plane, tile):
        if tile not in numbers:
            return pillow_frame(tile, size=(16, 16))
        target = io.BytesIO()
        Image.new("RGB", (16, 16), (240, 241, 239)).save(target, "JPEG", keep_rgb=True)
        return target.getvalue()

    return encoded


@pytest.mark.parametrize("numbers", [(24,), (16, 17, 24)])
def test_a_sample_has_blank_tiles(tmp_path, numbers):
    path = write(tmp_path / "image.dcm", BASELINE, shape=(112, 112), tile=(16, 16),
                 encoded=blank_tiles(*numbers))  # fmt: skip
    virtual = open_stored(path).to_virtual(check_frames="sample")
    assert codec_names(virtual["level_0"].image.variable) == ["dicomslide_frame"]


@pytest.fixture
def heads(monkeypatch):
    """Offsets of the frames whose first bytes were read."""
    found = []
    original = FileSource.read_heads

    def spying(self, offsets, length):
        found.extend(offsets)
        return original(self, offsets, length)

    monkeypatch.setattr(FileSource, "read_heads", spying)
    return found


@pytest.mark.skipif(not HAS_ZARR_CODECS, reason="imagecodecs for Python 3.11 has no codecs of zarr")
def test_each_frame_of_a_file_is_examined_unless_a_sample_is_wanted(tmp_path, heads):
    path = write(tmp_path / "image.dcm", BASELINE, shape=(160, 160), tile=(16, 16),
                 encoded=lambda *place: pillow_frame(*place, size=(16, 16)))  # fmt: skip
    slide = open_stored(path)
    for options, least, most in (({}, 100, 100), ({"check_frames": "sample"}, 12, 29)):
        heads.clear()
        virtual = slide.to_virtual(**options)
        assert least <= len(heads) <= most
        assert codec_names(virtual["level_0"].image.variable) == ["imagecodecs_jpeg"]


def test_which_frames_are_examined_is_one_of_two_words(tmp_path):
    slide = open_stored(write(tmp_path / "image.dcm"))
    with pytest.raises(ValueError, match="check_frames must be"):
        slide.to_virtual(check_frames="each")


def test_cropped_tiles_at_the_edge_are_placed_top_left(tmp_path):
    def encoded(channel, plane, tile):
        return pillow_frame(tile, size=(6, 16) if tile % 3 == 2 else (32, 16))

    path = write(tmp_path / "image.dcm", BASELINE, encoded=encoded)
    virtual = assert_same(open_stored(path))
    assert codec_names(virtual["level_0"].image.variable) == ["dicomslide_frame"]


@pytest.mark.skipif(not HAS_ZARR_CODECS, reason="imagecodecs for Python 3.11 has no codecs of zarr")
def test_jpeg_needs_imagecodecs_only(tmp_path):
    virtual = open_stored(pyramid(tmp_path, transfer_syntax_uid=BASELINE)).to_virtual()
    assert codec_names(virtual["level_0"].image.variable) == ["imagecodecs_jpeg"]


# -- segmentations and maps ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native_slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    pyramid(folder, tile_shape=(16, 16))
    return folder


def with_file(slide, target, make):
    """Return a slide of the files of another one, and what `make` writes."""
    files = sorted(slide.glob("*.dcm"))
    made = make(target / "derived.dcm", files[0])
    return open_stored([*files, made])


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segmentations_are_those_of_the_slide(native_slide, tmp_path, kind):
    need("highdicom")
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, (60, 80)).astype(np.uint8)
    masks = np.stack([labels == 1, labels == 2], axis=-1)
    pixels = labels if kind == "LABELMAP" else masks
    pixels = pixels.astype(float) if kind == "FRACTIONAL" else pixels
    given = {"max_fractional_value": 200} if kind == "FRACTIONAL" else {}
    slide = with_file(
        native_slide,
        tmp_path,
        lambda path, source: write_segmentation(
            path, source, pixels, kind, tile_size=(16, 32), **given
        ),
    )
    virtual = assert_same(slide)
    (variable,) = (
        node.dataset["segmentation"].variable
        for node in virtual.subtree
        if "segmentation" in node.dataset
    )
    expected_codec = "dicomslide_frame" if kind == "BINARY" else "bytes"
    assert codec_names(variable) == [expected_codec]


def test_maps_of_floats_are_plain_bytes_and_nan_where_absent(native_slide, tmp_path):
    need("highdicom")
    values = np.random.default_rng(6).normal(size=(60, 80, 1)).astype(np.float32)
    slide = with_file(
        native_slide,
        tmp_path,
        lambda path, source: write_map(path, source, values, [[mapping("a")]]),
    )
    virtual = assert_same(slide)
    (variable,) = (
        node.dataset["parametric_map"].variable
        for node in virtual.subtree
        if "parametric_map" in node.dataset
    )
    assert codec_names(variable) == ["bytes"]
    assert np.isnan(variable.data.metadata.fill_value)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["basic", "empty"])
@pytest.mark.parametrize("uid", [BASELINE, J2K])
def test_frames_of_several_fragments_are_refused(tmp_path, uid, table):
    path = write(tmp_path / "image.dcm", uid, offset_table=table, fragments=2)
    with pytest.raises(NotVirtualError, match=r"image\.dcm, frame \d+: it has several fragments"):
        open_stored(path).to_virtual()


def test_a_deflated_file_is_refused(tmp_path):
    path = write(tmp_path / "image.dcm", DEFLATED)
    with pytest.raises(NotVirtualError, match=r"image\.dcm: its data set is deflated"):
        open_stored(path).to_virtual()


def test_bytes_in_swapped_words_are_refused(tmp_path):
    path = write(tmp_path / "image.dcm", BIG_ENDIAN)
    with pytest.raises(NotVirtualError, match=r"image\.dcm, frame 1: .* swapped 16-bit words"):
        open_stored(path).to_virtual()


@pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")
def test_frames_that_begin_within_a_byte_are_refused(tmp_path):
    bit_packed(tmp_path)
    with pytest.raises(NotVirtualError, match=r"level-0\.dcm, frame 2: it begins within a byte"):
        open_stored(tmp_path).to_virtual()


def test_tiles_off_the_grid_are_refused(tmp_path):
    def shift(dataset):
        position = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSlideSequence[0]
        position.ColumnPositionInTotalImagePixelMatrix += 3

    path = write(tmp_path / "image.dcm", sparse=True)
    changed(path, shift)
    with pytest.raises(FramePositionError, match=r"image\.dcm, frame 2"):
        open_stored(path).to_virtual()


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"size": (64, 16)}, "holds 16 × 64 pixels.*declares 16 × 32"),
        ({"mode": "L"}, "1 samples per pixel.*declares 3"),
    ],
)
def test_codestreams_that_contradict_their_header_are_refused(tmp_path, frame, reason):
    path = write(
        tmp_path / "image.dcm", BASELINE, encoded=lambda *place: pillow_frame(*place, **frame)
    )
    with pytest.raises(NotVirtualError, match=rf"image\.dcm, frame 1: .*{reason}"):
        open_stored(path).to_virtual()


def test_what_is_no_codestream_is_refused(tmp_path):
    path = write(tmp_path / "image.dcm", BASELINE, encoded=lambda *place: b"no JPEG at all.." * 9)
    with pytest.raises(NotVirtualError, match=r"image\.dcm, frame 1: no JPEG codestream"):
        open_stored(path).to_virtual()


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path / "image.dcm", BASELINE, offset_table="extended")
    data = path.read_bytes()
    path.write_bytes(data[:-300])
    with pytest.raises(NotVirtualError, match=r"image\.dcm, frame 12"):
        open_stored(path).to_virtual()


def test_bytes_without_a_file_are_refused(tmp_path):
    data = write(tmp_path / "image.dcm").read_bytes()
    with pytest.raises(NotVirtualError, match="in memory, without a URL"):
        dicomslide.open_slide(data).to_virtual()


def test_files_in_an_archive_are_refused(tmp_path):
    need("fsspec")
    with zipfile.ZipFile(tmp_path / "slide.zip", "w") as archive:
        archive.write(write(tmp_path / "image.dcm"), "image.dcm")
    slide = dicomslide.open_slide(f"zip://::{tmp_path / 'slide.zip'}")
    with pytest.raises(NotVirtualError, match="in an archive"):
        slide.to_virtual()


def test_channels_with_tiles_of_two_sizes_are_refused(tmp_path):
    for number, tile in enumerate([(16, 16), (32, 32)], 1):
        write(tmp_path / f"{number}.dcm", samples=1, tile=tile, optical_paths=(str(number),),
              instance_number=number)  # fmt: skip
    with pytest.raises(NotVirtualError, match=r"\d\.dcm: tiles of .* chunks have one size"):
        open_stored(tmp_path).to_virtual()


def test_channels_of_two_encodings_are_refused(tmp_path):
    for number, uid in enumerate([NATIVE, RLE], 1):
        write(tmp_path / f"{number}.dcm", uid, samples=1, optical_paths=(str(number),),
              instance_number=number)  # fmt: skip
    with pytest.raises(NotVirtualError, match=r"\d\.dcm: its frames need the codec"):
        open_stored(tmp_path).to_virtual()


def test_absent_tiles_of_a_colour_are_refused(tmp_path):
    path = write(
        tmp_path / "image.dcm",
        sparse=True,
        absent=frozenset({(0, 0)}),
        change=setting(RecommendedAbsentPixelCIELabValue=[0x8000, 0xA000, 0x6000]),
    )
    with pytest.raises(NotVirtualError, match=r"image\.dcm: absent tiles have the colour"):
        open_stored(path).to_virtual()


# -- codec and parser ------------------------------------------------------------------------------


def test_our_codec_is_found_by_the_entry_point():
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("the project isn't there")
    points = tomllib.loads(project.read_text())["project"]["entry-points"]["zarr.codecs"]
    module, _, name = points["dicomslide_frame"].partition(":")
    assert getattr(importlib.import_module(module), name) is FrameCodec
    codec = FrameCodec(transfer_syntax_uid=RLE, pixel_format={"samples": 3})
    assert FrameCodec.from_dict(codec.to_dict()) == codec
    assert zarr.registry.get_codec_class("dicomslide_frame") is FrameCodec


def test_a_pixel_format_that_is_unknown_is_an_error():
    with pytest.raises(ValueError, match="unknown fields of the pixel format: colour"):
        FrameCodec(transfer_syntax_uid=RLE, pixel_format={"colour": 3})


def test_a_damaged_frame_raises_through_zarr(tmp_path):
    path = write(tmp_path / "image.dcm", RLE)
    slide = open_stored(path)
    variable = slide.to_virtual()["level_0"].image.variable
    entry = variable.data.manifest.dict()["2.1.0"]
    with open(path, "r+b") as file:
        file.seek(entry["offset"])
        file.write(b"\xff" * 64)
    with pytest.raises(FrameDecodeError, match="RLE header"):
        through_zarr(variable)


@pytest.mark.parametrize("uid", [NATIVE, BASELINE, RLE])
def test_the_parser_is_one_of_virtualizarr(tmp_path, uid):
    path = write(tmp_path / "image.dcm", uid, sparse=True, absent=frozenset({(1, 1)}))
    parser = DicomParser()
    assert isinstance(parser, Parser)
    known = registry()
    ours = open_stored(path).to_datatree(orientation="stored")
    opened = xr.open_datatree(parser(path.as_uri(), known), engine="zarr", consolidated=False)
    np.testing.assert_array_equal(opened["level_0"].image, ours["level_0"].image)
    assert opened["level_0"].image.attrs == ours["level_0"].image.attrs
    assert list(opened["level_0"].sample.values) == ["r", "g", "b"]
    assert opened.attrs == ours.attrs
    virtual = open_virtual_datatree(url=path.as_uri(), registry=known, parser=parser)
    assert isinstance(virtual["level_0"].image.data, ManifestArray)
    assert virtual["level_0"].row[-1] == 49
