"""The index of a cohort: what it opens without a request, what it notices, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import generate_uid

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.backends.part10.local import LocalFile
from dicomslide.cli import main
from dicomslide.contents.description import COLUMNS, summary_of
from dicomslide.errors import (
    CohortIndexError,
    NotDicomError,
    NotSlideError,
    SourceChangedError,
    SourceNotFoundError,
    StoreExistsError,
)
from dicomslide.slide.cohort_writer import packed_slides, writing
from dicomslide.testing import write_slide
from tests.support import derive, own_store
from tests.support.bucket import bucket_of
from tests.support.fake_client import FakeClient
from tests.support.optional import need
from tests.support.quirky import split_in_two

pytestmark = [
    pytest.mark.needs("pyarrow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # botocore
]

DEFLATED = "1.2.840.10008.1.2.1.99"
SMALL = dict(shape=(70, 90), tile_shape=(32, 32), downsamples=(1, 2))
FORMS = {
    "basic": dict(),
    "extended": dict(offset_table="extended"),
    "scanned": dict(offset_table="empty"),
    "sparse": dict(sparse=True, absent=[(0, 1)]),
    "undefined lengths": dict(sparse=True, undefined_lengths=True, planes=(0.0, 2.0)),
    "channels": dict(
        drawing="cells", samples=1, bits=16, optical_paths=("1", "2"), sparse=True,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    ),
    "native": dict(transfer_syntax_uid="1.2.840.10008.1.2.1"),
    "implicit": dict(transfer_syntax_uid="1.2.840.10008.1.2"),
    "big endian": dict(transfer_syntax_uid="1.2.840.10008.1.2.2"),
    "deflated": dict(transfer_syntax_uid=DEFLATED),
    "JPEG 2000": dict(transfer_syntax_uid="1.2.840.10008.1.2.4.90"),
}  # fmt: skip


def write(folder, count=3, **options):
    for number in range(1, count + 1):
        name = f"S-{number}"
        write_slide(folder / name, container_id=name, slide_number=number, seed=number,
                    **SMALL | options)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def index(folder, tmp_path):
    path = tmp_path / "cohort.parquet"
    dicomslide.open_slides(folder).save(path)
    dicomslide.clear_all()
    return path


def frames_of(path):
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return list(generate_frames(dataset.PixelData, number_of_frames=dataset.NumberOfFrames))
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    data = dataset.PixelData
    return [data[at : at + size] for at in range(0, size * int(dataset.NumberOfFrames), size)]


@pytest.fixture
def reads(monkeypatch):
    """Path, offset and length of all that is read of files."""
    found = []
    reading = LocalFile.reading

    def reading_of(self):
        read = reading(self)

        def counting(offset, length):
            found.append((self.name, offset, length))
            return read(offset, length)

        return counting

    monkeypatch.setattr(LocalFile, "read", lambda self, *args: reading_of(self)(*args))
    monkeypatch.setattr(LocalFile, "reading", reading_of)
    return found


# -- what it opens ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_slides_of_an_index_are_those_of_their_files(tmp_path, reads, form):
    folder = write(tmp_path / "slides", 1, **FORMS[form])
    of_files = dicomslide.open_slides(folder)
    of_files.save(tmp_path / "i.parquet")
    described = of_files["S-1"].describe()
    tree = of_files["S-1"].to_datatree(associated=True).load()
    dicomslide.clear_all()
    reads.clear()

    slide = dicomslide.open_slides(tmp_path / "i.parquet")["S-1"]
    assert slide.describe() == described
    is_deflated = form == "deflated"  # whose frames have no byte ranges
    assert {name for name, *_ in reads if name.endswith(".dcm")} == (
        {str(path) for path in folder.rglob("level-*.dcm")} if is_deflated else set()
    )
    reads.clear()
    first = slide.levels[0].image
    frame = bytes(first._source.read_frames([1])[0])
    if form != "big endian":
        assert frame == frames_of(first.name)[1]
    assert len(reads) == (not is_deflated)
    assert slide.to_datatree(associated=True).identical(tree)


@pytest.mark.needs("highdicom")
def test_parts_and_what_is_derived_of_a_slide_are_in_its_row(tmp_path, reads):
    folder = write(tmp_path / "slides", 1, **FORMS["native"])
    level = folder / "S-1" / "level-0.dcm"
    mask = np.zeros((70, 90, 2), np.uint8)
    mask[10:30, 20:50, 0] = mask[40:60, 5:25, 1] = 1
    derive.write_segmentation(folder / "segmentation.dcm", level, mask, "BINARY",
                              tile_size=(32, 32))  # fmt: skip
    cells = derive.group_of([np.array([[50.0, 60.0], [60, 60], [60, 50]])])
    derive.annotations_of(level, [cells]).save_as(folder / "annotations.dcm")
    split_in_two(folder / "S-1" / "level-1.dcm")
    slides = dicomslide.open_slides(folder)
    slides.save(tmp_path / "i.parquet")
    expected = slides["S-1"].describe(), slides["S-1"].to_datatree().load()
    points = slides["S-1"].annotations()[0].to_pandas()
    dicomslide.clear_all()
    reads.clear()
    slide = dicomslide.open_slides(tmp_path / "i.parquet")["S-1"]
    assert (slide.num_levels, len(slide._sources)) == (2, 6)
    assert not [name for name, *_ in reads if name.endswith(".dcm")]
    assert slide.describe() == expected[0]
    assert slide.to_datatree().load().identical(expected[1])
    assert slide.annotations()[0].to_pandas().equals(points)
    assert "segmentation" in slide.to_dataset().data_vars


def test_a_table_and_a_choice_open_no_slide(folder, index, reads):
    slides = dicomslide.open_slides(index)
    table = slides.to_pandas()
    assert list(slides) == list(table.index) == ["S-1", "S-2", "S-3"]
    assert slides.summaries() == table.to_dict("index") | {}
    assert "S-2" in slides._repr_html_()
    assert len(slides.select(stain="*eosin*")) == 3
    assert {name for name, *_ in reads} == {str(index)}
    expected = dicomslide.open_slides(folder).to_pandas()
    assert table.equals(expected)
    assert list(table.dtypes) == list(expected.dtypes)


def test_columns_are_those_of_a_summary(folder):
    summary = summary_of(dicomslide.open_slides(folder)["S-1"])
    assert list(summary) == list(COLUMNS)
    assert all(value is None or type(value) is COLUMNS[key] for key, value in summary.items())


def test_slides_of_an_index_go_to_other_processes(index):
    slides = dicomslide.open_slides(index)
    again = pickle.loads(pickle.dumps(slides.select(["S-3", "S-1"])))
    assert list(again) == ["S-1", "S-3"]
    assert again == slides.select(["S-1", "S-3"])
    assert again != slides
    assert len(pickle.dumps(slides)) < 2000
    found = slides.map(lambda slide: slide.size, on="threads")
    assert dict(found) == dict.fromkeys(slides, (70, 90))
    found = slides.map(_mean, on="processes", workers=1)
    assert dict(found) == {name: _mean(slide) for name, slide in slides.opened()}
    assert pickle.loads(pickle.dumps(slides["S-1"])).size == (70, 90)


def _mean(slide):
    return float(slide.get_image_region((0, 0), 0, slide.size).mean())


@pytest.mark.needs("distributed")
@pytest.mark.cluster
def test_workers_of_a_cluster_write_and_read_an_index(folder, tmp_path):
    from distributed import Client

    with Client(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"):
        dicomslide.open_slides(folder).save(tmp_path / "i.parquet")
        slides = dicomslide.open_slides(tmp_path / "i.parquet")
        found = slides.map(_mean, on="cluster")
    assert dict(found) == {name: _mean(slide) for name, slide in slides.opened()}


def test_an_index_of_many_row_groups_is_read_by_rows(folder, tmp_path, monkeypatch, reads):
    from dicomslide.slide import cohort_writer

    monkeypatch.setattr(cohort_writer, "GROUP_ROWS", 1)
    path = tmp_path / "i.parquet"
    dicomslide.open_slides(folder).save(path)
    dicomslide.clear_all()
    slides = dicomslide.open_slides(path)
    for name, slide in slides.items():
        assert slide.container_identifier == name
    part = slides.select(names=["S-3", "S-1"])
    table = slides.to_pandas()
    assert part.to_pandas().equals(table.loc[["S-1", "S-3"]])
    assert len(slides.select([]).to_pandas()) == 0
    reads.clear()
    assert slides.select(["S-2"]).summaries() == {"S-2": table.to_dict("index")["S-2"]}
    of_one = sum(length for *_, length in reads)
    reads.clear()
    slides.to_pandas()
    assert 0 < of_one < sum(length for *_, length in reads) / 2  # of three row groups
    dicomslide.clear_all()
    part = slides.select(names=["S-2"])
    part.save(tmp_path / "part.parquet")
    assert list(dicomslide.open_slides(tmp_path / "part.parquet")) == ["S-2"]


def test_profiles_that_slides_have_in_common_are_stored_once(tmp_path):
    profile = np.random.default_rng(0).bytes(500_000)
    folder = write(tmp_path / "slides", 3, icc_profile=profile)
    dicomslide.open_slides(folder).save(tmp_path / "i.parquet")
    assert 500_000 < os.path.getsize(tmp_path / "i.parquet") < 600_000
    dicomslide.clear_all()
    for slide in dicomslide.open_slides(tmp_path / "i.parquet").values():
        (path,) = slide.metadata.OpticalPathSequence
        assert path.ICCProfile == profile


def test_a_glass_of_several_pyramids_stays_several_slides(tmp_path):
    for number in (1, 2):
        written = write_slide(tmp_path / str(number), origin=(10.0 * number, 20.0), seed=number,
                              associated=False, **SMALL)  # fmt: skip
        for path in written:
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.save_as(path)
    slides = dicomslide.open_slides(tmp_path)
    assert list(slides) == ["DS-0001/pyramid-0", "DS-0001/pyramid-1"]
    slides.save(tmp_path / "i.parquet")
    again = dicomslide.open_slides(tmp_path / "i.parquet")
    for name, slide in slides.items():
        assert again[name].describe() == slide.describe()


# -- what it selects -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Slides of two spacings, sizes and stains."""
    folder = tmp_path_factory.mktemp("mixed")
    write(folder, 2)
    write_slide(folder / "fine", container_id="fine", slide_number=9, spacing=(0.00025, 0.00025),
                **SMALL | dict(shape=(140, 90)))  # fmt: skip
    for path in (folder / "fine").glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.Manufacturer = "Another [one]"
        for item in dataset.SpecimenDescriptionSequence:
            del item.SpecimenPreparationSequence
        dataset.save_as(path)
    return folder


