"""Slides: what they consist of, and how they are found and opened."""

from __future__ import annotations

from dicomslide.slide.discovery import find_slides
from dicomslide.slide.opening import open_slide
from dicomslide.slide.slide import Slide

__all__ = ["Slide", "find_slides", "open_slide"]
