"""Where segmentations go, who computes them, and what other programs find in them."""

from __future__ import annotations

import io
import pickle
import re
import shutil
import subprocess

import dask
import dask.array as da
import numpy as np
import pydicom
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide.testing import write_slide
from dicomslide.write.blocks import blocks_along
from dicomslide.write.frames import FrameForm, join_bits
from tests.support import orthanc
from tests.support.moto_bucket import serving_bucket
from tests.support.workers import some_workers

NATIVE = "1.2.840.10008.1.2.1"
RLE = "1.2.840.10008.1.2.5"
JPEG_LS = "1.2.840.10008.1.2.4.80"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(
        folder, shape=(203, 310), downsamples=(1, 2), tile_shape=(32, 40), associated=False,
        slide_number=404,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def slide(folder):
    return dicomslide.open_slide(folder)


@pytest.fixture(scope="module")
def mask(slide):
    return slide.to_dataset(chunks={"y": 80, "x": 64}).image.mean("sample") < 180


def read(folder, *paths):
    return dicomslide.open_slide([*sorted(folder.glob("level-*.dcm")), *paths]).to_datatree()


# -- who computes --------------------------------------------------------------------------------


def as_numbers(pixels, kind):
    if kind == "BINARY":
        return pixels < 180
    return (pixels / 255).astype("float32") if kind == "FRACTIONAL" else (pixels / 64).astype("u1")


SEGMENTS = {"BINARY": "tissue", "FRACTIONAL": "tissue", "LABELMAP": ["a", "b", "c"]}
FORMS = [
    ("BINARY", NATIVE, "TILED_FULL"), ("FRACTIONAL", JPEG_LS, "TILED_FULL"),
    ("LABELMAP", RLE, "TILED_SPARSE"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::dicomslide.ViewerWarning")
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.needs("distributed")
def test_workers_of_a_cluster_write_what_threads_write(slide, tmp_path):
    pixels = slide.to_dataset(chunks={"y": 80, "x": 64}).image.mean("sample")

    def written(name):
        for kind, syntax, organization in FORMS:
            (path,) = dicomslide.write_segmentation(
                as_numbers(pixels, kind), slide, tmp_path / f"{name}-{kind}.dcm", kind=kind,
                segments=SEGMENTS[kind], transfer_syntax_uid=syntax, organization=organization,
            )  # fmt: skip
            yield pydicom.dcmread(path).PixelData

    here = list(written("threads"))
    with some_workers(2):
        assert list(written("cluster")) == here


def test_workers_without_the_folder_say_what_they_need(mask, slide, tmp_path):
    def elsewhere(block):
        for path in tmp_path.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        return block

    data = mask.data.map_blocks(elsewhere, dtype=bool, meta=np.empty((0, 0), bool))
    with pytest.raises(dicomslide.ExportError, match="temporary_folder="):
        dicomslide.write_segmentation(mask.copy(data=data), slide, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("skimage")
def test_what_models_return_streams_into_instances(slide, folder, tmp_path):
    from dicomslide import recipes

    calls = []

    def model(tile):
        calls.append(tile.shape)
        dark = 1 - tile.mean(-1) / 255
        return np.stack([dark, 1 - dark, dark**2])

    image = slide.to_dataset(chunks="auto").image
    names = ["tumour", "stroma", "necrosis"]
    classes = recipes.map_tiles(image, model, tile=64, dims={"class": names}, factor=1)
    count = len(calls)
    paths = dicomslide.write_segmentation(classes, slide, tmp_path, kind="FRACTIONAL")
    assert [path.rpartition("/")[2] for path in paths] == [
        f"segmentation_level_0_segment_{number}.dcm" for number in (1, 2, 3)
    ]
    tiles = -(-310 // 64) * -(-203 // 64)
    assert len(calls) - count == tiles
    expected = classes.compute()
    for name, path in zip(names, paths, strict=True):
        found = read(folder, path)["level_0"].segmentation
        assert str(found.segment_label.values) == name
        # half a step of 1/255
        np.testing.assert_allclose(found, expected.sel({"class": name}), rtol=0, atol=0.5 / 255)
    # coarser outputs are a matrix of their own
    coarse = recipes.map_tiles(
        image, lambda tile: tile.mean((0, 1, 2)) < 200, tile=64, factor=None, dtype=bool
    )
    (path,) = dicomslide.write_segmentation(coarse, slide, tmp_path, levels="free")
    (found,) = [each for each in read(folder, path).children.values() if "image" not in each]
    np.testing.assert_array_equal(found.segmentation, coarse)


def test_nothing_is_computed_beyond_a_region(slide, tmp_path):
    computed = []

    def thresholded(block):
        computed.append(block.shape)
        return block.mean(-1) < 180

    image = slide.to_dataset(chunks={"y": 80, "x": 64}).image
    data = image.data.map_blocks(thresholded, drop_axis=2, dtype=bool, meta=np.empty((0, 0), bool))
    mask = image.isel(sample=0, drop=True).copy(data=data)
    (top, bottom, *_), (left, right, *_) = (np.cumsum(each) for each in data.chunks)
    chunk = mask[top:bottom, left:right]
    dicomslide.write_segmentation(chunk, slide, tmp_path, segments="tissue")
    assert computed == [(*chunk.shape, 3)]


# -- frames --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_blocks_end_at_tiles_and_cover_all(data):
    tile = data.draw(st.integers(1, 700))
    chunks = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=20))
    first = data.draw(st.integers(0, 3000))
    found = blocks_along(chunks, first, tile)
    assert sum(found) == sum(chunks)
    assert min(found) > 0
    ends = first + np.cumsum(found)
    assert all(end % tile == 0 for end in ends[:-1])
    assert len(found) <= len(chunks)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_bits_of_frames_follow_one_another_without_gaps(rows, columns, count, seed):
    pixels = np.random.default_rng(seed).random((count, rows, columns)) < 0.5
    form = FrameForm(np.dtype(bool), (rows, columns), NATIVE)
    frames = [form.frames(frame[None])[0, 0, 0].tobytes() for frame in pixels]
    joined = b"".join(join_bits(frames, rows * columns))
    assert joined == np.packbits(pixels.ravel(), bitorder="little").tobytes()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_bits_are_packed_however_a_block_lies_in_memory(data):
    tile = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 4).map(lambda n: 8 * n)))
    down, across = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    rows, columns = down * tile[0], across * tile[1]
    block = np.random.default_rng(0).random((2, rows, columns)) < 0.5
    order = data.draw(st.permutations(range(3)))
    kept = np.ascontiguousarray(block.transpose(order)).transpose(np.argsort(order))
    flips = [data.draw(st.sampled_from([1, -1])) for _ in range(2)]
    lying = np.ascontiguousarray(kept[:, :: flips[0], :: flips[1]].transpose(order))
    lying = lying.transpose(np.argsort(order))[:, :: flips[0], :: flips[1]]
    found = FrameForm(np.dtype(bool), tile, NATIVE).frames(lying)
    tiles = block.reshape(2, down, tile[0], across, tile[1]).swapaxes(2, 3)
    flat = np.ascontiguousarray(tiles).reshape(2, down, across, -1)
    np.testing.assert_array_equal(found, np.packbits(flat, axis=-1, bitorder="little"))