CHOICES = [
    (dict(), ["S-1", "S-2", "fine"]),
    (dict(um_per_pixel=0.25), ["fine"]),
    (dict(um_per_pixel=(0.3, None), rows=(None, 70)), ["S-1", "S-2"]),
    (dict(um_per_pixel=(0.3, 0.4)), []),
    (dict(stain="HEMATOXYLIN stain"), ["S-1", "S-2"]),
    (dict(stain=["nothing", "*eosin*"]), ["S-1", "S-2"]),
    (dict(stain=[]), []),
    (dict(manufacturer="another [ONE]"), ["fine"]),
    (dict(names=["fine", "S-2"], container_identifier="S-?"), ["S-2"]),
]


@pytest.mark.parametrize("is_index", [False, True])
@pytest.mark.parametrize(("wanted", "expected"), CHOICES)
def test_slides_are_selected_by_columns(mixed, tmp_path, wanted, expected, is_index):
    slides = dicomslide.open_slides(mixed)
    if is_index:
        slides.save(tmp_path / "i.parquet")
        slides = dicomslide.open_slides(tmp_path / "i.parquet")
    found = slides.select(**wanted)
    assert type(found) is dicomslide.Cohort
    assert list(found) == expected
    assert len(found) == len(expected)
    assert list(found.to_pandas().index) == expected


