"""wsidata opens slides by the reader that is registered with it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import dicomslide
from tests.support.optional import reason_to_skip

if reason := reason_to_skip("wsidata"):
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def reader(tissue_slide):
    from wsidata.reader import READERS

    import dicomslide.plugins.wsidata  # noqa: F401

    return READERS.try_open(str(tissue_slide / "level-0.dcm"))


def test_dicom_is_opened_by_this_reader(reader, tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    assert reader.name == "dicomslide"
    assert list(reader.properties.shape) == list(slide.size)
    assert reader.properties.mpp == pytest.approx(slide.pixel_spacings[0][0] * 1000)
    assert [list(shape) for shape in reader.properties.level_shape] == [
        [rows, columns]
        for rows, columns in (level.image.size for level in slide.levels)
    ]  # fmt: skip


def test_regions_are_the_pixels_of_the_levels(reader, tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    for level, (x, y) in ((0, (100, 37)), (1, (200, 100)), (-1, (0, 0))):
        at = level % 3
        matrix = slide.levels[at].image.get_total_pixel_matrix()
        factor = 2**at
        region = reader.get_region(x, y, 90, 70, level=level)
        assert region.dtype == np.uint8
        np.testing.assert_array_equal(
            region, matrix[y // factor : y // factor + 70, x // factor : x // factor + 90]
        )
    outside = reader.get_region(-10, -10, 20, 20)
    assert not outside[:10].any()
    np.testing.assert_array_equal(
        outside[10:, 10:], slide.levels[0].image.get_total_pixel_matrix()[:10, :10]
    )


def test_a_folder_is_opened_too_and_the_reader_is_pickled_by_name(tissue_slide):
    from wsidata.reader import READERS

    import dicomslide.plugins.wsidata  # noqa: F401

    reader = READERS.try_open(str(tissue_slide), reader="dicomslide")
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.get_region(5, 6, 30, 40), reader.get_region(5, 6, 30, 40))
    assert set(reader.associated_images) == {"LABEL", "OVERVIEW"}
    assert max(reader.get_thumbnail(100).shape) in (99, 100)  # of a whole number of rows


def test_a_slide_is_opened_as_spatial_data(tissue_slide):
    from wsidata import open_wsi

    import dicomslide.plugins.wsidata  # noqa: F401

    wsi = open_wsi(str(tissue_slide / "level-0.dcm"), reader="dicomslide")
    assert wsi.reader.name == "dicomslide"
