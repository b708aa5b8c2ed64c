"""Views in a browser: from a turn of the wheel to the picture, requests, memory.

``dicomslide view`` runs in a process of its own, and headless Chromium shows its page. The wheel
goes from the whole slide to its pixels and back, at random places; the next turn waits for the
picture of the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.polygons import MANY, polygons
from benchmarks.slides import SLIDES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = (1000, 800)
"""Width and height of the figure in pixels."""
LARGE = 100_000
"""Rows and columns of the slide whose memory is measured."""
PLACES, NOTCHES = 6, 16
"""Places of a slide, and turns of the wheel into each and out of it."""
PROBE = """() => {
  // from a turn of the wheel to the frame of the screen after the one that draws the picture
  const near = Bokeh.documents[0].get_model_by_name("near")
  const asked = Bokeh.documents[0].get_model_by_name("asked")
  window.took = []
  let turned = null
  addEventListener("wheel", () => { turned = performance.now() }, {capture: true, passive: true})
  near.properties.data.change.connect(() => {
    if (turned === null || asked._again || !near.data.n[0]) return
    const since = turned
    turned = null
    requestAnimationFrame(() => requestAnimationFrame(() => {
      window.took.push(performance.now() - since)
    }))
  })
}"""


@contextlib.contextmanager
def viewer(*slides: str) -> Iterator[tuple[str, int]]:
    """Run ``dicomslide view``; yield its URL and the id of its process."""
    command = [sys.executable, "-m", "dicomslide", "view", "--no-browser", *slides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stdout.close()


def shown(browser: Any, url: str) -> Any:
    """Return a page whose figure has `SIZE`."""
    from tests.support.browser import Page

    page = Page(browser, url, (SIZE[0] + 400, SIZE[1] + 150))
    figure, window = page.figure(), page.page.viewport_size
    page.page.set_viewport_size(
        {
            "width": round(window["width"] + SIZE[0] - figure["width"]),
            "height": round(window["height"] + SIZE[1] - figure["height"]),
        }
    )
    page.page.wait_for_timeout(500)
    page.settle()
    assert tuple(round(page.figure()[edge]) for edge in ("width", "height")) == SIZE
    page.page.evaluate(PROBE)
    return page


def turned(page: Any, after: Callable[[], None] = lambda: None) -> list[float]:
    """Turn the wheel, and return the milliseconds until each picture."""
    random = np.random.default_rng(0)
    figure = page.figure()
    for _ in range(PLACES):
        at = [
            figure[start] + random.uniform(0.25, 0.75) * figure[edge]
            for start, edge in (("left", "width"), ("top", "height"))
        ]
        page.page.mouse.move(*at)
        for delta in [-100] * NOTCHES + [100] * NOTCHES:
            before = page.page.evaluate("window.took.length")
            page.page.mouse.wheel(0, delta)
            page.page.wait_for_function(f"window.took.length > {before}", timeout=60_000)
            after()
    took: list[float] = page.page.evaluate("window.took")
    return took


def said(what: str, took: list[float], *more: str) -> None:
    """Print the median of times, and the time within which 95 % of pictures come."""
    times = f"median {np.median(took):.0f} ms, 95 % {np.percentile(took, 95):.0f} ms"
    print(", ".join([f"{what}: {times}", *more, f"{len(took)} views"]), flush=True)


def local(browser: Any, folder: Path) -> None:
    """Turn the wheel over a slide of this machine: median ≤ 100 ms, 95 % ≤ 250 ms."""
    slide = SLIDES["jpeg-256"].write(folder)
    with viewer(str(slide)) as (url, _):
        said("local slide", turned(shown(browser, url)))


def annotated(browser: Any, folder: Path) -> None:
    """Turn the wheel over a slide with a million annotations: 95 % ≤ 300 ms."""
    import dicomslide

    path = SLIDES["jpeg-256"].write(folder)
    slide = dicomslide.open_slide(path)
    x_min, y_min, x_max, y_max = slide.physical_bounds
    nuclei = polygons(MANY, 0)
    for axis, low, high in ((0, x_min, x_max), (1, y_min, y_max)):  # from elsewhere
        middles = nuclei[..., axis].mean(axis=1, keepdims=True)
        nuclei[..., axis] += np.random.default_rng(axis).uniform(low, high, (MANY, 1)) - middles
    file = path / "annotations.dcm"
    dicomslide.write_annotations(nuclei, slide, file, label="nucleus")
    try:
        with viewer(str(path)) as (url, _):
            said(f"{MANY:,} annotations", turned(shown(browser, url)))
    finally:
        file.unlink()


def large(browser: Any, folder: Path) -> None:
    """Turn the wheel over a large slide, and measure the viewer's memory: ≤ 400 MiB."""
    slide = dataclasses.replace(SLIDES["jpeg-256"], edge=LARGE).write(folder)
    with viewer(str(slide)) as (url, process):
        took = turned(shown(browser, url))
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        said(f"slide of {LARGE:,}²", took, f"peak {peak:.0f} MiB")


def served(browser: Any, folder: Path) -> None:
    """Count the requests of each view to servers of DICOMweb (≤ 3) and of files.

    Files take a request for each run of neighbouring frames, which are sent together.
    """
    from tests.support.faulty_server import FaultyServer, url_of
    from tests.support.range_server import serving

    slide = SLIDES["jpeg-256"].write(folder)
    with serving(slide) as server:
        urls = [f"{server.url}/{each.name}" for each in sorted(slide.iterdir())]
        count(browser, urls, server.requests, "files over HTTP")
    with FaultyServer(slide) as server:
        count(browser, [url_of(server)], server.requests, "DICOMweb")


def count(browser: Any, urls: list[str], requests: list[Any], what: str) -> None:
    """Turn the wheel over a slide on a server, whose requests are counted."""
    counts = [0]
    with viewer(*urls) as (url, _):
        page = shown(browser, url)
        start = len(requests)
        took = turned(page, lambda: counts.append(len(requests) - start))
    each = np.diff(counts)
    said(
        what,
        took,
        f"{each[each > 0].mean():.1f} requests of a view that reads, at most {each.max()}",
    )


def main() -> None:
    """Measure, one after the other."""
    from tests.support.browser import chromium

    names = sys.argv[1:] or ["local", "served", "annotated", "large"]
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for name in names:
            {"local": local, "served": served, "annotated": annotated, "large": large}[name](
                browser, Path(folder)
            )


if __name__ == "__main__":
    main()
