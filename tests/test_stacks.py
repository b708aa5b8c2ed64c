"""Optical paths and focal planes, in one instance and in instances of their own."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide import ChannelTypes, open_slide
from dicomslide.backends.part10.file import FileSource
from dicomslide.errors import FrameReadError
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing import SyntheticImage, averaged, position_values, write_image

SHAPE = (50, 70)
PATHS = ("9", "10", "DAPI")  # by item, not by text
PLANES = (5.0, 7.0, 9.0)
BASE = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.0005, 0.0005), SHAPE)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Positions, of channels and planes that are counted through all instances."""

    channel: int
    plane: int
    dtype: type

    def tile(self, rows, columns, channel, plane):
        return position_values(
            rows, columns, self.channel + channel, self.plane + plane, samples=1, dtype=self.dtype
        )


def expected(shape, channel, plane, dtype):
    rows, columns = map(np.arange, shape)
    return position_values(rows, columns, channel, plane, samples=1, dtype=dtype)


def wavelength_of(path):
    return 400.0 + 50 * PATHS.index(path)


ARRANGEMENTS = {
    "one instance": [(PATHS, PLANES)],
    "an instance a path": [((path,), PLANES) for path in PATHS],
    "an instance a plane": [(PATHS, (z,)) for z in PLANES],
    "an instance a path and plane": [((path,), (z,)) for path in PATHS for z in PLANES],
}


def write_stack(folder, arrangement, dtype, *, sparse, levels=(1, 2)):
    bits = np.dtype(dtype).itemsize * 8
    for factor in levels:
        for number, (paths, planes) in enumerate(arrangement):
            image = SyntheticImage(
                geometry=averaged(BASE, factor),
                drawing=Shifted(PATHS.index(paths[0]), PLANES.index(planes[0]), dtype),
                pixel_format=PixelFormat(
                    rows=16, columns=32, bits_allocated=bits, bits_stored=bits
                ),
                optical_paths=paths,
                planes=planes,
                sparse=sparse,
                instance_number=100 * factor + number,
            )

            def change(dataset):
                for item in dataset.OpticalPathSequence:
                    item.IlluminationWaveLength = wavelength_of(item.OpticalPathIdentifier)

            write_image(folder / f"{factor}-{number}.dcm", image, change=change)
    return folder


@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS.keys())
def test_channels_and_planes_are_the_same_however_they_are_stored(
    tmp_path, arrangement, dtype, sparse
):
    slide = open_slide(write_stack(tmp_path, arrangement, dtype, sparse=sparse))
    assert (slide.num_levels, slide.num_channels, slide.num_focal_planes) == (2, 3, 3)
    assert [slide.get_channel_identifier(c) for c in range(3)] == list(PATHS)
    assert slide.get_channel_index("DAPI", "OPTICAL_PATH") == 2
    assert slide.get_channel_type(1) is ChannelTypes.OPTICAL_PATH
    assert slide.get_focal_plane_index(7.0) == 1
    assert [slide.get_focal_plane_offset(p) for p in range(3)] == list(PLANES)
    assert slide.find_optical_paths(illumination_wavelength=450.0) == (1,)
    tree = slide.to_datatree()
    for level, shape in enumerate((SHAPE, (25, 35))):
        variable = tree[f"level_{level}"].image
        assert variable.dims == ("channel", "z", "y", "x")
        assert variable.dtype == dtype
        assert variable.channel.values.tolist() == list(PATHS)
        assert variable.wavelength.values.tolist() == [400, 450, 500]
        np.testing.assert_allclose(variable.z, [0.005, 0.007, 0.009])
        assert variable.focal_plane.values.tolist() == [0, 1, 2]
        pixels = variable.values
        for channel in range(3):
            for plane in range(3):
                wanted = expected(shape, channel, plane, dtype)
                region = slide.get_image_region((0, 0), level, shape, channel, plane)
                np.testing.assert_array_equal(region, wanted)
                np.testing.assert_array_equal(pixels[channel, plane], np.rot90(wanted[..., 0], -1))
    chosen = tree["level_0"].image.sel(channel="10", z=0.0072)  # the plane in which it lies
    np.testing.assert_array_equal(chosen, np.rot90(expected(SHAPE, 1, 1, dtype)[..., 0], -1))
    assert len(slide.get_volume_images(2, 2)) == 2


