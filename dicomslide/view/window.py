"""A view in a notebook or a browser: the figure, and what the browser asks of it."""

from __future__ import annotations

import html
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.events import ConnectionLost, MouseMove, SelectionGeometry, Tap
from bokeh.models import (
    BoxSelectTool,
    ColumnDataSource,
    CustomJS,
    Div,
    LassoSelectTool,
    Metric,
    PolySelectTool,
    Range1d,
    ScaleBar,
    WheelZoomTool,
)
from bokeh.plotting import figure

from dicomslide.errors import DicomSlideError
from dicomslide.view import scripts

if TYPE_CHECKING:
    from collections.abc import Callable

    from bokeh.document import Document
    from numpy.typing import NDArray

    from dicomslide.view.scene import Picture, Scene
    from dicomslide.view.shapes import Box

__all__ = ["Window"]

RETRY = 3000
"""Milliseconds after which a view is asked for again, when a server didn't answer."""
MOST_PIXELS = 1 << 23
"""Upper bound on the pixels of a picture, whatever the browser's window is."""
FINEST = 2.0
"""Upper bound on the pixels of a picture along an edge, per pixel of CSS."""
OVERVIEW = 220
"""Edge of the overview in pixels."""
STAND_IN = 2
"""Pixels of a view, along an edge, per pixel of a coarser picture that stands in for it."""
ALARM = {"color": "#B00020"}
AXIS = 96
"""Pixels for the axis of y with its numbers, however long: or each zoom would resize the figure."""
BEYOND = 4.0
"""Times the slide's size that a view may have."""


