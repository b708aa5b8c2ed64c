"""What a view shows of a slide, without a browser: pixels of a box of millimetres."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.display.blend import blend
from dicomslide.errors import FrameDecodeError, FrameReadError, MetadataError, SourceReadError
from dicomslide.testing import write_slide
from dicomslide.view.blocks import BLOCK, Block, BlockCache, TooMuch, levels_of, rectangles
from dicomslide.view.scene import BAD, Scene, positions
from dicomslide.view.shapes import FEW, shapes_of
from tests.support import derive
from tests.support.fake_client import FakeClient
from tests.support.looked_at import RAW, write_markers, write_tissue

BASE = 0.0005


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tissue(tmp_path_factory.mktemp("tissue"))


@pytest.fixture(scope="module")
def tissue(folder):
    return dicomslide.open_slide(folder)


@pytest.fixture(scope="module")
def markers(tmp_path_factory):
    return dicomslide.open_slide(write_markers(tmp_path_factory.mktemp("markers")))


def at(array, box, shape):
    """Pixels of an array that are nearest to the positions of a view."""
    x, y = positions(box, shape)
    return array.sel(x=x, y=y, method="nearest")


def lines_of(picture):
    """Lines of the only overlay of shapes."""
    (outlines,) = picture.outlines
    gaps = np.flatnonzero(np.isnan(outlines.lines[:, 0]))
    return [line[~np.isnan(line[:, 0])] for line in np.split(outlines.lines, gaps + 1)[:-1]]


BOX = (17.50012, 31.50012, 17.60012, 31.58012)
SHAPE = (160, 200)  # pixels of the base level


def test_a_view_has_the_pixels_that_lie_there(tissue):
    picture = Scene(tissue, ()).render(BOX, SHAPE)
    expected = at(tissue.to_dataset().image, BOX, SHAPE)
    np.testing.assert_array_equal(picture.pixels[..., :3], expected)
    assert (picture.pixels[..., 3] == 255).all()
    assert picture.spacing == pytest.approx(BASE)


def test_the_level_follows_the_zoom_and_outside_is_clear(tissue):
    scene = Scene(tissue, ())
    x_min, y_min, x_max, y_max = tissue.physical_bounds
    box = (x_min - 1, y_min, x_max, y_max)
    picture = scene.render(box, (200, 400))
    assert picture.spacing == pytest.approx(4 * BASE)
    x, _ = positions(box, (200, 400))
    assert not picture.pixels[:, x < x_min, 3].any()
    assert (picture.pixels[:, x > x_min, 3] == 255).all()


def test_to_move_a_view_reads_what_is_new_in_it(tissue, frames_read):
    scene = Scene(tissue, ())
    dicomslide.clear_all()
    scene.render(BOX, SHAPE)
    assert frames_read
    frames_read.clear()
    assert not scene.needs_reading(BOX, SHAPE)
    scene.render(BOX, SHAPE)
    assert frames_read == []
    moved = (BOX[0] + BLOCK * BASE, BOX[1], BOX[2] + BLOCK * BASE, BOX[3])
    assert scene.needs_reading(moved, SHAPE)
    scene.render(moved, SHAPE)
    new = len(frames_read)
    assert 0 < new <= 3 * 3  # of a block, with frames at its edges


def test_a_coarser_level_stands_in_while_nothing_may_be_read(tissue, frames_read):
    scene = Scene(tissue, ())
    assert scene.render(BOX, SHAPE, cached=True) is None
    coarse = scene.render(tissue.physical_bounds, (200, 150))
    frames_read.clear()
    picture = scene.render(BOX, SHAPE, cached=True)
    assert frames_read == []
    assert picture.spacing == coarse.spacing
    (level,) = (
        node.image for node in tissue.to_datatree(levels="virtual").children.values()
        if node.image.slide.spacing[0] == pytest.approx(coarse.spacing)
    )  # fmt: skip
    np.testing.assert_array_equal(picture.pixels[..., :3], at(level, BOX, SHAPE))


def test_channels_planes_limits_and_gamma_are_those_that_are_set(markers):
    scene = Scene(markers, ())
    assert [each.name for each in scene.channels] == [
        f"Fluorescence {n}" for n in ("DAPI", "FITC", "Cy5")
    ]
    assert scene.planes == [0, 2, 4]
    scene.channels[1].visible = False
    scene.channels[2].color, scene.channels[2].limits = "#FFFF00", (100, 9000)
    scene.channels[0].limits = (0, 20000)
    scene.plane, scene.gamma = 2, 0.5
    box = (17.75012, 31.75012, 17.85012, 31.83012)
    found = scene.render(box, SHAPE).pixels[..., :3]
    pixels = at(markers.to_dataset().image.isel(z=2), box, SHAPE).values
    expected = blend(
        [pixels[0], pixels[2]], ["#0000FF", "#FFFF00"], [(0, 20000), (100, 9000)], gamma=0.5
    )
    np.testing.assert_array_equal(found, expected)
    assert "Cy5" in scene.describe(17.8, 31.8, BASE)
    assert "FITC" not in scene.describe(17.8, 31.8, BASE)


def test_segments_lie_over_the_pixels_and_fade(tissue):
    scene = Scene(tissue, ["segmentation"])
    (drawn,) = scene.overlays
    below = Scene(tissue, ()).render(tissue.physical_bounds, (320, 240)).pixels
    drawn.opacity = 1.0
    above = scene.render(tissue.physical_bounds, (320, 240)).pixels
    inside = at(tissue.to_dataset().segmentation, tissue.physical_bounds, (320, 240))
    (tumour, stroma), colors = inside.values, [
        [int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in drawn.look.colors
    ]  # fmt: skip
    agree = [
        (above[mask][:, :3] == color).all(axis=1).mean()
        for mask, color in zip((tumour, stroma), colors, strict=True)
    ]
    assert min(agree) > 0.95  # of coarser levels: not at edges
    outside = ~(tumour | stroma)
    assert (above[outside] == below[outside]).all(axis=1).mean() > 0.98
    drawn.opacity = 0.5
    half = scene.render(tissue.physical_bounds, (320, 240)).pixels[..., :3].astype(int)
    np.testing.assert_allclose(half, (above[..., :3].astype(int) + below[..., :3]) / 2, atol=1)
    drawn.visible = False
    np.testing.assert_array_equal(scene.render(tissue.physical_bounds, (320, 240)).pixels, below)


def test_arrays_of_the_callers_lie_where_their_millimetres_are(tissue):
    image = tissue.to_dataset(1).image
    heat = image.isel(sample=0, drop=True).astype("float32").where(image.isel(sample=1) < 200)
    heat = heat.isel(x=slice(50, 200)).rename("heat").assign_attrs(units="%")
    scene = Scene(tissue, [heat])
    (drawn,) = scene.overlays
    drawn.opacity = 1.0
    picture = scene.render(BOX, SHAPE)
    values = at(heat, BOX, SHAPE).values
    x, _ = positions(BOX, SHAPE)
    covered = (x > heat.slide.extent[0]) & (x < heat.slide.extent[2])
    clear = np.isnan(values) | ~covered
    plain = Scene(tissue, ()).render(BOX, SHAPE).pixels
    np.testing.assert_array_equal(picture.pixels[clear], plain[clear])
    np.testing.assert_array_equal(picture.pixels[~clear], drawn.look.rgba(values)[~clear])
    text = scene.describe(*(float(heat[d][20]) for d in "xy"), 4 * BASE)
    assert "%" in text or "heat" not in text


def test_annotations_are_outlines_from_near(tissue):
    scene = Scene(tissue, ["nuclei"])
    picture = scene.render(BOX, SHAPE)
    (group,) = tissue.annotations()
    x_min, y_min, x_max, y_max = BOX
    boxes = group.bounds
    meets = (
        (boxes[:, 0] <= x_max)
        & (boxes[:, 2] >= x_min)
        & (boxes[:, 1] <= y_max)
        & (boxes[:, 3] >= y_min)
    )
    expected = np.flatnonzero(meets)
    lines = lines_of(picture)
    assert len(lines) == len(expected) > 0
    for line, index in zip(lines, expected, strict=True):
        np.testing.assert_allclose(line[:-1], group[int(index)])
        np.testing.assert_array_equal(line[0], line[-1])
    np.testing.assert_array_equal(picture.pixels, Scene(tissue, ()).render(BOX, SHAPE).pixels)


@pytest.mark.needs("geopandas")
def test_many_shapes_are_counted_in_pixels(tissue):
    """As NumPy's histogram counts them."""
    import geopandas

    rng = np.random.default_rng(0)
    x_min, y_min, x_max, y_max = BOX
    x, y = rng.uniform(x_min, x_max, FEW + 500), rng.uniform(y_min, y_max, FEW + 500)
    shapes = shapes_of(geopandas.GeoDataFrame(geometry=geopandas.points_from_xy(x, y)))
    rgba = shapes.rgba(BOX, SHAPE, "#FF0000")
    counts, _, _ = np.histogram2d(y, x, SHAPE, [[y_min, y_max], [x_min, x_max]])
    np.testing.assert_array_equal(rgba[..., 3] > 0, counts > 0)
    order = np.argsort(counts[counts > 0], kind="stable")
    assert (np.diff(rgba[..., 3][counts > 0][order].astype(int)) >= 0).all()  # more is denser


