"""What callers see: names, arguments that were renamed, and at which line they are warned."""

from __future__ import annotations

import concurrent.futures
import importlib
import inspect
import pickle
import subprocess
import sys
import warnings

import pydicom
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.part10.file import FileStore
from dicomslide.contents.levels import Level
from dicomslide.contents.pyramids import GlassPyramid
from dicomslide.testing import write_slide
from tests.support.fake_client import FakeClient


def opened_by_engine(path, **options):
    return xr.open_dataset(path, engine="dicomslide", **options)


DOORS = {
    "to_dataset": lambda path, **options: dicomslide.open_slide(path).to_dataset(**options),
    "to_datatree": lambda path, **options: dicomslide.open_slide(path).to_datatree(**options),
    "open_dataset": lambda path, **options: opened_by_engine(path, **options),
    "a group": lambda path, **options: opened_by_engine(path, group="level_1", **options),
    "open_datatree": lambda path, **options: xr.open_datatree(path, engine="dicomslide", **options),
    "open_groups": lambda path, **options: xr.open_groups(path, engine="dicomslide", **options),
}
"""Whatever makes labelled arrays."""


def dims_of(labelled):
    if isinstance(labelled, dict):
        labelled = labelled["/level_0"]
    node = labelled["level_0"] if isinstance(labelled, xr.DataTree) else labelled
    return node["image"].dims[:2]


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_labelled_arrays_are_upright_or_as_stored(tissue_slide, door):
    assert dims_of(door(tissue_slide)) == ("y", "x")
    assert dims_of(door(tissue_slide, orientation="upright")) == ("y", "x")
    assert dims_of(door(tissue_slide, orientation="stored")) == ("row", "column")
    with pytest.raises(ValueError, match="not 'sideways'"):
        door(tissue_slide, orientation="sideways")


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize(
    ("old", "new", "dims"),
    [("slide", "upright", ("y", "x")), ("matrix", "stored", ("row", "column"))],
)
def test_the_old_name_of_orientation_does_with_a_warning(tissue_slide, door, old, new, dims):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labelled = door(tissue_slide, frame=old)
    assert dims_of(labelled) == dims
    (warning,) = caught
    assert warning.category is FutureWarning
    assert str(warning.message) == (
        f"frame={old!r} is deprecated and will be removed in dicomslide 0.9;"
        f" use orientation={new!r}"
    )
    assert warning.filename == __file__
    with pytest.raises(TypeError, match="frame is the old name of orientation"):
        door(tissue_slide, frame=old, orientation=new)
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="orientation must be"):
        door(tissue_slide, frame="stored wrongly")


def test_only_the_new_name_is_among_the_arguments():
    for function in (dicomslide.Slide.to_dataset, dicomslide.Slide.to_datatree):
        arguments = inspect.signature(function).parameters
        assert arguments["orientation"].default == "upright"
        assert "frame" not in arguments


@pytest.fixture
def odd_slide(tmp_path):
    """A mirrored slide, one of whose levels has another frame of reference, and a copy of it."""
    paths = write_slide(
        tmp_path / "odd", shape=(60, 80), tile_shape=(32, 32), downsamples=(1, 2),
        orientation=(1, 0, 0, 0, 1, 0), associated=False,
    )  # fmt: skip
    level = pydicom.dcmread(paths[1])
    level.FrameOfReferenceUID += ".1"
    level.save_as(paths[1])
    (tmp_path / "odd" / "copy.dcm").write_bytes(paths[0].read_bytes())
    return tmp_path / "odd"


FINDINGS = ["has the SOP Instance UID of", "2 Frame of Reference UIDs", "a mirror image"]
"""What there is to say of it, once."""


def warnings_of(function, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args, **kwargs)
    return result, caught


def in_a_pool(folder):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: dicomslide.open_slide(folder)).result()


def made(folder):
    store = FileStore.open(folder)
    return dicomslide.Slide(store, store.metadata)


OPENING = {
    "open_slide": dicomslide.open_slide,
    "Slide": made,
    "one of several": lambda folder: dicomslide.open_slide(folder, container_id="DS-0001"),
    "client": lambda folder: dicomslide.open_slide(FakeClient(folder)),
    "find_slides": lambda folder: dicomslide.find_slides(FakeClient(folder))[0],
    "open_slides": lambda folder: next(iter(dicomslide.open_slides(folder).values())),
    "opened": lambda folder: next(dicomslide.open_slides(folder).opened())[1],
    "OpenSlide": lambda folder: dicomslide.OpenSlide(folder),
    "engine": opened_by_engine,
    "tree": lambda folder: xr.open_datatree(folder, engine="dicomslide"),
    "groups": lambda folder: xr.open_groups(folder, engine="dicomslide"),
    "thread": in_a_pool,
}


