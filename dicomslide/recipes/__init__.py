"""Functions for common analysis of slides, to use as they are or as a starting point.

Each takes labelled arrays (:class:`xarray.DataArray`) of a slide's tree and returns lazy labelled
arrays with coordinates in the same millimetres. Results are equal on threads, processes and
clusters.

    tree = dicomslide.open_slide("slide/").to_datatree(chunks="auto")
    threshold = recipes.tissue_threshold(tree["level_2"].image)
    mask = recipes.tissue_mask(tree["level_0"].image, threshold)
    recipes.area(mask).compute()  # mm²
"""

from __future__ import annotations

try:
    import skimage  # noqa: F401
except ImportError:
    raise ImportError(
        "recipes need scikit-image, which isn't installed: pip install 'dicomslide[recipes]'"
    ) from None

from dicomslide.labelled.composite import composite
from dicomslide.recipes.cell_frames import to_anndata, to_pandas
from dicomslide.recipes.cells import cell_table
from dicomslide.recipes.focus import focus_stack
from dicomslide.recipes.instances import map_instances
from dicomslide.recipes.shapes import outlines, rasterize
from dicomslide.recipes.stains import estimate_stains, separate_stains
from dicomslide.recipes.statistics import segment_statistics
from dicomslide.recipes.tile_table import tile_grid
from dicomslide.recipes.tiles import TileOutput, embed_tiles, map_tiles
from dicomslide.recipes.tissue import area, tissue_mask, tissue_threshold
from dicomslide.recipes.unmixing import estimate_background, subtract_background, unmix

__all__ = [
    "TileOutput",
    "area",
    "cell_table",
    "composite",
    "embed_tiles",
    "estimate_background",
    "estimate_stains",
    "focus_stack",
    "map_instances",
    "map_tiles",
    "outlines",
    "rasterize",
    "segment_statistics",
    "separate_stains",
    "subtract_background",
    "tile_grid",
    "tissue_mask",
    "tissue_threshold",
    "to_anndata",
    "to_pandas",
    "unmix",
]