@pytest.mark.parametrize(
    ("wanted", "error", "match"),
    [
        (dict(stainn="x"), TypeError, "slides have no stainn; they are selected by stain, rows"),
        (dict(stain=5), TypeError, "stain is 5; expected text"),
        (dict(rows="70"), TypeError, "rows is '70'; expected a number"),
        (dict(rows=(1, 2, 3)), TypeError, "expected a number, or the lowest and the highest"),
        (dict(um_per_pixel=float("nan")), TypeError, "expected a number"),
        (dict(names="S-1"), TypeError, "names is 'S-1'; expected several"),
        (dict(names=["S-9"]), KeyError, "S-9"),
    ],
)
def test_wrong_choices_are_refused(folder, index, wanted, error, match):
    for source in (folder, index):
        with pytest.raises(error, match=match):
            dicomslide.open_slides(source).select(**wanted)


# -- what it notices -------------------------------------------------------------------------


def test_a_file_that_changed_since_is_noticed(tmp_path):
    folder = write(tmp_path / "slides", 2)
    dicomslide.open_slides(folder).save(tmp_path / "i.parquet")
    dicomslide.clear_all()
    path = folder / "S-1" / "level-0.dcm"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0\0")
    slides = dicomslide.open_slides(tmp_path / "i.parquet")
    said = rf"level-0.dcm: .* {size + 2} .* {size} bytes.*, or its index, written anew"
    with pytest.raises(SourceChangedError, match=said):
        slides["S-1"]
    assert slides["S-2"].size == (70, 90)
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"level-0.dcm"):
        slides["S-1"]
    assert "S-1" in slides.failures


