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

__all__ = ["check_installed"]

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