@pytest.mark.needs("geopandas")
def test_shapes_of_geopandas_have_holes_parts_and_points(tissue):
    import geopandas
    import shapely

    ring = shapely.box(17.52, 31.52, 17.58, 31.56).difference(
        shapely.box(17.54, 31.53, 17.56, 31.54)
    )
    two = shapely.MultiPoint([(17.53, 31.51), (17.54, 31.51)])
    frame = geopandas.GeoDataFrame({"kind": ["ring", "two", "none"]}, geometry=[ring, two, None])
    scene = Scene(tissue, {"mine": frame})
    picture = scene.render(BOX, SHAPE)
    assert [len(line) for line in lines_of(picture)] == [5, 5]
    assert picture.outlines[0].points.tolist() == [[17.535, 31.51]]  # the middle of both
    assert scene.describe(17.521, 31.521, BASE).endswith("mine: kind ring")
    assert scene.describe(17.53, 31.51, BASE).endswith("mine: kind two")
    assert "mine" not in scene.describe(17.51, 31.51, BASE)


def test_a_frame_that_does_not_decode_is_striped_in_its_place(tmp_path):
    path, *_ = write_slide(
        tmp_path, shape=(512, 512), downsamples=(1,), associated=False, tile_shape=(128, 128),
        orientation=(1, 0, 0, 0, -1, 0),
    )  # fmt: skip
    whole = dicomslide.open_slide(path).to_dataset().image.load()
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 2) if data[i : i + 3] == b"\xff\xd8\xff"]
    data[starts[5] : starts[5] + 300] = bytes(300)  # row 1, column 1 of the grid
    path.write_bytes(data)
    scene = Scene(dicomslide.open_slide(path), ())
    picture = scene.render(whole.slide.extent, (512, 512))
    bad = np.zeros((512, 512), bool)
    bad[128:256, 128:256] = True
    upright = picture.pixels[::-1]  # rows from the top down
    np.testing.assert_array_equal(upright[~bad][:, :3], whole.values[~bad])
    assert {tuple(each) for each in upright[bad]} == {tuple(each) for each in BAD}
    assert picture.notes == ["striped: frames that can't be read or decoded"]