@pytest.mark.parametrize("organization", ["TILED_FULL", "TILED_SPARSE"])
@pytest.mark.parametrize("tile_size", [(10, 10), (7, 9), 40])
def test_frames_of_any_size_are_read_by_pydicom(mask, slide, folder, tmp_path, tile_size,
                                                organization):  # fmt: skip
    masks = xr.concat([mask, ~mask], "segment")
    (path,) = dicomslide.write_segmentation(
        masks, slide, tmp_path, tile_size=tile_size, organization=organization
    )
    dataset = pydicom.dcmread(path)
    assert len(dataset.pixel_array) == dataset.NumberOfFrames
    np.testing.assert_array_equal(read(folder, path)["level_0"].segmentation, masks)


def test_an_empty_sparse_segmentation_has_a_frame(mask, slide, folder, tmp_path):
    (path,) = dicomslide.write_segmentation(
        xr.zeros_like(mask), slide, tmp_path, organization="TILED_SPARSE"
    )
    assert pydicom.dcmread(path).NumberOfFrames == 1
    assert not read(folder, path)["level_0"].segmentation.any()


def test_what_is_too_large_for_an_element_is_encapsulated(slide, tmp_path, monkeypatch):
    from dicomslide.write import segmentation, stream

    for module in (segmentation, stream):
        monkeypatch.setattr(module, "MOST_NATIVE", 10_000)
    values = (slide.to_dataset().image.mean("sample") / 255).astype("float32")
    with pytest.raises(ValueError, match="encapsulated"):
        dicomslide.write_segmentation(
            values, slide, tmp_path, kind="FRACTIONAL", transfer_syntax_uid=NATIVE
        )
    (path,) = dicomslide.write_segmentation(values, slide, tmp_path, kind="FRACTIONAL")
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEG_LS


