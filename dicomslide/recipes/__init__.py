"""Analysis of slides in short functions, to use as they are and to write one's own from.

Each takes labelled arrays (:class:`xarray.DataArray`) of a slide's tree and returns labelled
arrays in the same millimetres. They are lazy: dask computes them, on threads, on processes or on
a cluster, with the same result.

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
        "recipes use scikit-image, which isn't installed: pip install 'dicomslide[recipes]'"
    ) from None

from dicomslide.recipes.stains import estimate_stains, separate_stains
from dicomslide.recipes.statistics import segment_statistics
from dicomslide.recipes.tiles import map_tiles
from dicomslide.recipes.tissue import area, tissue_mask, tissue_threshold

__all__ = [
    "area",
    "estimate_stains",
    "map_tiles",
    "segment_statistics",
    "separate_stains",
    "tissue_mask",
    "tissue_threshold",
]