@pytest.mark.parametrize("named", [Path, Path.as_uri])
def test_an_index_is_moved_with_its_slides_and_not_alone(tmp_path, named):
    folder = write(tmp_path / "before", 1)
    dicomslide.open_slides(folder).save(named(folder / "i.parquet"))
    shutil.move(folder, tmp_path / "after")
    slides = dicomslide.open_slides(tmp_path / "after" / "i.parquet")
    assert slides["S-1"].name == str(tmp_path / "after" / "S-1" / "level-0.dcm")
    assert slides.to_pandas().file.tolist() == [slides["S-1"].name]
    shutil.move(tmp_path / "after" / "i.parquet", tmp_path / "i.parquet")
    with pytest.raises(SourceNotFoundError, match=r"S-1/level-0.dcm"):
        dicomslide.open_slides(tmp_path / "i.parquet")["S-1"]


def test_files_elsewhere_are_named_by_their_path(folder, index, tmp_path):
    (tmp_path / "deeper").mkdir()
    shutil.move(index, tmp_path / "deeper" / "i.parquet")
    slides = dicomslide.open_slides(tmp_path / "deeper" / "i.parquet")
    assert slides["S-1"].name == str(folder / "S-1" / "level-0.dcm")


# -- what it refuses -------------------------------------------------------------------------


def _table_of(path):
    import pyarrow.parquet as parquet

    return parquet.read_table(path)


def _write_table(table, path):
    import pyarrow.parquet as parquet

    parquet.write_table(table, path)


def test_other_versions_and_other_files_are_refused(index):
    table = _table_of(index)
    _write_table(table.replace_schema_metadata({"dicomslide": json.dumps({"version": 99})}), index)
    with pytest.raises(CohortIndexError, match=r"an index of version 99; this package reads"):
        dicomslide.open_slides(index)
    _write_table(table.replace_schema_metadata({}), index)
    with pytest.raises(CohortIndexError, match="a Parquet file, but not an index of a cohort"):
        dicomslide.open_slides(index)
    _write_table(table.drop_columns(["stain", "rows"]), index)
    with pytest.raises(CohortIndexError, match="it lacks the columns rows, stain"):
        dicomslide.open_slides(index)
    index.write_bytes(b"no parquet")
    with pytest.raises(CohortIndexError, match=f"{index.name}: it is damaged"):
        dicomslide.open_slides(index)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=index.name):
        dicomslide.open_slides(index)


def test_damage_is_a_typed_error_and_never_other_pixels(folder, index):
    expected = {
        name: slide.get_image_region((0, 0), 0, slide.size)
        for name, slide in dicomslide.open_slides(folder).items()
    }
    data, random = index.read_bytes(), np.random.default_rng(1)
    outcomes = set()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for at in [*random.integers(footer, size=40), *random.integers(footer, len(data), 80)]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(random.integers(8))
        index.write_bytes(damaged)
        dicomslide.clear_all()
        try:
            slides = dicomslide.open_slides(index)
            assert list(slides) == list(expected)
            for name, slide in slides.items():
                found = slide.get_image_region((0, 0), 0, slide.size)
                assert np.array_equal(found, expected[name])
        except dicomslide.DicomSlideError as error:
            outcomes.add(type(error))
        else:
            outcomes.add(None)
    assert CohortIndexError in outcomes


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda record: record | {"kind": "pickle"}, "a source of the kind 'pickle'"),
        (lambda record: record | {"size": "1"}, "a source whose size is '1'"),
        (lambda record: [], "a source of the kind None"),
        (lambda record: record | {"path": "s3://a/b"}, "s3://a/b: a file when the index was made"),
    ],
)
def test_records_of_another_form_are_refused(index, change, match):
    import pyarrow as pa

    table = _table_of(index)
    rows = table.to_pylist()
    for each in rows[0]["instances"]:
        each["source"] = json.dumps(change(json.loads(each["source"])))
    _write_table(pa.Table.from_pylist(rows, table.schema), index)
    slides = dicomslide.open_slides(index)
    with pytest.raises(CohortIndexError, match=f"cohort.parquet: slide S-1: {match}"):
        slides["S-1"]
    rows[1]["instances"][0]["header"] = b"\x05\0\0\0hello"
    _write_table(pa.Table.from_pylist(rows, table.schema), index)
    with pytest.raises(CohortIndexError, match="slide S-2: its row is damaged"):
        dicomslide.open_slides(index)["S-2"]