@pytest.mark.parametrize(("name", "door"), OPENING.items(), ids=OPENING)
def test_each_warning_comes_once_at_the_line_of_the_caller(odd_slide, name, door):
    _, caught = warnings_of(door, odd_slide)
    said = [str(warning.message) for warning in caught]
    for finding in FINDINGS[name in ("client", "find_slides") :]:  # a server has no two copies
        assert len([message for message in said if finding in message]) == 1, said
    assert len(said) == len(set(said))
    assert {warning.filename for warning in caught} == {__file__}
    source, first = inspect.getsourcelines(in_a_pool if name == "thread" else door)
    if name not in ("open_slide", "OpenSlide"):
        assert {first <= warning.lineno < first + len(source) for warning in caught} == {True}


def test_a_slide_that_is_opened_again_or_pickled_doesnt_warn_again(odd_slide):
    slide, caught = warnings_of(dicomslide.open_slide, odd_slide)
    assert len(caught) == len(FINDINGS)
    assert warnings_of(dicomslide.open_slide, slide, correct_color=False)[1] == []
    assert warnings_of(pickle.loads, pickle.dumps(slide))[1] == []
    assert warnings_of(slide.to_datatree)[1] == []
    cohort, of_sorting = warnings_of(dicomslide.open_slides, odd_slide)
    (name,) = cohort
    of_opening = warnings_of(cohort.__getitem__, name)[1]
    assert len(of_sorting) + len(of_opening) == len(FINDINGS)
    assert warnings_of(cohort.__getitem__, name)[1] == []


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_labelled_arrays_warn_at_the_line_of_the_caller(tmp_path, door):
    write_slide(
        tmp_path / "oblique", shape=(60, 80), tile_shape=(32, 32), downsamples=(1, 2),
        orientation=(0.6, 0.8, 0, 0.8, -0.6, 0), associated=False,
    )  # fmt: skip
    _, caught = warnings_of(door, tmp_path / "oblique")
    assert caught
    assert {warning.filename for warning in caught} == {__file__}
    assert all("lies obliquely" in str(warning.message) for warning in caught)
    assert len({str(warning.message) for warning in caught}) == len(caught)


def test_of_one_slide_an_array_warns_once(tmp_path):
    write_slide(
        tmp_path, shape=(60, 80), tile_shape=(32, 32), downsamples=(1, 2),
        orientation=(0.6, 0.8, 0, 0.8, -0.6, 0), associated=False,
    )  # fmt: skip
    slide = dicomslide.open_slide(tmp_path)
    assert len(warnings_of(slide.to_dataset)[1]) == 1
    (other,) = warnings_of(slide.to_datatree)[1]  # of the other level
    assert "level-1.dcm" in str(other.message)
    assert warnings_of(slide.to_datatree)[1] == []


def test_frames_that_are_filled_warn_at_the_line_of_the_caller_whichever_thread_decodes(tmp_path):
    path, *_ = write_slide(tmp_path, shape=(256, 256), tile_shape=(32, 32), downsamples=(1,),
                           associated=False)  # fmt: skip
    dataset = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=64))
    dataset.PixelData = pydicom.encaps.encapsulate([frame[:40] for frame in frames])
    dataset.save_as(path)
    slide = dicomslide.open_slide(path, on_error="fill")
    _, caught = warnings_of(slide.get_image_region, (0, 0), 0, (256, 256))
    assert len(caught) == 64
    assert {warning.filename for warning in caught} == {__file__}