def test_labels_beyond_a_byte_have_two(slide, folder, tmp_path):
    labels = (slide.to_dataset().image.mean("sample") < 180) * np.uint16(300)
    with pytest.warns(dicomslide.ViewerWarning, match="LABELMAP"):
        (path,) = dicomslide.write_segmentation(
            labels, slide, tmp_path, kind="LABELMAP", segments={300: "tissue", 7: "stroma"}
        )
    found = read(folder, path)["level_0"].segmentation
    assert (found.dtype, found.flag_values) == (np.uint16, [7, 300])
    np.testing.assert_array_equal(found, labels)


# -- other programs ------------------------------------------------------------------------------

FALSE_ERRORS = {
    # absent in TILED_FULL, whose frames are in a known order (PS3.3 C.7.6.16)
    "Missing attribute Type 1 Required Element=<PerFrameFunctionalGroupsSequence>"
    " Module=<MultiFrameFunctionalGroupsForSegmentation>",
    # it doesn't know Label Map Segmentation Storage, whose segments are numbered by pixel values
    "Information Object Not found",
}


def forms():
    """Yield every kind of instance, as options."""
    for kind, syntaxes in (
        ("BINARY", [NATIVE]), ("FRACTIONAL", [NATIVE, JPEG_LS]), ("LABELMAP", [NATIVE, RLE])
    ):  # fmt: skip
        for syntax in syntaxes:
            for organization in ("TILED_FULL", "TILED_SPARSE"):
                yield kind, dict(transfer_syntax_uid=syntax, organization=organization)


@pytest.fixture(scope="module")
def instances(slide, tmp_path_factory):
    """An instance of each form, and the pixels from which it was written."""
    folder = tmp_path_factory.mktemp("instances")
    pixels = slide.to_dataset(chunks={}).image.mean("sample").astype("float64")
    described = [
        {"label": "Tumör", "type": "tumour", "algorithm": "net 1.0", "color": "#ff0000"}, "b", "c"
    ]  # fmt: skip
    found = []
    for number, (kind, options) in enumerate(forms()):
        values = as_numbers(pixels, kind)
        levels = "all" if options["organization"] == "TILED_FULL" else "own"
        with pytest.MonkeyPatch.context(), dask.config.set(scheduler="sync"):
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dicomslide.ViewerWarning)
                paths = dicomslide.write_segmentation(
                    values, slide, folder, kind=kind, name=f"s{number}", levels=levels,
                    segments=described if kind == "LABELMAP" else described[:1], **options,
                )  # fmt: skip
        found.append((kind, paths, values.compute()))
    return found


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy: apt dicom3tools")
def test_dciodvfy_finds_no_errors_but_its_own(instances):
    for _, paths, _ in instances:
        for path in paths:
            out = subprocess.run(["dciodvfy", path], capture_output=True, text=True).stderr
            errors = {line.removeprefix("Error - ") for line in out.splitlines()
                      if line.startswith("Error")}  # fmt: skip
            assert errors <= FALSE_ERRORS, path


