"""`SlideView`: a slide to look at in a notebook, with what lies on it, and back into code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn

from dicomslide.errors import DicomSlideError
from dicomslide.view import scripts
from dicomslide.view.controls import controls_of
from dicomslide.view.scene import Scene
from dicomslide.view.selection import Selection, frame_of, selection_of
from dicomslide.view.window import Window

if TYPE_CHECKING:
    import geopandas
    import xarray as xr

    from dicomslide.slide.slide import Slide

__all__ = ["SlideView", "shown"]


def shown(slide: Slide, overlay: Any, **options: Any) -> SlideView:
    """Return a view, and load what a notebook needs to show it, if this is one."""
    view = SlideView(slide, overlay, **options)
    if in_notebook() and not pn.extension._loaded:
        pn.extension(inline=True)  # scripts are in the notebook: not every browser reaches a CDN
    return view


def in_notebook() -> bool:
    """Whether this process is a kernel of Jupyter, whose cells can show what needs JavaScript."""
    import sys

    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


LABEL_SIZE = 220
"""Edge of the picture of the label in pixels."""
SIDE_WIDTH = 310
LEAST_WIDTH, LEAST_HEIGHT = 420, 400
"""Least size in pixels of a figure beside its controls, and of one that fills a page."""


class SlideView:
    """A slide that is zoomed and panned in a notebook or browser.

    See :meth:`dicomslide.Slide.view`. A notebook shows it where it is the value of a cell.

    Parameters
    ----------
    slide : Slide
        The slide.
    overlay : sequence or mapping, optional
        What is drawn over the image: see :meth:`dicomslide.Slide.view`.
    variable : str, default: "image"
        Variable of the tree that is the image.
    height : int or None, default: 600
        Height in pixels; None for that of the page.

    """

    def __init__(
        self,
        slide: Slide,
        overlay: Any = None,
        *,
        variable: str = "image",
        height: int | None = 600,
    ) -> None:
        self.slide = slide
        self._variable, self._height = variable, height
        self._scene = Scene(slide, overlay, variable)
        self._selections: list[Selection] = []
        self._windows: list[Window] = []
        self._codes: list[Any] = []

    def __repr__(self) -> str:
        count = len(self._selections)
        drawn = f", {count} drawn" if count else ""
        return f"<SlideView of {self.slide!r}{drawn}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return self.panel()._repr_mimebundle_(include, exclude)

    # -- back into code --

    @property
    def selection(self) -> Selection | None:
        """The box or polygon that was drawn last; None if nothing was.

        ``selection.slices`` are its x and y in mm, ``selection.to_geopandas()`` its polygon.
        """
        return self._selections[-1] if self._selections else None

    @property
    def drawn(self) -> geopandas.GeoDataFrame:
        """All that was drawn, as polygons in mm."""
        return frame_of(self._selections)

    @property
    def region(self) -> xr.DataArray:
        """The lazy array of the base level in the box of the last selection, else of the view.

        Raises
        ------
        KeyError
            When no pixel lies in the box.

        """
        selection = self.selection
        if selection is None:
            x_min, y_min, x_max, y_max = self.box
            x, y = (x_min, x_max), (y_min, y_max)
        else:
            x, y = (selection.x.start, selection.x.stop), (selection.y.start, selection.y.stop)
        return self.slide.region(x, y, level=0, variable=self._variable)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) of the view in mm: of the last one that was shown."""
        return self._windows[-1].box if self._windows else self._scene.bounds

    def clear(self) -> None:
        """Forget what was drawn."""
        self._selections.clear()
        self._show_drawn()

    # -- windows --

    def panel(self, *, background: bool = False) -> Any:
        """Return a new window as an object of Panel, to be placed beside others.

        Parameters
        ----------
        background : bool, default: False
            Whether pictures are made in another thread, as on a server.

        Returns
        -------
        panel.FlexBox
            Figure and controls. Windows of one view share what is drawn and how it is shown.

        """
        pane: Any = None

        def push() -> None:
            if pane is not None:
                pn.io.push_notebook(pane)

        is_page = self._height is None
        height = LEAST_HEIGHT if self._height is None else self._height
        window = Window(self._scene, self._select, height=height, background=background, push=push)
        self._windows.append(window)
        code = pn.widgets.TextInput(label="selected", value=self._code(), disabled=True, width=260)
        self._codes.append(code)
        copy = pn.widgets.Button(label="copy .sel(...)", width=125)
        copy.js_on_click(args={"code": code}, code=scripts.COPY)
        clear = pn.widgets.Button(label="clear", width=125)
        clear.on_click(lambda _: self.clear())
        side = pn.Column(
            f"**{self.slide.container_identifier or 'slide'}**",
            window.overview,
            *self._label(),
            *controls_of(self._scene, self._changed),
            code,
            pn.Row(copy, clear),
            width=SIDE_WIDTH,
            **dict(sizing_mode="stretch_height", min_height=height) if is_page
            else dict(height=height),
            scroll="y-auto",
            styles={"flex": f"0 1 {SIDE_WIDTH}px"},
        )  # fmt: skip
        figure = pn.Column(
            pn.pane.Bokeh(window.figure, sizing_mode="stretch_both"),
            window.position,
            window.message,
            window.lost,
            **dict(sizing_mode="stretch_both", min_height=height) if is_page
            else dict(sizing_mode="stretch_width", height=height),
            styles={"flex": "1 1 0", "min-width": f"min(100%, {LEAST_WIDTH}px)"},
        )  # fmt: skip
        pane = pn.FlexBox(  # the controls are below, where a page is narrow
            figure,
            side,
            flex_wrap="wrap",
            gap="8px",
            sizing_mode="stretch_both" if is_page else "stretch_width",
            min_height=height,
        )
        if background and pn.state.curdoc is not None:
            window.watch(pn.state.curdoc)
        self._show_drawn()
        return pane

    def _label(self) -> list[Any]:
        """Return the label as a picture, if the slide has one that can be read."""
        for image in self.slide.label_images[:1]:
            try:
                pixels = image._picture(LABEL_SIZE)
            except (DicomSlideError, OSError):
                return []
            from PIL import Image

            return [pn.pane.PNG(_png(Image.fromarray(pixels)), width=LABEL_SIZE)]
        return []

    def _changed(self) -> None:
        for window in self._windows:
            window.refresh(whole=True)

    def _select(self, geometry: dict[str, Any]) -> None:
        selection = selection_of(geometry)
        if selection is not None:
            self._selections.append(selection)
            self._show_drawn()

    def _code(self) -> str:
        return "" if self.selection is None else self.selection.code

    def _show_drawn(self) -> None:
        rings = [np.concatenate([each.points, each.points[:1]]) for each in self._selections]
        for window, code in zip(self._windows, self._codes, strict=True):
            window.show_drawn(rings)
            code.value = self._code()

    def close(self) -> None:
        """End the threads of windows."""
        for window in self._windows:
            window.close()


def _png(image: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
