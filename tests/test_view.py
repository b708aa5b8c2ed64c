"""Views of slides: what a box of millimetres shows, and what a browser shows of it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.net import policy
from dicomslide.testing import write_slide
from dicomslide.view.scripts import PATIENCE
from tests.support import range_server
from tests.support.browser import FIGURE, SETTLED, Page, chromium, serving
from tests.support.looked_at import write_markers, write_tissue

pytestmark = pytest.mark.needs("panel", "playwright")


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    return dicomslide.open_slide(write_tissue(tmp_path_factory.mktemp("tissue")))


@pytest.fixture(scope="module")
def markers(tmp_path_factory):
    return dicomslide.open_slide(write_markers(tmp_path_factory.mktemp("markers")))


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(browser, tissue, markers):
    """A server of two slides."""
    with serving({"S-1": tissue, "F-1": markers}) as server:
        yield server


def shown_at(slide, x, y, spacing):
    """Pixels at columns x and rows y, of the array whose spacing it is."""
    tree = slide.to_datatree(levels="virtual")
    arrays = [node.to_dataset().image for node in tree.children.values()]
    (image,) = (each for each in arrays if each.slide.spacing[0] == pytest.approx(spacing))
    return image.sel(x=x, y=y, method="nearest")


def is_within(distances, spacing):
    """Whether a pixel is at a distance from an edge, and not the boundary between two."""
    return np.abs((distances / spacing + 0.5) % 1 - 0.5) > 1e-6


def wait_for(said, seconds=20):
    """Wait until something is true, and return it."""
    import time

    until = time.monotonic() + seconds
    while not said() and time.monotonic() < until:
        time.sleep(0.02)
    return said()


def assert_it_shows(page, slide, spacing):
    """Check the pixels of a page above the scale bar: those of the arrays at its millimetres."""
    pixels, x, y = page.pixels()
    pixels, y = pixels[: -120 * page.ratio], y[: -120 * page.ratio]
    x_min, y_min, x_max, y_max = slide.physical_bounds
    columns = (x > x_min) & (x < x_max) & is_within(x - x_min, spacing)
    rows = (y > y_min) & (y < y_max) & is_within(y_max - y, spacing)
    assert columns.sum() > 200 < rows.sum()
    expected = shown_at(slide, x[columns], y[rows], spacing).values
    np.testing.assert_array_equal(pixels[np.ix_(rows, columns)], expected)


@pytest.mark.parametrize(("ratio", "zooms"), [(1, (2, 4)), (2, (-3, 6))])
def test_a_page_shows_the_pixels_of_the_arrays_at_its_millimetres(
    browser, pages, tissue, ratio, zooms
):
    page = Page(browser, f"{pages.url}/slide?name=S-1", ratio=ratio)
    view = pages.views[-1]
    for drawn in view._scene.overlays:
        drawn.visible = False
    spacings = []
    for notches in zooms:
        page.wheel(17.6, 31.7, notches=notches)
        spacings.append(view._windows[0].spacing)
        assert_it_shows(page, tissue, spacings[-1])
    assert len(set(spacings)) == 2  # the level follows the zoom
    assert page.errors == []


def test_numbers_of_axes_never_resize_the_figure(browser, pages):
    page = Page(browser, f"{pages.url}/slide?name=S-1")
    before = page.figure()
    for _ in range(6):
        page.wheel(17.6123, 31.7123, notches=4)
        after = page.figure()
        assert [after[edge] for edge in ("width", "height")] == [
            before[edge] for edge in ("width", "height")
        ]
    assert after["x1"] - after["x0"] < 0.02  # numbers of four decimals


def test_a_box_that_is_drawn_is_read_back(browser, pages, tissue):
    page = Page(browser, f"{pages.url}/slide?name=S-1")
    view = pages.views[-1]
    assert view.selection is None
    page.tool("draw a box")
    page.drag((17.5, 31.6), (17.62, 31.75))
    assert wait_for(lambda: view.selection)
    pixel = 0.002  # of the page, at least, in mm
    x, y = view.selection.x, view.selection.y
    assert [x.start, x.stop, y.start, y.stop] == pytest.approx(
        [17.5, 17.62, 31.6, 31.75], abs=pixel
    )
    image = tissue.to_dataset().image
    xr.testing.assert_identical(view.region.x, image.sel(view.selection.slices).x)
    assert view.region.chunks is not None  # lazy
    assert eval(f"image{view.selection.code}").shape == view.region.shape
    (box,) = view.drawn.geometry
    assert box.bounds == pytest.approx((17.5, 31.6, 17.62, 31.75), abs=pixel)


def test_the_pointer_shows_position_and_values(browser, pages, tissue):
    page = Page(browser, f"{pages.url}/slide?name=S-1")
    page.page.mouse.move(*page.at(17.5, 31.7))
    window = pages.views[-1]._windows[0]
    assert wait_for(lambda: "rgb" in window.position.text)
    said = re.search(r"x ([\d.]+) mm, y ([\d.]+) mm · rgb (\d+) (\d+) (\d+)", window.position.text)
    x, y, *rgb = map(float, said.groups())
    assert (x, y) == pytest.approx((17.5, 31.7), abs=0.002)
    assert rgb == shown_at(tissue, x, y, window.spacing).values.tolist()


def test_channels_planes_and_overlays_are_switched_in_the_page(browser, pages, markers):
    page = Page(browser, f"{pages.url}/slide?name=F-1")
    scene = pages.views[-1]._scene
    window = pages.views[-1]._windows[0]

    def shown():
        (image,) = window.near.data["image"]
        return image.view(np.uint8).reshape(*image.shape, 4)[..., :3]

    assert wait_for(lambda: shown()[..., 1].any())
    page.page.locator("input[type=checkbox]").nth(1).click()
    assert wait_for(lambda: not scene.channels[1].visible)
    assert wait_for(lambda: not shown()[..., 1].any())  # nothing is green
    slider = page.page.locator(".noUi-handle").first
    slider.focus()
    page.page.keyboard.press("ArrowRight")
    assert wait_for(lambda: scene.plane == 2)
    page.settle()
    box, shape = window._request
    assert wait_for(lambda: (shown() == scene.render(box, shape).pixels[..., :3]).all())
    page = Page(browser, f"{pages.url}/slide?name=S-1")
    drawn = pages.views[-1]._scene.overlays
    assert [each.name for each in drawn] == ["segmentation", "nuclei"]
    page.page.locator("input[type=checkbox]").first.click()
    assert wait_for(lambda: not drawn[0].visible)
    assert page.errors == []


def test_several_slides_begin_with_a_contact_sheet(browser, pages):
    page = browser.new_page()
    page.goto(pages.url)
    page.get_by_role("link", name="F-1").first.click()
    page.wait_for_function(SETTLED, timeout=60_000)
    assert "name=F-1" in page.url
    page.get_by_role("link", name="all slides").click()
    page.get_by_role("link", name="S-1").first.wait_for()
    assert page.url == pages.url


def test_a_view_in_a_cell_fills_its_height(browser, tissue, tmp_path):
    from bokeh.resources import INLINE

    tissue.view(height=700).panel().save(tmp_path / "cell.html", resources=INLINE)
    page = browser.new_page()
    page.goto((tmp_path / "cell.html").as_uri())
    page.wait_for_function("() => Bokeh?.documents?.[0]?.get_model_by_name('slide')?.inner_height")
    assert 0.7 * 700 < page.evaluate(FIGURE)["height"] < 700


@pytest.mark.needs("nbformat")
def test_a_notebook_shows_a_view_without_the_internet(browser, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    write_slide(tmp_path, shape=(300, 400), downsamples=(1,))
    cell = f"import dicomslide; dicomslide.open_slide({str(tmp_path)!r}).view()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(notebook, timeout=120).execute()
    context = browser.new_context(offline=True)
    page = context.new_page()
    for output in notebook.cells[0].outputs:
        if script := output.data.get("application/javascript"):
            page.evaluate(f"() => {{{script}}}")
    page.wait_for_function("() => window.Bokeh?.Models?.get('Figure') && Bokeh.Panel")
    context.close()


def test_pages_are_found_by_the_token_only(pages):
    import requests

    root, token = pages.url.rsplit("/", 1)
    assert requests.get(pages.url, timeout=60).status_code == 200
    for path in ("", "/", "/view", "/slide?name=S-1", f"/{token[:-1]}"):
        reply = requests.get(root + path, timeout=60, allow_redirects=False)
        assert reply.status_code == 404
        assert token not in reply.text
    assert root.startswith("http://127.0.0.1:")


@pytest.mark.needs("highdicom", "geopandas")
def test_what_is_drawn_is_written_as_annotations(browser, pages, tissue, tmp_path):
    page = Page(browser, f"{pages.url}/slide?name=S-1")
    view = pages.views[-1]
    page.tool("draw a box")
    page.drag((17.5, 31.6), (17.62, 31.75))
    assert wait_for(lambda: view.selection)
    dicomslide.write_annotations(view.drawn, tissue, tmp_path, label="region")
    files = list(tmp_path.iterdir())
    slide = dicomslide.open_slide([*(level.image._source.path for level in tissue.levels), *files])
    (group,) = (each for each in slide.annotations() if each.label == "region")
    np.testing.assert_allclose(group.bounds[0], view.drawn.total_bounds, atol=1e-6)


@pytest.fixture
def command(tissue):
    """The process of ``dicomslide view``, and the URL that it prints."""
    folder = tissue.levels[0].image._source.path
    words = [sys.executable, "-m", "dicomslide", "view", "--no-browser", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_command_prints_a_url_and_ends_with_ctrl_c(command):
    process, url = command
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}", url)
    import requests

    assert requests.get(url, timeout=60).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_a_page_says_that_its_program_has_ended(browser, command):
    process, url = command
    page = Page(browser, url)
    lost = page.page.get_by_text("start the program again")
    assert lost.count() == 0
    page.page.clock.install()
    process.send_signal(signal.SIGSTOP)
    page.page.mouse.move(400, 300)
    page.page.mouse.wheel(0, -300)  # the program ends while a picture is waited for
    page.page.wait_for_function("() => Bokeh.documents[0].get_model_by_name('asked')._busy")
    process.kill()
    lost.wait_for()
    page.page.clock.fast_forward(2 * PATIENCE)
    assert lost.count() == 1


@pytest.mark.needs("aiohttp")
def test_a_view_recovers_when_the_server_of_the_slide_is_back(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "POLICY", policy.Policy(attempts=2))
    monkeypatch.setattr("dicomslide.view.window.RETRY", 200)
    write_slide(tmp_path, shape=(2400, 3200), downsamples=(1, 2), associated=False)
    with contextlib.ExitStack() as stack:
        with range_server.serving(tmp_path) as files:
            slide = dicomslide.open_slide([f"{files.url}/level-{n}.dcm" for n in (0, 1)])
            viewer = stack.enter_context(serving({"S-1": slide}))
            page = Page(browser, viewer.url)
        dicomslide.clear_all()
        page.wheel(17.6, 31.7, notches=8)
        page.page.get_by_text("trying again").wait_for()
        (window,) = viewer.views[0]._windows
        with range_server.serving(tmp_path, files.server_address[1]):
            assert wait_for(lambda: window.message.text == "")
            page.settle()
            assert_it_shows(page, slide, window.spacing)