@pytest.mark.needs("highdicom")
def test_highdicom_reads_the_same(instances, slide):
    import highdicom as hd

    for kind, paths, values in instances:
        seg = hd.seg.segread(paths[0])
        turned = slide.levels[0].image.geometry.orientation
        upright = turned.apply(seg.get_total_pixel_matrix(
            combine_segments=kind == "LABELMAP", rescale_fractional=kind == "FRACTIONAL",
        ))  # fmt: skip
        upright = upright if kind == "LABELMAP" else upright[..., 0]
        tolerance = 0.5001 / 255 if kind == "FRACTIONAL" else 0
        np.testing.assert_allclose(upright, values, rtol=0, atol=tolerance)
        assert seg.get_segment_description(1).segment_label == "Tumör"
        source = slide.levels[0].image.metadata
        (study, series, instance), *_ = seg.get_source_image_uids()
        assert (study, series, instance) == (
            source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID
        )  # fmt: skip


def test_what_the_source_says_of_patient_and_specimen_is_copied(tmp_path):
    (path,) = write_slide(
        tmp_path, shape=(64, 64), tile_shape=(32, 32), downsamples=(1,), associated=False
    )
    source = pydicom.dcmread(path)
    source.SpecificCharacterSet = "ISO_IR 100"
    source.PatientName = "Müller^Jürgen"
    source.StudyDescription = "Biopsie, Größe"
    source.IssuerOfPatientID = "Klinik"
    source.save_as(path)
    slide = dicomslide.open_slide(path)
    mask = slide.to_dataset().image.mean("sample") < 200
    (written,) = dicomslide.write_segmentation(mask, slide, tmp_path, segments=["Größe"])
    found = pydicom.dcmread(written)
    for keyword in ("PatientName", "PatientID", "StudyDescription", "IssuerOfPatientID",
                    "StudyInstanceUID", "FrameOfReferenceUID", "ContainerIdentifier",
                    "SpecimenDescriptionSequence"):  # fmt: skip
        assert found[keyword].value == source[keyword].value, keyword
    assert found.SegmentSequence[0].SegmentLabel == "Größe"
    assert not [e.keyword for e in found if e.keyword.startswith(("Imaged", "Optical", "Acquis"))]
    assert found.Modality == "SEG"
    (series,) = found.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID


# -- targets -------------------------------------------------------------------------------------


def test_a_file_takes_one_instance(mask, slide, tmp_path):
    path = tmp_path / "new" / "mask.dcm"
    assert dicomslide.write_segmentation(mask, slide, path) == [str(path)]
    with pytest.raises(ValueError, match="2 instances don't go into one file"):
        dicomslide.write_segmentation(mask, slide, tmp_path / "two.dcm", levels="all")
    with pytest.raises(ValueError, match="temporary_folder is for buckets"):
        dicomslide.write_segmentation(mask, slide, path, temporary_folder=tmp_path)
    with pytest.raises(TypeError, match="can't write to a int"):
        dicomslide.write_segmentation(mask, slide, 7)
    with pytest.raises(ValueError, match="storage_options"):
        dicomslide.write_segmentation(mask, slide, path, storage_options={})