PUBLIC = {
    dicomslide.Slide: """
        annotation_labels annotations channels container_identifier derived_images describe
        downsampling_factors find_optical_paths find_segments focal_plane_offsets
        frame_of_reference_uid get_channel_identifier get_channel_index get_channel_type
        get_focal_plane_index get_focal_plane_offset get_image_region get_pixel_indices
        get_slide_offset get_slide_region get_slide_region_for_annotation get_volume_images
        label_images level level_at levels map_pixel_indices_to_slide_coordinates
        map_slide_coordinates_to_pixel_indices metadata name num_channels num_focal_planes
        num_levels overview_images patches physical_bounds physical_offset physical_size
        pixel_spacings plot pyramid_index pyramids region size thumbnail thumbnail_images
        to_dataset to_datatree to_virtual to_zarr_store
        total_pixel_matrix_dimensions view""",
    dicomslide.TiledImage: """
        channel_type channels describe flavor focal_plane_offsets frame_of_reference_uid geometry
        get_channel_identifier get_channel_index get_focal_plane_index get_focal_plane_offset
        get_image_region get_pixel_indices get_references get_rotation get_slide_offset
        get_slide_region get_total_pixel_matrix is_mirrored kind
        map_pixel_indices_to_slide_coordinates map_slide_coordinates_to_pixel_indices metadata
        name num_channels num_focal_planes physical_bounds physical_offset physical_size
        pixel_spacing size transfer_syntax_uid""",
    dicomslide.TotalPixelMatrix: """
        dtype get_tile_bounding_box get_tile_grid_position get_tile_index get_tile_position nbytes
        ndim num_tiles shape size tile_grid_positions tile_grid_shape tile_positions tile_shape
        tile_size to_dask""",
    dicomslide.TotalPixelMatrixSampler: """
        count get_region_grid_position index matrix padded_region_shape padding read
        region_grid_positions region_positions region_shape""",
    dicomslide.Cohort: "failures get items keys map opened plot save select summaries"
    " to_pandas values",
    dicomslide.TileDataset: """
        centers count get_position index read size slide_indices slide_names spacing""",
    dicomslide.BlockShuffle: "dataset epoch indices set_epoch",
    dicomslide.TileStream: "set_epoch",
    Level: "image images size",
    GlassPyramid: """
        has_extended_depth_of_field images largest levels name num_levels size uid""",
}
MODULES = {
    "enum": "ChannelTypes ImageFlavors",
    "image": "TiledImage",
    "matrix": "TotalPixelMatrix TotalPixelMatrixSampler",
    "pyramid": """
        Pyramid PyramidLevel compute_image_center_position get_image_pixel_spacing get_image_size
        select_image_at_magnification select_image_at_pixel_spacing sort_images_by_pixel_spacing
        sort_images_by_size""",
    "slide": "Slide find_slides open_slide",
    "tile": """
        assemble_total_pixel_matrix compute_frame_positions disassemble_total_pixel_matrix""",
    "utils": """
        does_optical_path_item_match does_segment_item_match does_specimen_description_item_match
        is_image is_label_image is_overview_image is_tiled_image is_volume_image""",
    "recipes": """
        TileOutput area cell_table composite embed_tiles estimate_background estimate_stains
        focus_stack map_instances map_tiles outlines rasterize segment_statistics separate_stains
        subtract_background tile_grid tissue_mask tissue_threshold to_anndata to_pandas unmix""",
}
NEEDED = {"recipes": pytest.mark.needs("skimage")}


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_an_object_has_these_names_and_no_others(tissue_slide, kind):
    slide = dicomslide.open_slide(tissue_slide)
    image = slide.levels[0].image
    matrix = image.get_total_pixel_matrix()
    tiles = dicomslide.TileDataset({"x": [1.0], "y": [1.0]}, slide, size=8, spacing=0.001)
    objects = [
        slide, image, matrix, dicomslide.TotalPixelMatrixSampler(matrix, (32, 32)),
        dicomslide.open_slides(tissue_slide), slide.levels[0], slide.pyramids[0],
        tiles, dicomslide.BlockShuffle(tiles), dicomslide.TileStream(tiles),
    ]  # fmt: skip
    (found,) = (each for each in objects if type(each) is kind)
    assert [name for name in dir(found) if not name.startswith("_")] == PUBLIC[kind].split()


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=NEEDED.get(each, ())) for each in MODULES]
)
def test_a_documented_module_offers_these_names(name):
    module = getattr(dicomslide, name)
    assert module is importlib.import_module(f"dicomslide.{name}")
    assert sorted(module.__all__) == MODULES[name].split()
    for each in module.__all__:
        assert getattr(module, each).__doc__


@pytest.mark.parametrize("kind", [each for each in PUBLIC if hasattr(dicomslide, each.__name__)])
def test_what_is_public_is_documented(kind):
    for name in PUBLIC[kind].split():
        assert getattr(kind, name).__doc__, f"{kind.__name__}.{name}"


@pytest.mark.needs("skimage")
def test_modules_are_there_once_the_package_is_imported():
    """Those that need more are imported when they are first used."""
    code = (
        "import sys, dicomslide; late = ('recipes', 'testing', 'openslide');"
        "assert not {f'dicomslide.{each}' for each in late} & set(sys.modules);"
        "assert set(late) < set(dir(dicomslide));"
        "print(dicomslide.recipes.tissue_mask.__name__, dicomslide.testing.write_slide.__name__,"
        " dicomslide.openslide.OpenSlide is dicomslide.OpenSlide)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["tissue_mask", "write_slide", "True"]


def test_what_a_module_needs_and_isnt_installed_is_said():
    code = (
        "import sys; sys.modules['skimage'] = None; import dicomslide;"
        "assert not hasattr(dicomslide, 'recipes'); import inspect; inspect.getmembers(dicomslide);"
        "dicomslide.recipes"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AttributeError: recipes need scikit-image, which isn't installed" in out.stderr


def test_decoded_frames_are_kept_as_documented():
    """Six or nine where 0.7 has a number; else as many as there is room for."""
    defaults = {
        function: inspect.signature(function).parameters["max_frame_cache_size"].default
        for function in (
            dicomslide.Slide, dicomslide.TiledImage, dicomslide.TotalPixelMatrix,
            dicomslide.find_slides, dicomslide.open_slide, dicomslide.open_slides,
        )
    }  # fmt: skip
    assert list(defaults.values()) == [6, 6, 9, 6, None, None]