def test_an_index_holds_json_and_dicom_only(index):
    (record, *_) = (each for row in _table_of(index)["instances"].to_pylist() for each in row)
    assert json.loads(record["source"])["kind"] == "file"
    assert b"DICM" in record["header"]
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(record["header"])


def test_what_has_no_name_is_left_out_or_refused(folder, tmp_path):
    path = tmp_path / "i.parquet"
    (level,) = folder.glob("S-1/level-0.dcm")
    in_memory = dicomslide.open_slides(level.read_bytes())
    with pytest.raises(CohortIndexError, match="StreamSource, which can't be found again"):
        in_memory.save(path)
    of_client = dicomslide.open_slides(FakeClient(folder / "S-1"))
    with pytest.raises(CohortIndexError, match=r"read through a .*FakeClient, which can't be made"):
        of_client.save(path)
    with pytest.raises(CohortIndexError, match="Book, which can't be found again by its name"):
        dicomslide.open_slides(own_store.shelf_of(folder / "S-1")).save(path)
    assert not list(tmp_path.iterdir())
    both = dicomslide.open_slides([level.read_bytes(), folder / "S-2"])
    both.save(path)
    assert list(dicomslide.open_slides(path)) == ["S-2"]
    assert list(both.failures) == ["S-1"]


def test_an_index_is_written_whole_or_not_at_all(folder, index, monkeypatch):
    slides = dicomslide.open_slides(folder)
    before = index.read_bytes()
    with pytest.raises(StoreExistsError, match=r"cohort.parquet exists; overwrite=True"):
        slides.save(index)
    with pytest.raises(ValueError, match=r"index: expected a path that ends with .parquet"):
        slides.save(index.with_name("index"))
    with pytest.raises(ZeroDivisionError):
        slides.save(index, overwrite=True, progress=lambda done, total: 1 / 0)
    assert index.read_bytes() == before
    assert list(index.parent.iterdir()) == [index]
    told = []
    slides.select(["S-1"]).save(index, overwrite=True, progress=lambda *args: told.append(args))
    assert told[-1] == (1, 1)
    assert list(dicomslide.open_slides(index)) == ["S-1"]
    with pytest.raises(TypeError, match=r"stains is given with an index; see Cohort.select"):
        dicomslide.open_slides(index, stains=["x"])
    for opened in (lambda: dicomslide.open_slide(index), lambda: dicomslide.open_slides([index])):
        with pytest.raises(NotDicomError, match=r"cohort.parquet: not a DICOM file") as error:
            opened()
        (note,) = error.value.__notes__
        assert "open_slides opens an index of slides" in note
    (error,) = dicomslide.open_slides([folder, index]).failures.values()
    assert error.__notes__ == [note]


def test_an_index_without_slides_is_refused(folder, tmp_path):
    none = dicomslide.open_slides(folder).select([])
    assert repr(none) == "<Cohort of 0 slides>"
    with pytest.raises(NotSlideError, match="a cohort without slides"):
        none.save(tmp_path / "i.parquet")
    assert not list(tmp_path.iterdir())


# -- buckets and servers ---------------------------------------------------------------------


@pytest.fixture
def bucket(folder, tmp_path):
    need("s3fs")
    shutil.copytree(folder, tmp_path / "bucket")
    with bucket_of(tmp_path / "bucket") as bucket:
        dicomslide.register_storage_options("s3://slides", bucket.options)
        yield bucket
        dicomslide.forget("s3://slides")


