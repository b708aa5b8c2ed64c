"""What notebooks show: HTML of slides, images and matrices, and plots in millimetres."""

from __future__ import annotations

import base64
import io
import itertools
import pickle
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from PIL import Image

import dicomslide
from dicomslide import add_scale_bar, open_slide
from dicomslide.display import picture as picture_module
from dicomslide.display.picture import as_displayed
from dicomslide.testing import write_slide
from tests.support.derive import tumour, write_segmentation


def pyplot():
    """Return pyplot, which draws without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def some_axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


class Page(HTMLParser):
    """Reads back what a page shows: its text, and the tags that are open at the end."""

    VOID = frozenset({"img", "br"})

    def __init__(self, page):
        super().__init__()
        self.open, self.words, self.cells = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.cells.append(data)

    @property
    def text(self):
        return "\n".join(self.words)


def read(page):
    parsed = Page(page)
    assert parsed.open == []
    return parsed


def picture_in(page):
    (data,) = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_html_of_a_slide_has_its_levels_and_picture(tissue_slide):
    slide = open_slide(tissue_slide)
    html = slide._repr_html_()
    page = read(html)
    assert "3 levels, 1 channel, 1 focal plane" in page.text
    assert "Container: DS-0001" in page.text
    assert "hematoxylin stain" in page.text
    assert "Field of view: 0.3 × 0.45 mm" in page.text
    for cell in ("600 × 900", "300 × 450", "150 × 225", "label", "overview", "Brightfield"):
        assert cell in page.cells
    np.testing.assert_array_equal(picture_in(html), slide.thumbnail(224))


def test_html_of_an_image_has_its_size_and_picture(tissue_slide):
    image = open_slide(tissue_slide).get_volume_images()[2]
    html = image._repr_html_()
    assert "150 × 225" in read(html).cells
    assert picture_in(html).shape == (224, 149, 3)


def test_html_of_a_matrix_reads_no_pixels(tissue_slide, monkeypatch):
    matrix = open_slide(tissue_slide).get_volume_images()[0].get_total_pixel_matrix()
    monkeypatch.setattr("dicomslide.readers.frame_reader.decode_frame", None)
    page = read(matrix._repr_html_())
    assert "600 × 900 × 3" in page.cells
    assert "3 × 4 tiles" in page.cells
    assert f"{600 * 900 * 3:,}" in page.cells


def test_html_shows_the_table_though_pixels_cannot_be_read(tmp_path):
    (path,) = write_slide(tmp_path, shape=(300, 300), downsamples=(1,), associated=False)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xd8\xff", len(data) // 2)
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    page = read(open_slide(path)._repr_html_())
    assert "no picture" in page.text
    assert "300 × 300" in page.cells


def test_html_reads_no_image_that_is_too_large_for_a_picture(tissue_slide, monkeypatch):
    monkeypatch.setattr("dicomslide.display.html.MOST_PIXELS", 1000)
    monkeypatch.setattr("dicomslide.readers.frame_reader.decode_frame", None)
    page = read(open_slide(tissue_slide)._repr_html_())
    assert "would have to be read" in page.text


def test_html_escapes_what_headers_say(tmp_path):
    write_slide(
        tmp_path,
        shape=(40, 40),
        downsamples=(1,),
        container_id="<script>&amp;",
        associated=False,
    )
    html = open_slide(tmp_path)._repr_html_()
    assert "<script>" not in html
    assert "Container: <script>&amp;" in read(html).text


def test_html_of_an_image_without_millimetres(shared_data):
    slide = open_slide(shared_data / "cmu-1-small-region")
    page = read(slide._repr_html_())
    assert "2,967 × 2,220" in page.cells
    label = slide.label_images[0]
    assert "-" in read(label._repr_html_()).cells


def test_plot_has_axes_in_millimetres_and_a_scale_bar(tissue_slide):
    slide = open_slide(tissue_slide)
    axes = some_axes()
    assert slide.plot(ax=axes, size=200) is axes
    x_min, y_min, x_max, y_max = slide.physical_bounds
    assert axes.get_xlim() == pytest.approx((x_min, x_max))
    assert axes.get_ylim() == pytest.approx((y_min, y_max))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [mm]", "y [mm]")
    assert axes.get_title() == "DS-0001 · 2.25 µm/px"
    (shown,) = axes.images
    np.testing.assert_array_equal(shown.get_array(), slide.thumbnail(200))
    (bar,) = axes.lines
    assert np.diff(bar.get_xdata())[0] == pytest.approx(0.05)
    assert [text.get_text() for text in axes.texts] == ["50 µm"]
    without = slide.plot(ax=some_axes(), size=50, scale_bar=False)
    assert not list(without.lines)


def test_a_region_is_plotted_by_xarray_in_millimetres_and_with_a_scale_bar(stack_slide):
    plt = pyplot()
    image = open_slide(stack_slide).to_dataset().image.isel(channel=0, z=0)
    _, axes = plt.subplots()
    plot = image.sel(x=slice(17.955, 18), y=slice(31.95, 31.98)).plot.imshow(ax=axes)
    try:
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [mm]", "y [mm]")
        assert plot.colorbar.ax.get_ylabel() == "pixel value"
        add_scale_bar(axes, color="white")
        assert axes.get_aspect() == 1  # millimetres of x and y are of one length
        (bar,) = axes.lines
        assert np.diff(bar.get_xdata())[0] == pytest.approx(0.01)
        assert [text.get_text() for text in axes.texts] == ["10 µm"]
    finally:
        plt.close("all")


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("mm", 1), ("µm", 1e-3), ("\N{GREEK SMALL LETTER MU}m", 1e-3), ("um", 1e-3),
     ("micrometer", 1e-3), ("microns", 1e-3), ("nm", 1e-6), ("cm", 10), ("m", 1000)],
)  # fmt: skip
@pytest.mark.parametrize("said", ["by xarray", "in brackets", "by the caller"])
def test_a_scale_bar_is_in_the_unit_of_its_axes(tissue_slide, unit, mm, said):
    plt = pyplot()
    image = open_slide(tissue_slide).to_dataset(2).image
    image = image.assign_coords(
        {dim: image[dim].variable.to_base_variable() / mm for dim in ("y", "x")}
    )
    for dim in ("y", "x"):
        image[dim].attrs = {"units": unit} if said == "by xarray" else {}
    _, axes = plt.subplots()
    try:
        image.plot.imshow(ax=axes)
        if said == "in brackets":
            axes.set_xlabel(f"position\n({unit}) ")
        add_scale_bar(axes, **(dict(unit=unit) if said == "by the caller" else {}))
        (bar,) = axes.lines
        assert np.diff(bar.get_xdata())[0] * mm == pytest.approx(0.05)
        assert [text.get_text() for text in axes.texts] == ["50 µm"]
    finally:
        plt.close("all")


def test_a_scale_bar_of_no_length_is_an_error():
    axes = some_axes()
    axes.set_xlabel("x [pixel]")
    with pytest.raises(ValueError, match="'pixel' is no length"):
        add_scale_bar(axes)
    axes.set_xlabel("x [mm]")
    axes.set_ylabel("y [µm]")
    with pytest.raises(ValueError, match="in every direction"):
        add_scale_bar(axes)
    with pytest.raises(ValueError, match="'inch' is no length"):
        add_scale_bar(axes, unit="inch")
    assert not list(axes.lines)


def test_plot_takes_the_current_axes(stack_slide):
    plt = pyplot()
    _, axes = plt.subplots()
    try:
        slide = open_slide(stack_slide)
        assert slide.plot(channel_index=1, focal_plane_index=2) is axes
        assert axes.images[0].get_cmap().name == "gray"
        with pytest.raises(ValueError, match="no channel 5"):
            slide.plot(channel_index=5)
        with pytest.raises(ValueError, match="0 pixels along its longer edge"):
            slide.plot(size=0)
    finally:
        plt.close("all")


def test_plot_without_matplotlib_says_what_to_install(tissue_slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'dicomslide\[plot\]'"):
        open_slide(tissue_slide).plot()


def test_plot_of_a_channel_takes_a_level_that_has_it(tmp_path, tissue_slide):
    mask = np.zeros((600, 900), np.uint8)
    mask[100:200, 300:400] = 1
    path = write_segmentation(
        tmp_path / "seg.dcm", tissue_slide / "level-0.dcm", mask, "BINARY", segments=[tumour()]
    )
    slide = open_slide([*tissue_slide.glob("*.dcm"), path])
    picture = slide.thumbnail(90, channel_index=1)
    assert picture.shape == (90, 60)
    np.testing.assert_array_equal(np.argwhere(picture > 128).min(axis=0), [30, 40])
    assert "segmentation" in read(slide._repr_html_()).cells
    assert repr(slide.derived_images[0]).startswith("<TiledImage segmentation 600 × 900")


def test_a_picture_of_the_background_segment_has_absent_tiles_too(tmp_path):
    (source,) = write_slide(tmp_path, shape=(128, 128), downsamples=(1,), tile_shape=(32, 32),
                            associated=False)  # fmt: skip
    labels = np.zeros((128, 128), np.uint8)
    labels[64:96] = 1  # other rows of tiles have no frames
    path = write_segmentation(tmp_path / "seg.dcm", source, labels, "LABELMAP")
    slide = open_slide([source, path])
    index = slide.get_channel_index("0", "SEGMENT")
    np.testing.assert_array_equal(
        slide.thumbnail(128, channel_index=index), np.rot90(255 * (labels == 0), -1)
    )


@pytest.mark.parametrize(
    "orientation", [(0, -1, 0, -1, 0, 0), (0, 1, 0, 1, 0, 0), (1, 0, 0, 0, -1, 0)]
)
def test_a_picture_reads_each_frame_once_and_shows_all_of_the_matrix(
    tmp_path, frames_read, orientation
):
    """Pixels of the picture end with no tile, and the last ones with no pixel of the matrix."""
    options = dict(shape=(1500, 1300), downsamples=(1,), tile_shape=(128, 128), associated=False)
    slide = open_slide(write_slide(tmp_path, orientation=orientation, **options))
    pixels = slide.to_dataset().image.values
    frames_read.clear()
    found = slide.thumbnail(115)
    assert sorted(frames_read) == sorted(set(frames_read))
    assert len(frames_read) == 12 * 11
    expected = Image.fromarray(pixels).resize(found.shape[1::-1], Image.Resampling.BICUBIC)
    # frames are decoded at an eighth of their size, then resampled: not at once
    assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 1.5


def test_a_picture_is_the_callers_own(tissue_slide, stack_slide):
    for folder in (tissue_slide, stack_slide):
        slide = open_slide(folder)
        before = slide.thumbnail(64)
        picture = slide.thumbnail(64)
        picture[:10] = 0
        assert picture.flags.writeable
        assert picture.flags.owndata
        np.testing.assert_array_equal(slide.thumbnail(64), before)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signal", [40, 1])
def test_a_fluorescence_picture_is_never_black(tmp_path, bits, signal):
    """Few, faint spots on nothing."""
    pixels = np.zeros((128, 128), np.uint8 if bits == 8 else np.uint16)
    pixels[60:66, 60:66] = signal
    write_grey(tmp_path / "grey.dcm", pixels, bits)
    slide = open_slide(tmp_path / "grey.dcm")
    picture = slide.thumbnail(128)
    assert picture.dtype == np.uint8
    assert (picture.min(), picture.max()) == (0, 255)
    np.testing.assert_array_equal(np.rot90(picture, 1) == 255, pixels == signal)


def write_grey(path, pixels, bits):
    """Write a grey image of these pixels, and no others."""
    (level,) = write_slide(
        path.parent / "made", shape=pixels.shape, downsamples=(1,), tile_shape=pixels.shape,
        samples=1, bits=bits, drawing="position", associated=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    dataset = pydicom.dcmread(level)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_grey_of_one_value_stays_as_it_is(value):
    pixels = np.full((4, 5, 1), value, np.uint8)
    np.testing.assert_array_equal(as_displayed(pixels), pixels[..., 0])


def test_grey_of_8_bits_is_stretched_as_that_of_16_and_colour_is_not():
    ramp = np.arange(30, 90, dtype=np.uint8).reshape(6, 10, 1)
    np.testing.assert_array_equal(as_displayed(ramp), as_displayed(ramp.astype(np.uint16)))
    assert as_displayed(ramp).max() == 255
    color = np.repeat(ramp, 3, axis=2)
    np.testing.assert_array_equal(as_displayed(color), color)


def test_plot_and_html_say_which_channel_and_plane_they_show(stack_slide, tissue_slide):
    slide = open_slide(stack_slide)
    title = slide.plot(ax=some_axes(), channel_index=1, focal_plane_index=2).get_title()
    assert title == "DS-0001 · Fluorescence FITC · focal plane 9 µm · 0.5 µm/px"
    html = slide._repr_html_()
    assert (
        "channel 0: optical path DAPI (Fluorescence DAPI), focal plane 0: 5 µm" in read(html).text
    )
    np.testing.assert_array_equal(picture_in(html), slide.thumbnail(224))
    image = slide.get_volume_images()[0]
    assert "channel 0: optical path DAPI (Fluorescence DAPI)" in read(image._repr_html_()).text
    assert "channel 0" not in read(open_slide(tissue_slide)._repr_html_()).text


def test_channels_are_printed_a_line_each(stack_slide):
    channels = open_slide(stack_slide).channels
    assert repr(channels).splitlines() == [
        "2 channels",
        "0  <optical path DAPI: Fluorescence DAPI, 405 nm>",
        "1  <optical path FITC: Fluorescence FITC, 465 nm>",
    ]
    assert isinstance(channels, tuple)
    assert channels == tuple(channels)
    first, second = channels
    assert (channels[0], channels[-1]) == (first, second)
    assert pickle.loads(pickle.dumps(channels)) == channels
    many = type(channels)([first] * 2000)
    assert len(repr(many).splitlines()) == 52
    assert repr(many).endswith("and 1,950 more")


def test_segments_and_annotations_are_mentioned_by_label(tmp_path, tissue_slide, shared_data):
    mask = np.zeros((600, 900), np.uint8)
    mask[100:200, 300:400] = 1
    path = write_segmentation(
        tmp_path / "seg.dcm", tissue_slide / "level-0.dcm", mask, "BINARY", segments=[tumour()]
    )
    label = str(tumour().segment_label)
    slide = open_slide([*tissue_slide.glob("*.dcm"), path])
    assert repr(slide).endswith(f"1 channel, 1 segment ('{label}'), 1 focal plane>")
    assert f"Segments: '{label}'" in read(slide._repr_html_()).text
    assert f"<segment 1: {label}>" in repr(slide.channels)
    folder = shared_data / "highdicom"
    annotated = open_slide([folder / "sm_annotations.dcm", folder / "sm_image.dcm"])
    assert annotated.annotation_labels == tuple(g.label for g in annotated.annotations())
    assert repr(annotated).endswith("1 focal plane, annotations 'nuclei'>")
    assert "Annotations: 'nuclei'" in read(annotated._repr_html_()).text


def test_large_annotations_are_mentioned_without_being_read(shared_data, monkeypatch):
    from dicomslide.annotation import bulk
    from dicomslide.backends.part10.file import FileSource

    monkeypatch.setattr(bulk, "SMALL", 100)
    monkeypatch.setattr(FileSource, "read_instance", None)
    folder = shared_data / "highdicom"
    slide = open_slide([folder / "sm_annotations.dcm", folder / "sm_image.dcm"])
    said = pydicom.dcmread(folder / "sm_annotations.dcm").get("SeriesDescription")
    said = said or str(folder / "sm_annotations.dcm")
    assert slide.annotation_labels == (said,)
    assert f"annotations '{said}'>" in repr(slide)


def test_repr_counts_in_words(tissue_slide):
    slide = open_slide(tissue_slide)
    assert repr(slide) == (
        "<Slide DS-0001: 3 levels of 600 × 900 pixels and less, 1 channel, 1 focal plane>"
    )
    one = dicomslide.open_slide(tissue_slide / "level-0.dcm")
    assert "1 level of 600 × 900 pixels, 1 channel" in repr(one)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1, 2, np.inf, -np.inf, np.nan], [0, 255, 255, 0, 0]),
        ([np.nan, np.nan], [0, 0]),
        ([np.inf], [255]),
        ([-1e308, 0, 1e308], [0, 127, 255]),
        ([5, 5], [0, 0]),
    ],
)
def test_maps_are_shown_whatever_values_they_hold(values, shown):
    pixels = np.array(values, np.float64).reshape(1, -1, 1)
    np.testing.assert_array_equal(as_displayed(pixels)[0], shown)


@pytest.mark.parametrize("shape", [(1000, 3), (3, 1000), (700, 1)])
def test_a_matrix_narrower_than_a_pixel_of_its_picture_is_averaged_along_its_length(
    tmp_path, shape
):
    write_slide(
        tmp_path, shape=shape, downsamples=(1,), tile_shape=(16, 16), associated=False,
        drawing="position", transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    picture = dicomslide.open_slide(tmp_path, correct_color=False).thumbnail(10)
    assert max(picture.shape[:2]) == 10
    assert min(picture.shape[:2]) == 1


@pytest.fixture(scope="module")
def many_frames(tmp_path_factory):
    """A slide of a base level only, of 48 x 52 frames, with an edge that no tile ends at."""
    folder = tmp_path_factory.mktemp("many")
    write_slide(
        folder, shape=(48 * 16 - 5, 52 * 16), downsamples=(1,), tile_shape=(16, 16),
        associated=False, transfer_syntax_uid="1.2.840.10008.1.2.1", orientation=(0, 1, 0, 1, 0, 0),
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("most_at_once", [0, 2**26])
@pytest.mark.parametrize("size", [10, 64, 100, 700])
def test_a_picture_read_in_bands_is_that_read_at_once_and_reads_no_frame_twice(
    many_frames, frames_read, monkeypatch, size, most_at_once
):
    monkeypatch.setattr(picture_module, "MOST_AT_ONCE", most_at_once)
    slide = open_slide(many_frames)
    frames_read.clear()
    states = []
    found = slide.thumbnail(size, progress=lambda *state: states.append(state))
    assert sorted(frames_read) == list(range(48 * 52))
    monkeypatch.setattr(picture_module, "FEW_FRAMES", 10**6)
    frames_read.clear()
    np.testing.assert_array_equal(found, slide.thumbnail(size))
    assert sorted(frames_read) == list(range(48 * 52))
    assert len(states) > 10
    assert states == sorted(states)
    assert states[0] == (0, 48 * 52)
    assert states[-1] == (48 * 52, 48 * 52)


def test_a_picture_that_takes_long_says_so_while_it_is_made(many_frames, monkeypatch, capsys):
    seconds = itertools.count(step=2.0)
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(picture_module, "time", clock)
    slide = open_slide(many_frames)
    with pytest.warns(dicomslide.PerformanceWarning, match="all 2,496 frames") as caught:
        slide.thumbnail(100)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(
        f"{many_frames / 'level-0.dcm'}: a picture takes about"
    )
    assert "progress=True" in str(caught[0].message)
    assert caught[0].filename == __file__
    seconds = itertools.count(step=0.01)
    slide.thumbnail(100)
    seconds = itertools.count(step=2.0)
    slide.thumbnail(100, progress=True)
    assert "2,496 of 2,496 frames in " in capsys.readouterr().err
