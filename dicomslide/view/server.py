"""Slides in a browser: a server on this machine, whose pages are found by a token only."""

from __future__ import annotations

import html
import secrets
import urllib.parse
from typing import TYPE_CHECKING, Any

import panel as pn

from dicomslide.slide.contact_sheet import pictures_of
from dicomslide.view.view import SlideView, _png

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dicomslide.slide.slide import Slide

__all__ = ["SlideServer"]

LOOPBACK = "127.0.0.1"
PICTURE = 220
MOST = 500
"""Slides on the contact sheet."""


class SlideServer:
    """Pages of slides: a view of each, and a contact sheet if there are several.

    Parameters
    ----------
    slides : mapping of str to Slide
        Slides by name, opened when they are looked at.
    port : int, default: 0
        Port; 0 for any that is free.
    address : str, default: "127.0.0.1"
        Address to listen on: by default this machine only.
    overlay : sequence, optional
        See :meth:`dicomslide.Slide.view`.

    """

    def __init__(
        self,
        slides: Mapping[str, Slide],
        *,
        port: int = 0,
        address: str = LOOPBACK,
        overlay: Any = None,
    ) -> None:
        self._slides, self._overlay = slides, overlay
        self.views: list[SlideView] = []
        """Views that browsers show."""
        self.token = secrets.token_urlsafe(16)
        pages: dict[str, Callable[[], Any]] = {f"/{self.token}": self._first}
        if len(slides) > 1:
            pages[f"/{self.token}/slide"] = self._slide
        self._server = pn.io.server.get_server(
            pages,
            port=port,
            address=address,
            websocket_origin=None,
            use_index=False,
            redirect_root=False,
            title="dicomslide",
            start=False,
            show=False,
            check_unused_sessions_milliseconds=5000,
            unused_session_lifetime_milliseconds=15000,
        )
        host = LOOPBACK if address in ("0.0.0.0", "::", "") else address
        self.url = f"http://{host}:{self._server.port}/{self.token}"

    def run(self) -> None:
        """Serve until Ctrl+C."""
        self._server.start()
        try:
            self._server.io_loop.start()
        except KeyboardInterrupt:
            pass
        finally:
            self._server.stop()
            for view in list(self.views):
                view.close()

    def started(self, call: Callable[[], None]) -> None:
        """Call a function once the server runs."""
        self._server.io_loop.add_callback(call)

    def shut_down(self) -> None:
        """End :meth:`run`, from any thread."""
        self._server.io_loop.add_callback(self._server.io_loop.stop)

    # -- pages --

    def _first(self) -> Any:
        if len(self._slides) > 1:
            return self._sheet()
        return self._view(next(iter(self._slides)))

    def _slide(self) -> Any:
        name = pn.state.session_args.get("name", [b""])[0].decode()
        if name not in self._slides:
            return pn.pane.Alert(f"there is no slide {html.escape(name)!r}", alert_type="danger")
        link = f'<a href="../{self.token}">all slides</a>'
        back = pn.pane.HTML(link, height=20)  # whole: the figure begins at a pixel of the screen
        return pn.Column(back, self._view(name), sizing_mode="stretch_both")

    def _view(self, name: str) -> Any:
        try:
            view = SlideView(self._slides[name], self._overlay, height=None)
        except Exception as error:  # the page says it, and other pages go on
            text = html.escape(f"{name}: {type(error).__name__}: {error}")
            return pn.pane.Alert(text, alert_type="danger")

        def close(_: Any) -> None:
            self.views.remove(view)
            view.close()

        self.views.append(view)
        pn.state.on_session_destroyed(close)
        return view.panel(background=True)

    def _sheet(self) -> Any:
        """Return the contact sheet: pictures that link to views."""
        from PIL import Image

        cards = []
        for name, picture, _ in pictures_of(self._slides, PICTURE, MOST):
            link = f"{self.token}/slide?name={urllib.parse.quote(name)}"
            title = f'<a href="{link}">{html.escape(name)}</a>'
            if isinstance(picture, str):
                cards.append(pn.Column(pn.pane.HTML(title), html.escape(picture), width=PICTURE))
                continue
            png = _png(Image.fromarray(picture))
            image = pn.pane.PNG(png, link_url=link, width=PICTURE, target="_self")
            cards.append(pn.Column(pn.pane.HTML(title), image, width=PICTURE))
        return pn.FlexBox(*cards, gap="16px", sizing_mode="stretch_width")