def test_a_slide_of_a_bucket_opens_without_a_request_and_a_tile_takes_one(bucket, tmp_path):
    path = tmp_path / "i.parquet"
    slides = dicomslide.open_slides("s3://slides/")
    expected = {name: slide.get_image_region((0, 0), 0, (32, 32)) for name, slide in slides.items()}
    slides.save(path)
    dicomslide.clear_all()
    bucket.forget()
    slides = dicomslide.open_slides(path)
    slide = slides["S-2"]
    assert slide.describe()["associated_images"]
    assert bucket.requests == []
    assert np.array_equal(slide.get_image_region((0, 0), 0, (32, 32)), expected["S-2"])
    assert bucket.keys == ["S-2/level-0.dcm"]
    assert np.array_equal(slide.get_image_region((0, 0), 0, (32, 32)), expected["S-2"])


def test_an_object_that_changed_since_is_noticed_by_its_etag(bucket, tmp_path):
    path = tmp_path / "i.parquet"
    dicomslide.open_slides("s3://slides/").save(path)
    dicomslide.clear_all()
    level = bucket.folder / "S-2" / "level-0.dcm"
    data = bytearray(level.read_bytes())
    data[-20] ^= 1
    level.write_bytes(data)
    slide = dicomslide.open_slides(path)["S-2"]
    with pytest.raises(OSError, match=r'S-2/level-0.dcm.*another version, "\w+", expected "\w+"'):
        slide.get_image_region((0, 0), 0, (32, 32))


def test_no_credentials_are_written(bucket, folder, tmp_path):
    path = tmp_path / "i.parquet"
    dicomslide.forget("s3://slides")
    options = bucket.options | {"key": "someone-secret", "secret": "hush-0123456789"}
    dicomslide.open_slides("s3://slides/", storage_options=options).save(path)
    content = json.dumps(_table_of(path).to_pylist(), default=repr)
    assert "s3://slides/S-1/level-0.dcm" in content
    assert bucket.url in content  # where the bucket is
    for secret in ("someone-secret", "hush-0123456789"):
        assert secret not in content
        assert secret.encode() not in path.read_bytes()


@pytest.mark.server
def test_an_index_is_read_and_written_where_its_slides_are(folder):
    from tests.support.moto_bucket import serving_bucket

    with serving_bucket("cohorts") as (options, client):
        for path in folder.rglob("*.dcm"):
            client.upload_file(str(path), "cohorts", f"a/{path.relative_to(folder)}")
        dicomslide.register_storage_options("s3://cohorts", options)
        slides = dicomslide.open_slides("s3://cohorts/a/")
        slides.save("s3://cohorts/a/i.parquet")
        with pytest.raises(StoreExistsError, match=r"s3://cohorts/a/i.parquet exists"):
            slides.save("s3://cohorts/a/i.parquet")
        slides.save("s3://cohorts/a/i.parquet", overwrite=True)
        dicomslide.forget("s3://cohorts")
        dicomslide.clear_all()
        again = dicomslide.open_slides("s3://cohorts/a/i.parquet", storage_options=options)
        assert list(again) == list(slides)
        assert again["S-1"].name == "s3://cohorts/a/S-1/level-0.dcm"
        for slide in pickle.loads(pickle.dumps(again)).values():
            assert slide.get_image_region((0, 0), 0, (70, 90)).shape == (70, 90, 3)
        dicomslide.forget("s3://cohorts")


@pytest.mark.needs("aiohttp")
def test_a_large_footer_is_requested_once(folder, tmp_path, monkeypatch):
    from tests.support.range_server import serving

    monkeypatch.setattr("dicomslide.slide.cohort_writer.GROUP_ROWS", 1)
    cohort = dicomslide.open_slides(folder)
    members = [("S-1", cohort._members["S-1"])]
    row = packed_slides(cohort._options, "", members).found["S-1"]
    with writing(tmp_path / "cohort.parquet", overwrite=False) as (writer, _):
        for number in range(200):
            writer.add(f"S-{number}", row)
    dicomslide.clear_all()
    with serving(tmp_path) as server:
        assert len(dicomslide.open_slides(f"{server.url}/cohort.parquet")) == 200
        assert len(server.requests) == 3  # its head, its end, and the footer


