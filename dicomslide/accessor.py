"""Registers the accessor ``slide`` of xarray's arrays, datasets and trees.

The xarray engine registers it too; xarray imports the engine when it first opens any file.
"""

from __future__ import annotations

from dicomslide.labelled.accessor import SlideAccessor, SlideTreeAccessor

__all__ = ["SlideAccessor", "SlideTreeAccessor"]