@pytest.fixture
def failing(monkeypatch):
    """Errors of frames by their index, which files raise at present."""
    errors, read = {}, FileSource.read_frames

    def read_frames(source, frames):
        for frame in frames:
            if frame in errors:
                raise errors[frame]
        return read(source, frames)

    monkeypatch.setattr(FileSource, "read_frames", read_frames)
    return errors


def test_frames_that_are_read_at_another_attempt_are_striped_no_longer(tmp_path, failing):
    write_slide(tmp_path, shape=(512, 512), downsamples=(1,), tile_shape=(128, 128))
    slide = dicomslide.open_slide(tmp_path)
    scene, box = Scene(slide, ()), slide.physical_bounds
    failing[5] = FrameReadError("no answer")
    assert scene.render(box, (512, 512)).notes
    failing.clear()
    picture = scene.render(box, (512, 512))
    assert picture.notes == []
    np.testing.assert_array_equal(
        picture.pixels[..., :3], at(slide.to_dataset().image, box, (512, 512))
    )


def test_a_view_is_whole_though_the_cache_holds_less(tissue):
    scene = Scene(tissue, ())
    scene.image._cache = BlockCache(most=1)
    x_min, y_min, x_max, y_max = box = tissue.physical_bounds
    shape = round((y_max - y_min) / BASE), round((x_max - x_min) / BASE)
    picture = scene.render(box, shape)
    expected = at(tissue.to_dataset().image, box, shape)
    np.testing.assert_array_equal(picture.pixels[..., :3], expected)