class Window:
    """A figure of a scene.

    Parameters
    ----------
    scene : Scene
        What is shown.
    selected : callable
        Called with the geometry that was drawn: ``{"type": "rect", ...}`` or ``"poly"``, in mm.
    height : int
        Height in pixels.
    background : bool
        Whether views are rendered in another thread, as on a server, where several windows have
        one thread of events; else while the browser waits, as in a notebook.
    push : callable
        Called after changes that don't follow from an event, in a notebook.

    """

    def __init__(
        self,
        scene: Scene,
        selected: Callable[[dict[str, Any]], None],
        *,
        height: int = 600,
        background: bool = False,
        push: Callable[[], None] | None = None,
    ) -> None:
        self.scene = scene
        self._selected = selected
        self._push = push
        self._request: tuple[Box, tuple[int, int]] | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "dicomslide-view") if background else None
        self._pending = self._whole = False
        self._count = 0
        self._has_far = False
        self.box: Box = scene.bounds
        self.spacing = scene.image.levels[0].spacing
        self._sources()
        self.figure = self._figure(height)
        self.overview = self._overview()
        self.position = Div(text="", styles={"font-family": "monospace", "min-height": "1.3em"})
        self.message = Div(text="", styles=ALARM | {"min-height": "1.3em"})
        self.lost = Div(text="", styles=ALARM)
        self._wire()

    # -- models --

    def _sources(self) -> None:
        empty: dict[str, list[Any]] = dict(image=[], x=[], y=[], dw=[], dh=[])
        self.far, self.near = ColumnDataSource(empty), ColumnDataSource(empty, name="near")
        self.lines = ColumnDataSource(dict(xs=[], ys=[], color=[]))
        self.points = ColumnDataSource(dict(x=[], y=[], color=[]))
        self.drawn = ColumnDataSource(dict(xs=[], ys=[]))
        self.box_source = ColumnDataSource(dict(x=[], y=[], width=[], height=[]))
        self.asked = ColumnDataSource({}, name="asked")
        self.answered = ColumnDataSource({"retry": [0], "n": [0]})
        self.pointed = ColumnDataSource({}, name="pointed")

    def _figure(self, height: int) -> Any:
        x_min, y_min, x_max, y_max = self.scene.bounds
        longest = max(x_max - x_min, y_max - y_min)
        middle, half = (x_min + x_max) / 2, 0.52 * (x_max - x_min)
        finest = self.scene.image.levels[0].spacing
        limits = dict(min_interval=8 * finest, max_interval=BEYOND * longest)
        self.x = Range1d(middle - half, middle + half, **limits)
        height_mm = y_max - y_min
        self.y = Range1d(y_min - 0.02 * height_mm, y_max + 0.02 * height_mm, **limits)
        wheel = WheelZoomTool(maintain_focus=False)
        found = figure(
            x_range=self.x, y_range=self.y, height=height, sizing_mode="stretch_both",
            min_width=300, min_height=300, min_border_left=AXIS, name="slide",
            tools=["pan", wheel, "box_zoom", "reset", "save"], active_scroll=wheel,
            match_aspect=True, x_axis_label="x [mm]", y_axis_label="y [mm]",
        )  # fmt: skip
        found.background_fill_color = "#F4F4F4" if self.scene.is_color else "#000000"
        found.grid.visible = False
        found.toolbar.logo = None
        for source in (self.far, self.near):
            found.image_rgba("image", "x", "y", "dw", "dh", source=source)
        found.multi_line("xs", "ys", line_color="color", line_width=1.5, source=self.lines)
        found.scatter("x", "y", size=7, fill_color="color", line_color=None,
                               source=self.points)  # fmt: skip
        found.multi_line("xs", "ys", line_color="#00C8FF", line_width=2, source=self.drawn)
        found.add_tools(
            BoxSelectTool(renderers=[], description="draw a box"),
            LassoSelectTool(renderers=[], description="draw a shape", continuous=False),
            PolySelectTool(renderers=[], description="draw a polygon (double click ends)"),
        )
        found.add_layout(
            ScaleBar(
                range=self.x, unit="mm", dimensional=Metric(base_unit="m"), location="bottom_left",
                background_fill_alpha=0.75, bar_length=0.2,
            )
        )  # fmt: skip
        return found

    def _overview(self) -> Any:
        """Return a small figure of the glass, or of the slide, with the box of the view."""
        pixels, box = self._overview_picture()
        width, height = box[2] - box[0], box[3] - box[1]
        scale = OVERVIEW / max(width, height)
        found = figure(
            x_range=Range1d(box[0], box[2]), y_range=Range1d(box[1], box[3]), toolbar_location=None,
            width=max(40, round(width * scale)), height=max(40, round(height * scale)), tools="",
            min_border=0, name="overview",
        )  # fmt: skip
        found.axis.visible = found.grid.visible = False
        found.image_rgba([packed(pixels)], box[0], box[1], width, height)
        found.rect("x", "y", "width", "height", fill_alpha=0.08, fill_color="#FF0000",
                   line_color="#FF0000", line_width=2, source=self.box_source)  # fmt: skip
        found.js_on_event(Tap, CustomJS(args=dict(x=self.x, y=self.y), code=scripts.JUMP))
        return found

    def _overview_picture(self) -> tuple[NDArray[np.uint8], Box]:
        x_min, y_min, x_max, y_max = self.scene.bounds
        node = self.scene.tree.children.get("overview")
        image = None if node is None else node.to_dataset()["image"]
        if image is not None and {"y", "x", "sample"} <= {*image.dims}:
            box = image.slide.extent
            if box[0] <= x_min and box[1] <= y_min and box[2] >= x_max and box[3] >= y_max:
                step = max(1, max(image.shape[:2]) // (2 * OVERVIEW))
                try:
                    values = image[::-step, ::step].values
                except (DicomSlideError, OSError):
                    pass  # then the slide itself
                else:
                    pixels = np.full((*values.shape[:2], 4), 255, np.uint8)
                    pixels[..., :3] = values
                    return pixels, box
        try:
            return self.scene.whole(OVERVIEW).pixels, self.scene.bounds
        except (DicomSlideError, OSError):
            return np.zeros((1, 1, 4), np.uint8), self.scene.bounds

    def _wire(self) -> None:
        args = dict(
            figure=self.figure, x=self.x, y=self.y, asked=self.asked, box=self.box_source,
            lost=self.lost,
            answered=self.answered,  # which is sent to the browser only if something there has it
        )  # fmt: skip
        ask = CustomJS(args=args, code=scripts.ASK)
        for range_ in (self.x, self.y):
            for name in ("start", "end"):
                range_.js_on_change(name, ask)
        for name in ("inner_width", "inner_height"):
            self.figure.js_on_change(name, ask)
        for source in (self.near, self.answered):
            args = dict(asked=self.asked, answered=source, lost=self.lost)
            source.js_on_change("data", CustomJS(args=args, code=scripts.ANSWERED))
        self.asked.on_change("data", self._on_asked)
        pointed = dict(pointed=self.pointed)
        self.figure.js_on_event(MouseMove, CustomJS(args=pointed, code=scripts.POINT))
        self.position.js_on_change("text", CustomJS(args=pointed, code=scripts.POINTED))
        self.pointed.on_change("data", self._on_pointed)
        self.figure.on_event(SelectionGeometry, self._on_selected)

    # -- events --

    def _on_asked(self, _name: str, _old: Any, new: dict[str, Any]) -> None:
        first = {name: value[0] for name, value in new.items()}
        self.box = (first["x0"], first["y0"], first["x1"], first["y1"])
        self._request = pixels_in_sight(self.box, first["w"], first["h"], first["ratio"])
        self.refresh()

    def refresh(self, *, whole: bool = False) -> None:
        """Draw the last view again, after settings changed; `whole`: also the one beneath it."""
        if self._request is None:
            return
        if self._pool is None:
            self._draw(whole)
            return
        with self._lock:
            self._whole = self._whole or whole
            if self._pending:
                return  # the thread takes the last request when it comes to it
            self._pending = True
        self._pool.submit(self._work)

    def _work(self) -> None:
        with self._lock:
            self._pending = False
            whole, self._whole = self._whole, False
        self._draw(whole)

    def _draw(self, whole: bool) -> None:
        """Render the last request: first of what was read before, if anything has to be read."""
        assert self._request is not None
        box, shape = self._request
        retry, message = 0, ""
        picture: Picture | None = None
        try:
            if self.scene.needs_reading(box, shape):
                # of a level whose pixels are larger: few of them, which are there at once
                fewer = shape[0] // STAND_IN + 1, shape[1] // STAND_IN + 1
                coarse = self.scene.render(box, fewer, cached=True)
                if coarse is not None:
                    self._show(coarse, message=None)
            picture = self.scene.render(box, shape)
            assert picture is not None  # as it may be read
            message = "; ".join(picture.notes)
            if not picture.is_lasting:
                retry, message = RETRY, f"{message}: trying again"
        except (DicomSlideError, OSError, MemoryError) as error:
            retry = RETRY if isinstance(error, OSError) else 0
            again = ": trying again" if retry else ""
            message = f"{type(error).__name__}: {error}{again}"
        except Exception as error:  # the browser waits for an answer
            message = f"{type(error).__name__}: {error}"
        self._show(picture, message, retry)
        if (whole or not self._has_far) and not retry:
            try:
                beneath = self.scene.whole()
            except (DicomSlideError, OSError, MemoryError):
                return  # the view itself says why
            self._has_far = True
            self._later(lambda: self.far.update(data=image_of(beneath)))

    def _show(
        self,
        picture: Picture | None,
        message: str | None,
        retry: int = 0,
    ) -> None:
        def change() -> None:
            self._count += 1
            answer = {"retry": [retry], "n": [0 if message is None else self._count]}
            if message is not None:
                self.message.text = html.escape(message)
            if picture is None:
                self.answered.data = answer
                return
            self.spacing = picture.spacing
            for source, new in (
                (self.lines, lines_of(picture)),
                (self.points, points_of(picture)),
            ):
                if len(new["color"]) or len(source.data["color"]):
                    source.data = new
            # in one message: the browser asks for the next view before it draws this one
            self.near.data = image_of(picture) | answer

        self._later(change)

    def _later(self, change: Callable[[], None]) -> None:
        """Change models where that is allowed: from another thread, by the document's loop."""
        document = self.figure.document
        if self._pool is not None and document is not None:
            document.add_next_tick_callback(change)
            return
        change()
        if self._push is not None:
            self._push()

    def _on_pointed(self, _name: str, _old: Any, new: dict[str, Any]) -> None:
        x, y = float(new["x"][0]), float(new["y"][0])
        text = self.scene.describe(x, y, self.spacing)
        self._count += 1  # a text that is equal would be no change, and no answer
        self.position.text = f'<span data-n="{self._count}">{html.escape(text)}</span>'

    def _on_selected(self, event: SelectionGeometry) -> None:
        if event.final:
            self._selected(dict(event.geometry))

    def show_drawn(self, rings: list[NDArray[np.float64]]) -> None:
        """Show what was drawn: closed lines, each shape (points, 2)."""

        def change() -> None:
            self.drawn.data = dict(
                xs=[ring[:, 0] for ring in rings], ys=[ring[:, 1] for ring in rings]
            )

        self._later(change)

    def watch(self, document: Document) -> None:
        """Let a page say when it has lost its server."""
        lost = CustomJS(args=dict(lost=self.lost), code=scripts.LOST)
        document.js_on_event(ConnectionLost, lost)

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def pixels_in_sight(box: Box, width: int, height: int, ratio: float) -> tuple[Box, tuple[int, int]]:
    """Return the box of the pixels of a screen that show a view, and their rows and columns.

    Bokeh draws a position of a figure at the centre of a pixel of CSS (its canvas is moved by half
    of one), as a pointer tells it: positions at both ends of a range lie in pixels, of which a
    figure has one more than its width says.

    Parameters
    ----------
    box : tuple of float
        (x_min, y_min, x_max, y_max) of the ranges in mm.
    width, height : int
        Size of the figure in pixels of CSS.
    ratio : float
        Pixels of the screen per pixel of CSS.

    """
    x_min, y_min, x_max, y_max = box
    across, down = (x_max - x_min) / width / 2, (y_max - y_min) / height / 2
    ratio = min(ratio, FINEST, (MOST_PIXELS / ((width + 1) * (height + 1))) ** 0.5)
    shape = max(1, round((height + 1) * ratio)), max(1, round((width + 1) * ratio))
    return (x_min - across, y_min - down, x_max + across, y_max + down), shape


def packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return colours, shape (rows, columns, 4), as Bokeh takes them: an integer each."""
    found: NDArray[np.uint32] = np.ascontiguousarray(pixels).view(np.uint32)[..., 0]
    return found


def image_of(picture: Picture) -> dict[str, Any]:
    """Return the columns of an image."""
    x_min, y_min, x_max, y_max = picture.box
    return dict(image=[packed(picture.pixels)], x=[x_min], y=[y_min], dw=[x_max - x_min],
                dh=[y_max - y_min])  # fmt: skip


def lines_of(picture: Picture) -> dict[str, Any]:
    """Return the columns of outlines: a row per overlay."""
    return dict(
        xs=[each.lines[:, 0] for each in picture.outlines],
        ys=[each.lines[:, 1] for each in picture.outlines],
        color=[each.color for each in picture.outlines],
    )


def points_of(picture: Picture) -> dict[str, Any]:
    """Return the columns of points."""
    points = np.concatenate([np.zeros((0, 2)), *(each.points for each in picture.outlines)])
    colors = [each.color for each in picture.outlines for _ in each.points]
    return dict(x=points[:, 0], y=points[:, 1], color=colors)
