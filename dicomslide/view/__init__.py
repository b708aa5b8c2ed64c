"""Views of slides in notebooks and browsers.

``scene``, ``blocks``, ``shapes``
    What is shown, and its pixels: channels and overlays of a box in mm, read in blocks.
``window``, ``scripts``, ``controls``
    The figure of Bokeh, what the browser asks of it, and the widgets of Panel.
``view``, ``selection``
    `SlideView`, and what was drawn on it.
``server``
    The same in a browser: ``dicomslide view``.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomslide.slide.slide import Slide

__all__ = ["check_installed", "view_of"]

NEEDED = ("panel", "bokeh", "matplotlib")


def check_installed() -> None:
    """Check that what a view needs is installed.

    Raises
    ------
    ImportError
        With a line that says what to install.

    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"a view needs {', '.join(missing)}: pip install 'dicomslide[view]'. Without a view,"
            " slide.plot() draws a still picture"
        )


def view_of(slide: Slide, overlay: Any, **options: Any) -> Any:
    """Return a view of a slide; see :meth:`dicomslide.Slide.view`."""
    check_installed()
    from dicomslide.view.view import shown

    return shown(slide, overlay, **options)