@pytest.mark.parametrize("error", [FrameDecodeError, FrameReadError])
def test_a_segmentation_that_is_not_read_leaves_the_slide(tissue, monkeypatch, error):
    def read_frames(source, frames):
        if source.path.endswith("seg.dcm"):
            raise error("damaged")
        return read(source, frames)

    read = FileSource.read_frames
    scene, box = Scene(tissue, ["segmentation"]), tissue.physical_bounds
    dicomslide.clear_all()
    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "read_frames", read_frames)
        picture = scene.render(box, (320, 240))
    assert picture.notes == ["segmentation: damaged"]
    assert picture.is_lasting == (error is FrameDecodeError)
    plain = Scene(tissue, ()).render(box, (320, 240))
    np.testing.assert_array_equal(picture.pixels, plain.pixels)
    again = scene.render(box, (320, 240))
    assert again.is_lasting
    assert (again.pixels != plain.pixels).any()


@pytest.mark.needs("highdicom")
def test_a_map_that_is_not_read_leaves_the_slide(tmp_path, monkeypatch):
    def read_frames(source, frames):
        if source.path.endswith("map.dcm"):
            raise FrameDecodeError("damaged")
        return read(source, frames)

    read = FileSource.read_frames
    (file,) = write_slide(tmp_path, shape=(96, 96), downsamples=(1,), associated=False)
    values = np.ones((96, 96, 1), np.float32)
    derive.write_map(tmp_path / "map.dcm", file, values, [[derive.mapping("a")]])
    monkeypatch.setattr(FileSource, "read_frames", read_frames)
    slide = dicomslide.open_slide(tmp_path)
    scene = Scene(slide)
    (drawn,) = scene.overlays
    drawn.visible = True
    picture = scene.render(slide.physical_bounds, (96, 96))
    assert picture.notes == [f"{drawn.name}: damaged"]
    assert (picture.pixels[..., 3] == 255).all()


def test_a_server_that_gives_no_frame_is_not_asked_for_all(tmp_path, failing, monkeypatch):
    monkeypatch.setattr("dicomslide.view.blocks.PATIENCE", 0)
    write_slide(tmp_path, shape=(512, 512), downsamples=(1,), tile_shape=(128, 128))
    slide = dicomslide.open_slide(tmp_path)
    scene, box = Scene(slide, ()), slide.physical_bounds
    failing.update({frame: FrameReadError("no answer") for frame in range(16)})
    with pytest.raises(FrameReadError):
        scene.render(box, (512, 512))
    for frame in (0, 3, 12, 15):  # the corners: reading begins at one of them
        del failing[frame]
    picture = scene.render(box, (512, 512))
    assert not picture.is_lasting
    failing.clear()
    picture = scene.render(box, (512, 512))
    assert picture.is_lasting
    np.testing.assert_array_equal(
        picture.pixels[..., :3], at(slide.to_dataset().image, box, (512, 512))
    )


def test_stripes_are_those_of_the_channels_that_are_shown(tmp_path, failing):
    write_slide(
        tmp_path, shape=(256, 256), drawing="cells", samples=1, bits=16, transfer_syntax_uid=RAW,
        optical_paths=("DAPI", "FITC"), downsamples=(1,), tile_shape=(128, 128),
    )  # fmt: skip
    slide = dicomslide.open_slide(tmp_path)
    scene, box = Scene(slide, ()), slide.physical_bounds
    scene.image._cache = BlockCache()
    failing[0] = failing[7] = FrameDecodeError("damaged")  # one of each channel
    striped = []
    for shown in ([True, False], [False, True], [True, True]):
        for channel, visible in zip(scene.channels, shown, strict=True):
            channel.visible = visible
        pixels = scene.render(box, (256, 256)).pixels
        is_bad = [(pixels == color).all(axis=-1) for color in BAD]
        striped.append(is_bad[0] | is_bad[1])
    assert [each.sum() for each in striped] == [128 * 128, 128 * 128, 2 * 128 * 128]
    np.testing.assert_array_equal(striped[0] | striped[1], striped[2])