@pytest.mark.needs("aiohttp")
def test_an_index_is_read_from_a_web_server(folder, tmp_path):
    from tests.support.range_server import serving

    web = tmp_path / "web"
    shutil.copytree(folder, web)
    with serving(web) as server:
        dicomslide.open_slides([f"{server.url}/{p.relative_to(web)}" for p in web.rglob("*.dcm")]
                               ).save(web / "i.parquet")  # fmt: skip
        server.token = "Bearer hush"
        url, headers = f"{server.url}/i.parquet", {"headers": {"Authorization": "Bearer hush"}}
        dicomslide.clear_all()
        with pytest.raises(dicomslide.SourceDeniedError, match=r"i.parquet"):
            dicomslide.open_slides(url)
        server.forget()
        slides = dicomslide.open_slides(url, storage_options=headers)
        slide = slides["S-3"]
        assert {path for _, path, *_ in server.requests} == {"/i.parquet"}
        assert len(server.requests) <= 4  # the end, the footer, names, and a row group
        server.forget()
        assert slide.get_image_region((0, 0), 0, (32, 32)).shape == (32, 32, 3)
        assert [path for _, path, *_ in server.requests] == ["/S-3/level-0.dcm"]
        signed = dicomslide.open_slides(f"{url}?signature=hush/1", storage_options=headers)
        assert signed["S-1"].name == f"{server.url}/S-1/level-0.dcm"
        assert "hush" not in str(pickle.dumps(signed))
        with pytest.raises(OSError, match="can't be written"):
            dicomslide.open_slides(folder).save(f"{server.url}/other.parquet")
        signed = [f"{server.url}/S-1/level-0.dcm?signature=hush"]
        of_signed = dicomslide.open_slides(signed, storage_options=headers)
        with pytest.raises(CohortIndexError, match="has a query, which may be a signature"):
            of_signed.save(tmp_path / "signed.parquet")
        dicomslide.forget(server.url)


@pytest.mark.needs("aiohttp")
def test_a_server_that_names_no_version_is_asked_for_the_head(folder, tmp_path):
    from tests.support.range_server import serving

    with serving(folder) as server:
        server.always = "no etag"
        dicomslide.open_slides([f"{server.url}/S-1/level-0.dcm"]).save(tmp_path / "i.parquet")
        dicomslide.clear_all()
        server.forget()
        slide = dicomslide.open_slides(tmp_path / "i.parquet")["S-1"]
        slide.get_image_region((0, 0), 0, (32, 32))
        assert len(server.requests) <= 2


@pytest.mark.needs("requests")
@pytest.mark.parametrize("form", ["basic", "sparse"])
def test_slides_of_a_server_open_without_a_request(tmp_path, form):
    from tests.support.faulty_server import TOKEN, FaultyServer, url_of

    write(tmp_path / "slides", 1, **FORMS[form])
    with FaultyServer(tmp_path / "slides") as server:
        server.token = TOKEN
        dicomslide.register_credentials(server.url, token=lambda url: TOKEN)
        slides = dicomslide.open_slides(url_of(server))
        expected = slides["S-1"].to_datatree().load()
        described = slides["S-1"].describe()
        slides.save(tmp_path / "i.parquet")
        content = json.dumps(_table_of(tmp_path / "i.parquet").to_pylist(), default=repr)
        assert server.url in content
        assert TOKEN not in content
        dicomslide.clear_all()
        dicomslide.register_credentials(server.url, token=lambda url: TOKEN)
        server.requests.clear()
        slide = dicomslide.open_slides(tmp_path / "i.parquet")["S-1"]
        assert slide.describe() == described
        assert server.requests == []
        slide.levels[0].image._source.read_frames([0])
        assert len(server.requests) == 1
        assert slide.to_datatree().identical(expected)


def test_an_index_is_written_at_the_prompt(folder, tmp_path, capsys):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes((folder / "S-1" / "level-0.dcm").read_bytes()[:600])
    path = tmp_path / "i.parquet"
    assert main(["index", str(folder), str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: has 3 of 3 slides\n"
    assert main(["index", "absent", str(path)]) == 1  # before it is searched for
    assert "i.parquet exists; overwrite=True (--overwrite)" in capsys.readouterr().err
    assert main(["index", "--overwrite", str(folder), str(broken), str(path)]) == 1
    assert "broken.dcm: its header" in capsys.readouterr().err
    assert main(["info", str(path)]) == 0
    assert "S-3" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["index", "absent", str(tmp_path / "i.csv")])
    assert "i.csv': expected a path that ends with .parquet" in capsys.readouterr().err


def test_a_header_of_a_file_is_not_read_again(index, folder, frames_read):
    slides = dicomslide.open_slides(index)
    slides["S-1"].get_image_region((0, 0), 0, (32, 32))
    assert len(frames_read) == 1
    assert isinstance(slides["S-1"].levels[0].image._source, FileSource)