@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
def test_a_stack_of_planes_in_one_instance(tmp_path, sparse):
    write_stack(tmp_path, [(("9",), PLANES)], np.uint16, sparse=sparse, levels=(1,))
    slide = open_slide(tmp_path)
    assert slide.focal_plane_offsets == PLANES
    assert slide.get_focal_plane_index(7.0) == 1
    (image,) = slide.get_volume_images(0, 1)
    assert image.get_focal_plane_index(7.0) == 1
    for plane in range(3):
        np.testing.assert_array_equal(
            image.get_total_pixel_matrix(0, plane)[:, :], expected(SHAPE, 0, plane, np.uint16)
        )
    level = slide.to_dataset()
    assert level.image.dims == ("z", "y", "x")
    np.testing.assert_array_equal(
        level.image.sel(z=slice(0.006, 0.1)).z, np.array([7.0, 9.0]) / 1000
    )


def test_planes_closer_than_a_hundredth_of_a_micrometre_are_one(tmp_path):
    for number, (path, z) in enumerate((("9", 5.0), ("10", 5.004))):
        image = SyntheticImage(
            geometry=BASE,
            drawing=Shifted(number, 0, np.uint16),
            pixel_format=PixelFormat(rows=16, columns=32, bits_allocated=16, bits_stored=16),
            optical_paths=(path,),
            planes=(z,),
            sparse=True,
            instance_number=number + 1,
        )
        write_image(tmp_path / f"{number}.dcm", image)
    slide = open_slide(tmp_path)
    assert (slide.num_channels, slide.num_focal_planes) == (2, 1)
    assert slide.get_focal_plane_index(5.4) == 0
    with pytest.raises(ValueError, match=r"within 0.5 µm of 5.6 µm; there are \[5.0\]"):
        slide.get_focal_plane_index(5.6)


def test_a_channel_that_some_levels_lack_is_not_in_their_arrays(tmp_path):
    write_stack(tmp_path, [(("9",), (5.0,))], np.uint8, sparse=False)
    extra = tmp_path / "extra"
    extra.mkdir()
    write_stack(extra, [(("9",), (5.0,)), (("10",), (5.0,))], np.uint8, sparse=False, levels=(1,))
    (extra / "1-0.dcm").unlink()
    slide = open_slide(tmp_path)
    tree = slide.to_datatree()
    assert tree["level_0"].image.channel.values.tolist() == ["9", "10"]
    assert tree["level_1"].image.channel.item() == "9"
    with pytest.raises(ValueError, match=r"'10'\) has no pixels at level 1; it has .*levels \[0\]"):
        slide.get_image_region((0, 0), 1, (5, 5), 1)


def test_missing_planes_of_a_channel_are_background_with_a_warning(tmp_path):
    arrangement = [(("9",), (5.0,)), (("9",), (7.0,)), (("10",), (5.0,))]
    write_stack(tmp_path, arrangement, np.uint8, sparse=False, levels=(1,))
    slide = open_slide(tmp_path)
    with pytest.warns(dicomslide.MetadataWarning, match=r"pixels for 3 of 2 × 2 channels"):
        variable = slide.to_dataset().image
    assert not variable[1, 1].any()
    assert variable[1, 0].any()
    with pytest.raises(ValueError, match=r"no focal plane 1 at level 0; there are \[0\]"):
        slide.get_image_region((0, 0), 0, (5, 5), 1, 1)


def test_planes_are_read_side_by_side_into_one_array(tmp_path, monkeypatch):
    write_stack(tmp_path, ARRANGEMENTS["one instance"], np.uint16, sparse=False, levels=(1,))
    image = xr.open_dataset(tmp_path, engine="dicomslide", orientation="stored").image
    together = threading.Barrier(3)
    first_ones = iter(range(3))
    original = FileSource.read_frames

    def meeting(self, indices):
        if next(first_ones, None) is not None:
            together.wait(timeout=60)  # for two other threads that read, too
        return original(self, indices)

    monkeypatch.setattr(FileSource, "read_frames", meeting)
    with dicomslide.set_options(num_threads=3):
        values = image.values
    assert values.shape == (3, 3, *SHAPE)
    for channel, plane in np.ndindex(3, 3):
        np.testing.assert_array_equal(
            values[channel, plane], expected(SHAPE, channel, plane, np.uint16)[..., 0]
        )


def test_an_error_in_one_plane_ends_the_reading_of_the_others(tmp_path, monkeypatch):
    write_stack(tmp_path, ARRANGEMENTS["one instance"], np.uint16, sparse=False, levels=(1,))
    image = xr.open_dataset(tmp_path, engine="dicomslide", orientation="stored").image
    calls = []

    def failing(self, indices):
        calls.append(indices)
        raise FrameReadError("no bytes today", self.name, indices[0])

    monkeypatch.setattr(FileSource, "read_frames", failing)
    with (
        dicomslide.set_options(num_threads=2),
        pytest.raises(FrameReadError, match="no bytes today"),
    ):
        image.load()
    assert len(calls) <= 2
