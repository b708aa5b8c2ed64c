"""Debian's Chromium, without a window, and views that a server of this process shows in it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import threading

import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

SETTLED = """() => {
  const asked = Bokeh?.documents?.[0]?.get_model_by_name("asked")
  return asked && asked._count && !asked._busy && !asked._again && !asked._planned
}"""
FIGURE = """() => {
  const model = Bokeh.documents[0].get_model_by_name("slide")
  const view = Bokeh.index.find_one(model)
  const at = view.canvas_view.el.getBoundingClientRect(), box = view.frame.bbox
  return {left: at.left + box.left, top: at.top + box.top, width: box.width, height: box.height,
          x0: model.x_range.start, x1: model.x_range.end,
          y0: model.y_range.start, y1: model.y_range.end}
}"""


@contextlib.contextmanager
def chromium():
    """Yield Chromium; skip the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def serving(slides, **options):
    """Yield a server of slides that runs in another thread."""
    from dicomslide.view.server import SlideServer

    started = threading.Event()
    made = []

    def run():
        asyncio.set_event_loop(asyncio.new_event_loop())
        made.append(SlideServer(slides, **options))
        made[0].started(started.set)
        made[0].run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield made[0]
    finally:
        made[0].shut_down()
        thread.join(30)


class Page:
    """A page that shows a view."""

    def __init__(self, browser, url, size=(1280, 760), ratio=1):
        viewport = dict(width=size[0], height=size[1])
        self.page = browser.new_page(viewport=viewport, device_scale_factor=ratio)
        self.ratio = ratio
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.settle()

    def settle(self):
        """Wait until the picture of the last view is drawn."""
        self.page.wait_for_function(SETTLED, timeout=60_000)
        self.page.evaluate("""() => new Promise(done => requestAnimationFrame(() =>
            requestAnimationFrame(() => requestAnimationFrame(done))))""")

    def figure(self):
        """Position of the figure on the page in pixels, and its ranges in mm."""
        return self.page.evaluate(FIGURE)

    def pixels(self):
        """Pixels within the figure's edge and ticks, and x of columns and y of rows in mm.

        A pointer at a pixel, as Bokeh's axes, tells the position of its centre.
        """
        from PIL import Image

        at = self.figure()
        left, top = round(at["left"]), round(at["top"])
        assert (left, top) == (at["left"], at["top"])
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        # the centres of pixels of the screen, as distances from those of the figure's first ones
        columns, rows = (
            (np.arange(3 * self.ratio, (int(at[edge]) - 2) * self.ratio) + 0.5) / self.ratio - 0.5
            for edge in ("width", "height")
        )
        first = 3 * self.ratio
        pixels = np.asarray(shot)[top * self.ratio + first :, left * self.ratio + first :][
            : len(rows), : len(columns)
        ]
        x = at["x0"] + columns / at["width"] * (at["x1"] - at["x0"])
        y = at["y1"] - rows / at["height"] * (at["y1"] - at["y0"])
        return pixels, x, y

    def at(self, x, y):
        """Position on the page of a point in mm."""
        at = self.figure()
        return (
            at["left"] + (x - at["x0"]) / (at["x1"] - at["x0"]) * at["width"],
            at["top"] + (at["y1"] - y) / (at["y1"] - at["y0"]) * at["height"],
        )

    def wheel(self, x, y, *, notches=1):
        """Turn the wheel, towards larger pixels, over a point in mm."""
        self.page.mouse.move(*self.at(x, y))
        for _ in range(abs(notches)):
            self.page.mouse.wheel(0, -100 if notches > 0 else 100)
            self.settle()

    def tool(self, description):
        """Choose a tool of the figure."""
        self.page.get_by_title(description).first.click()

    def drag(self, start, end):
        """Drag from a point in mm to another one."""
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move((x0 + x1) / 2, (y0 + y1) / 2)
        self.page.mouse.move(x1, y1)
        self.page.mouse.up()
        self.settle()
