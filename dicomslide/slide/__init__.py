"""Slides: opening, discovery and the class `Slide`.

``slide``, ``pictures``, ``overlays``, ``arrays``
    `Slide`: pixels, annotations and coordinates; pictures, with what lies on them; and labelled
    arrays.
``opening``, ``discovery``
    `open_slide` and `find_slides`.
``sorting``
    Instances sorted into slides by their headers.
``cohort``, ``batches``, ``ahead``, ``calls``
    `open_slides`: a mapping of names to slides; headers in threads or on a cluster, those of the
    next slides beforehand; and functions of slides.
``sampler``, ``tile_dataset``, ``tile_order``, ``workers``
    Map-style data sets of regions and tiles, orders of reading, and shares of processes.
"""

from __future__ import annotations

from dicomslide.slide.discovery import find_slides
from dicomslide.slide.opening import open_slide
from dicomslide.slide.slide import Slide

__all__ = ["Slide", "find_slides", "open_slide"]