def test_a_view_of_a_slide_on_a_dicomweb_server_is_few_requests(folder):
    client = FakeClient(folder)
    scene = Scene(dicomslide.open_slide(client), ())
    client.calls.clear()
    scene.render(BOX, SHAPE)
    assert 0 < len(client.calls) <= 3
    client.calls.clear()
    scene.render(BOX, SHAPE)
    assert client.calls == []


def test_a_level_that_is_too_fine_for_a_view_is_not_read(monkeypatch, tissue):
    monkeypatch.setattr("dicomslide.view.blocks.MOST_PIXELS", 1000)
    picture = Scene(tissue, ()).render(BOX, SHAPE)
    assert picture.notes == ["zoom in: the slide has no level for this view"]
    assert not picture.pixels.any()
    levels = levels_of([tissue.to_dataset(1).image.isel(sample=0)], BlockCache())
    with pytest.raises(TooMuch):
        levels.sample(*positions(tissue.physical_bounds, (2, 2)))


@pytest.mark.filterwarnings("ignore:.*lies obliquely")
def test_a_slide_without_upright_pixels_says_so(tmp_path):
    cosines = (3**0.5 / 2, 0.5, 0, 0.5, -(3**0.5) / 2, 0)
    write_slide(tmp_path, shape=(200, 200), downsamples=(1,), orientation=cosines)
    with pytest.raises(MetadataError, match="no upright pixels in mm"):
        Scene(dicomslide.open_slide(tmp_path), ())


def test_a_variable_that_is_not_there_is_named(tissue):
    with pytest.raises(KeyError, match="'image_9'"):
        Scene(tissue, (), "image_9")


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6))))
def test_rectangles_cover_cells_once_and_nothing_else(cells):
    covered = [
        cell for rows, columns in rectangles(sorted(cells))
        for cell in itertools.product(rows, columns)
    ]  # fmt: skip
    assert len(covered) == len(set(covered))
    assert set(covered) == cells


def test_what_a_moved_view_lacks_is_two_rectangles():
    old = set(itertools.product(range(3), range(4)))
    new = set(itertools.product(range(1, 4), range(1, 5)))
    assert len(rectangles(sorted(new - old))) == 2


def test_blocks_are_bounded_in_bytes():
    cache = BlockCache(most=1000)
    for number in range(5):
        cache.put(number, Block(np.zeros(300, np.uint8), None, True))
        assert cache.get(0) is not None  # in use
    assert [cache.get(number) is not None for number in range(5)] == [
        True,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.needs("panel")
def test_a_server_that_goes_away_is_said_and_asked_again(tissue, monkeypatch):
    from dicomslide.view.window import RETRY, Window

    window = Window(Scene(tissue, ()), lambda geometry: None)
    asked = dict(
        x0=[BOX[0]], y0=[BOX[1]], x1=[BOX[2]], y1=[BOX[3]], w=[199], h=[159], ratio=[1], n=[1]
    )

    def gone(*arguments, **options):
        raise SourceReadError("http://server/level-0.dcm: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(window.scene.image, "_read_missing", gone)
        window._on_asked("data", {}, asked)
        assert (
            window.message.text
            == "SourceReadError: http://server/level-0.dcm: no answer: trying again"
        )
        assert window.answered.data["retry"] == [RETRY]
    window._on_asked("data", {}, asked | {"n": [2]})
    assert window.message.text == ""
    assert window.near.data["retry"] == [0]
    (shown,) = window.near.data["image"]
    x, y = np.linspace(BOX[0], BOX[2], 200), np.linspace(BOX[1], BOX[3], 160)
    expected = tissue.to_dataset().image.sel(x=x, y=y, method="nearest")
    np.testing.assert_array_equal(shown.view(np.uint8).reshape(*SHAPE, 4)[..., :3], expected)


def test_a_view_without_its_packages_says_what_to_install(tissue, monkeypatch):
    monkeypatch.setattr("dicomslide.view.NEEDED", ("panel", "no_such_package"))
    with pytest.raises(ImportError, match=r"no_such_package: pip install 'dicomslide\[view\]'"):
        tissue.view()
