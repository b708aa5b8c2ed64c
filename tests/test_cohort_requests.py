"""How much is asked of a bucket for a slide and for a cohort, and when: headers together, once."""

from __future__ import annotations

import pickle
import time

import numpy as np
import pytest

import dicomslide
from dicomslide.testing import write_slide
from tests.support.bucket import bucket_of
from tests.support.optional import need

need("s3fs")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning"
)  # of botocore

NAMES = [f"S-{number:02}" for number in range(8)]
LEVELS = ("level-0.dcm", "level-1.dcm", "level-2.dcm")
BESIDE = ("label.dcm", "overview.dcm")
COUNT = len(LEVELS) + len(BESIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Slides of three levels, a label and an overview."""
    folder = tmp_path_factory.mktemp("cohort")
    for number, name in enumerate(NAMES, 1):
        write_slide(
            folder / name, shape=(64, 96), tile_shape=(32, 32), downsamples=(1, 2, 4),
            container_id=name, slide_number=number, seed=number,
        )  # fmt: skip
    return folder


@pytest.fixture
def bucket(folder):
    """The slides in a bucket of which this process knows nothing."""
    dicomslide.clear_all()
    with bucket_of(folder) as bucket:
        dicomslide.register_storage_options("s3://slides", bucket.options)
        yield bucket
        dicomslide.forget("s3://slides")


def keys_of(*names, files=LEVELS):
    return sorted(f"{name}/{file}" for name in names for file in files)


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_a_slide_of_five_objects_takes_a_listing_and_a_request_for_each_all_at_once(bucket):
    bucket.gate = COUNT
    slide = dicomslide.open_slide("s3://slides/S-00/")
    assert [method for method, *_ in bucket.requests] == ["GET"] * (1 + COUNT)
    assert bucket.requests[0][1] == "list S-00/"
    assert sorted(bucket.keys) == keys_of("S-00", files=LEVELS + BESIDE)
    assert bucket.gate == 0
    bucket.forget()
    assert len(slide.label_images) == len(slide.overview_images) == 1
    assert bucket.requests == []


def test_a_cohort_is_fetched_once_and_a_table_and_a_loop_ask_for_nothing(bucket, folder):
    slides = dicomslide.open_slides("s3://slides/")
    assert sorted(bucket.keys) == keys_of(*NAMES, files=LEVELS + BESIDE)
    bucket.forget()
    table = slides.to_pandas()
    assert list(table.index) == NAMES
    found = dict(slides.opened())
    assert bucket.requests == []
    assert all(len(slide.label_images) == 1 for slide in found.values())
    assert bucket.requests == []
    for name in NAMES[:2]:
        expected = dicomslide.open_slide(folder / name)
        here = found[name].get_image_region((3, 5), 0, (40, 50))
        np.testing.assert_array_equal(here, expected.get_image_region((3, 5), 0, (40, 50)))


@pytest.fixture
def slides(bucket):
    """A cohort as it comes to another process, which has read nothing."""
    sent = pickle.dumps(dicomslide.open_slides("s3://slides/"))
    dicomslide.clear_all()
    bucket.forget()
    return pickle.loads(sent)


def test_labels_and_overviews_are_asked_for_when_somebody_wants_them(slides, bucket, folder):
    bucket.gate = len(LEVELS)
    slide = slides["S-01"]
    assert sorted(bucket.keys) == keys_of("S-01")
    assert bucket.gate == 0
    bucket.forget()
    slide.to_dataset()
    assert slide.derived_images == slide.thumbnail_images == slide.annotation_labels == ()
    assert bucket.requests == []
    local = dicomslide.open_slide(folder / "S-01")
    for images, expected in (
        (slide.label_images, local.label_images),
        (slide.overview_images, local.overview_images),
    ):
        (image,), (own,) = images, expected
        assert image.size == own.size
        assert image.metadata == own.metadata
        matrix = image.get_total_pixel_matrix()
        np.testing.assert_array_equal(matrix[...], own.get_total_pixel_matrix()[...])
    assert sorted(set(bucket.keys)) == keys_of("S-01", files=BESIDE)
    assert slide == dicomslide.open_slide("s3://slides/S-01/")


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_slide_that_arrives_in_another_process_asks_for_its_levels_at_once(bucket, asked_before):
    slide = dicomslide.open_slide("s3://slides/S-02/")
    if asked_before:
        assert slide.label_images
    sent = pickle.dumps(slide)
    dicomslide.clear_all()
    bucket.forget()
    bucket.gate = len(LEVELS)
    arrived = pickle.loads(sent)
    assert sorted(bucket.keys) == keys_of("S-02")
    assert bucket.gate == 0
    assert pickle.loads(pickle.dumps(arrived)) == arrived == slide
    assert sorted(bucket.keys) == keys_of("S-02")
    (label,) = arrived.label_images
    assert label == slide.label_images[0]
    assert sorted(bucket.keys) == keys_of("S-02", files=LEVELS + BESIDE)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_loop_has_headers_of_the_next_slides_fetched_and_of_no_others(slides, bucket, ahead):
    for at, (name, slide) in enumerate(slides.opened(ahead=ahead)):
        assert slide.container_identifier == name == NAMES[at]
        wanted = keys_of(*NAMES[: at + 1 + ahead])
        wait_until(lambda wanted=wanted: len(bucket.keys) >= len(wanted))
        assert sorted(bucket.keys) == wanted


@pytest.mark.parametrize("ahead", ["x", 1.5, float("nan"), None])
def test_the_number_of_slides_ahead_is_an_integer(slides, ahead):
    with pytest.raises(TypeError, match=r"ahead .*: expected an integer from 0 on"):
        slides.opened(ahead=ahead)


def test_many_headers_are_under_way_at_once(slides, bucket):
    """More than the ten connections that botocore opens by default."""
    bucket.gate = 16
    assert [name for name, _ in slides.opened()] == NAMES
    assert bucket.gate == 0
    assert sorted(bucket.keys) == keys_of(*NAMES)


def test_a_loop_that_ends_early_leaves_the_rest_where_it_is(slides, bucket):
    loop = slides.opened(ahead=1)
    next(loop)
    loop.close()
    assert set(bucket.keys) <= set(keys_of(*NAMES[:2]))
    with pytest.raises(ValueError, match="ahead -1"):
        slides.opened(ahead=-1)


def test_slides_that_fail_are_skipped_by_a_loop_that_goes_ahead(slides, bucket, folder, tmp_path):
    path = folder / "S-03" / "level-0.dcm"
    path.rename(tmp_path / "away")
    try:
        found = [name for name, _ in slides.opened()]
    finally:
        (tmp_path / "away").rename(path)
    assert found == [name for name in NAMES if name != "S-03"]
    assert isinstance(slides.failures["S-03"], dicomslide.SourceNotFoundError)


def test_map_fetches_each_header_once(slides, bucket):
    found = slides.map(lambda slide: slide.size)
    assert dict(found) == dict.fromkeys(NAMES, (64, 96))
    assert not found.failures
    assert sorted(bucket.keys) == keys_of(*NAMES)


def test_map_reads_frames_of_many_slides_at_once_whether_headers_are_kept_or_not(bucket):
    """Threads wait for the bucket, not for a processor."""
    slides = dicomslide.open_slides("s3://slides/")
    dicomslide.clear_all("heads of objects", "bytes of objects read ahead")
    bucket.gate = len(NAMES)
    with dicomslide.set_options(num_threads=1):
        found = slides.map(lambda slide: slide.get_image_region((0, 0), 0, (8, 8)).shape)
    assert dict(found) == dict.fromkeys(NAMES, (8, 8, 3))
    assert bucket.gate == 0


def test_an_object_that_came_whole_with_its_header_is_not_requested_again(bucket, monkeypatch):
    from dicomslide.backends.objects import remote

    monkeypatch.setattr(remote._heads, "_size", 1)  # a cohort has more objects than heads are kept
    slides = dicomslide.open_slides("s3://slides/")
    asked = len(bucket.keys)
    found = slides.map(lambda slide: slide.get_image_region((0, 0), 0, (8, 8)).shape)
    assert dict(found) == dict.fromkeys(NAMES, (8, 8, 3))
    assert len(bucket.keys) == asked


def test_headers_of_more_objects_are_kept_than_a_thousand(tmp_path):
    """Else all of a cohort of 300 slides would be fetched again by whoever loops over it."""
    from dicomslide.backends.objects import remote

    for registry in (remote._parsed, remote._objects, remote._latest):
        assert registry._size >= 10_000
