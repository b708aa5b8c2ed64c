"""The accessor ``slide`` of xarray's arrays, datasets and trees.

``import dicomslide.accessor`` registers it, and so does xarray's engine, which xarray loads
whatever it opens.
"""

from __future__ import annotations

from dicomslide.labelled.accessor import SlideAccessor, SlideTreeAccessor

__all__ = ["SlideAccessor", "SlideTreeAccessor"]