@pytest.mark.server
@pytest.mark.needs("s3fs", "moto")
def test_a_bucket_gets_whole_objects(mask, slide, folder, tmp_path):
    with serving_bucket("results") as (options, client):

        def keys():
            return [
                each["Key"] for each in client.list_objects(Bucket="results").get("Contents", [])
            ]

        url = "s3://results/of/slide"
        writing = dict(storage_options=options, temporary_folder=tmp_path, segments="tissue")
        broken = mask.copy(data=mask.data.map_blocks(lambda block: block * 1, dtype=bool))
        with pytest.raises(dicomslide.PixelValueError):
            dicomslide.write_segmentation(broken, slide, url, **writing)
        assert keys() == []
        urls = dicomslide.write_segmentation(mask, slide, url, levels="all", **writing)
        assert urls == [f"{url}/segmentation_level_{level}.dcm" for level in (0, 1)]
        assert keys() == [each.removeprefix("s3://results/") for each in urls]
        for level, each in enumerate(urls):
            path = tmp_path / f"copy-{level}.dcm"
            client.download_file("results", each.removeprefix("s3://results/"), str(path))
        found = read(folder, *tmp_path.glob("copy-*.dcm"))
        np.testing.assert_array_equal(found["level_0"].segmentation, mask)
        with pytest.raises(dicomslide.StoreExistsError, match="overwrite=True"):
            dicomslide.write_segmentation(mask, slide, url, **writing)
        again = dicomslide.write_segmentation(~mask, slide, url, overwrite=True, **writing)
        assert again == urls[:1]
        wrong = options | {"secret": "wrong", "client_kwargs": {
            **options["client_kwargs"], "endpoint_url": "http://127.0.0.1:9"}}  # fmt: skip
        with pytest.raises(dicomslide.ExportError) as caught:
            dicomslide.write_segmentation(
                mask, slide, url, **writing | {"storage_options": wrong, "name": "other"}
            )
        assert "wrong" not in str(caught.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["copy-0.dcm", "copy-1.dcm"]


@pytest.mark.server
@pytest.mark.needs("s3fs", "moto")
def test_a_bucket_gets_one_pass_or_nothing(mask, slide, tmp_path):
    """A native instance of one segment goes there piece by piece, as it is written to disk."""
    region = mask[77:250, 33:180]
    with serving_bucket("results") as (options, client):
        for number, (array, tile) in enumerate([(mask, None), (region, 24), (mask[:50], (16, 32))]):
            name = f"mask-{number}"
            writing = dict(segments="tissue", name=name, tile_size=tile)
            (url,) = dicomslide.write_segmentation(
                array, slide, "s3://results", storage_options=options, **writing
            )
            (path,) = dicomslide.write_segmentation(array, slide, tmp_path, **writing)
            there = client.get_object(Bucket="results", Key=url.rpartition("/")[2])["Body"].read()
            there = pydicom.dcmread(io.BytesIO(there))
            assert there.PixelData == pydicom.dcmread(path).PixelData
            assert there.NumberOfFrames == pydicom.dcmread(path).NumberOfFrames

        def failing(block, block_info=None):
            if block_info[0]["chunk-location"][0] == 2:
                raise RuntimeError("a fault of the model")
            return block

        data = mask.data.map_blocks(failing, dtype=bool, meta=np.empty((0, 0), bool))
        with pytest.raises(RuntimeError, match="of the model"):
            dicomslide.write_segmentation(
                mask.copy(data=data), slide, "s3://results/failed", storage_options=options
            )
        assert not client.list_objects(Bucket="results", Prefix="failed").get("Contents")
        assert not client.list_multipart_uploads(Bucket="results").get("Uploads")


@pytest.mark.parametrize("scheme", ["memory", "local"])
def test_nothing_is_left_where_files_are_there_from_the_beginning(mask, slide, tmp_path, scheme):
    import fsspec

    def failing(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 2:
            raise RuntimeError("a fault of the model")
        return block

    data = mask.data.map_blocks(failing, dtype=bool, meta=np.empty((0, 0), bool))
    url = f"{scheme}://{tmp_path}/failed"
    with pytest.raises(RuntimeError, match="of the model"):
        dicomslide.write_segmentation(mask.copy(data=data), slide, url, segments="tissue")
    filesystem, path = fsspec.url_to_fs(url)
    assert filesystem.find(path) == []
    (written,) = dicomslide.write_segmentation(mask, slide, url, segments="tissue")
    assert filesystem.find(path) == [fsspec.url_to_fs(written)[1]]


@pytest.mark.server
@pytest.mark.skipif(bool(orthanc.reason_to_skip()), reason=str(orthanc.reason_to_skip()))
@pytest.mark.filterwarnings("ignore::dicomslide.ViewerWarning")
def test_orthanc_stores_what_is_read_back_equal(slide, folder, instances, tmp_path):
    from dicomweb_client.api import DICOMwebClient

    with orthanc.running(tmp_path) as url:
        study, _ = orthanc.store(url, sorted(folder.glob("*.dcm")))
        pixels = slide.to_dataset(chunks={}).image.mean("sample")
        expected = {}
        for kind, options in forms():
            values, name = as_numbers(pixels, kind), f"{kind} {options}"
            target = f"dicomweb+{url}" if len(expected) % 2 else DICOMwebClient(url)
            (uid,) = dicomslide.write_segmentation(
                values, slide, target, kind=kind, segments=["a", "b", "c"][: 3 if kind == "LABELMAP"
                else 1], series_description=name[:64], **options,
            )  # fmt: skip
            assert re.fullmatch(r"2\.25\.\d+", uid)
            expected[name[:64].strip()] = values
        found = dicomslide.open_slide(f"dicomweb+{url}/studies/{study}").to_dataset()
        found = {each.attrs.get("series_description"): each for each in found.data_vars.values()}
        for name, values in expected.items():
            tolerance = 0.5001 / 255 if "FRACTIONAL" in name else 0
            np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance)
        with pytest.raises(ValueError, match="doesn't replace instances"):
            dicomslide.write_segmentation(pixels < 180, slide, f"dicomweb+{url}", overwrite=True)


@pytest.mark.server
@pytest.mark.skipif(bool(orthanc.reason_to_skip()), reason=str(orthanc.reason_to_skip()))
def test_what_a_server_refuses_is_named_and_the_rest_is_stored(instances, tmp_path):
    from dicomslide.backends.dicomweb.storing import connection_for, store_files

    (tmp_path / "orthanc").mkdir()
    (tmp_path / "damaged.dcm").write_bytes(b"no DICOM" * 100)
    _, (path, *_), _ = instances[0]
    uid = str(pydicom.dcmread(path).SOPInstanceUID)
    with orthanc.running(tmp_path / "orthanc") as url:
        with pytest.raises(dicomslide.StorageRefusedError) as caught:
            store_files(
                connection_for(f"dicomweb+{url}"),
                {"1.2.3": str(tmp_path / "damaged.dcm"), uid: path},
            )
        error = pickle.loads(pickle.dumps(caught.value))
        assert list(error.failures) == ["1.2.3"]
        assert "400" in error.failures["1.2.3"]
        assert error.stored == (uid,)


class Client:
    """A client with methods of its own, as of another package."""

    base_url = "http://client"

    def __init__(self, reply):
        self.reply, self.stored = reply, []

    def retrieve_instance_frames(self, *arguments, **options):
        raise NotImplementedError

    def store_instances(self, datasets):
        self.stored += datasets
        return self.reply


def reply_of(keyword, **values):
    from pydicom.dataset import Dataset

    reply, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2", "1.2.3"
    for name, value in values.items():
        setattr(item, name, value)
    setattr(reply, keyword, [item])
    return reply


@pytest.mark.parametrize(
    ("reason", "words"),
    [(0xA700, "out of resources"), (0xA770, "mismatch"), (0x0122, "SOP Class"), (0xC123, "under")],
)
def test_reasons_of_refusals_are_words(mask, slide, reason, words):
    client = Client(reply_of("FailedSOPSequence", FailureReason=reason))
    with pytest.raises(dicomslide.StorageRefusedError, match=f"{words}.*0x{reason:04X}"):
        dicomslide.write_segmentation(mask, slide, client)
    (dataset,) = client.stored
    assert dataset.Modality == "SEG"


def test_an_array_of_one_value_needs_no_file_of_its_size(slide, tmp_path):
    """Zeros beyond a region are never written: they are holes of the file."""
    rows = slide.to_dataset(orientation="stored", chunks={}).image
    data = da.ones(rows.shape[:2], chunks=64, dtype=bool)
    whole = rows.isel(sample=0, drop=True).copy(data=data)
    (path,) = dicomslide.write_segmentation(whole[:32, :40], slide, tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    assert int(np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8)).sum()) == 32 * 40


def test_a_mask_of_a_focal_plane_lies_in_that_plane(tmp_path):
    paths = write_slide(
        tmp_path, shape=(60, 70), tile_shape=(32, 32), downsamples=(1,), associated=False,
        planes=(0.0, 2.0, 4.0), samples=1, bits=16, drawing="position", transfer_syntax_uid=NATIVE,
    )  # fmt: skip
    slide = dicomslide.open_slide(tmp_path)
    image = slide.to_dataset(chunks={}).image
    with pytest.raises(ValueError, match=r"3 focal planes; .*isel\(z=0\)"):
        dicomslide.write_segmentation(image < 900, slide, tmp_path)
    (path,) = dicomslide.write_segmentation(image.isel(z=2) < 900, slide, tmp_path)
    found = dicomslide.open_slide([*paths, path]).to_dataset().segmentation
    assert found.attrs["focal_plane_offset"] == pytest.approx(0.004)  # mm
    np.testing.assert_array_equal(found, image.isel(z=2) < 900)
