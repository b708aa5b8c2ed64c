"""Slides as trees of virtual arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import PandasIndex

from dicomslide.labelled.tree import slide_parts
from dicomslide.virtual.arrays import virtual_data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicomslide.contents.contents import SlideContents
    from dicomslide.labelled.parts import Parts
    from dicomslide.virtual.references import CheckFrames

__all__ = ["check_installed", "virtual_parts"]


def check_installed(*packages: str) -> None:
    """Raise an ImportError that names the extra if a package isn't installed."""
    import importlib

    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ImportError(
                f"virtual Zarr needs the package {package}: pip install 'dicomslide[virtual]'"
            ) from None


def virtual_parts(
    slide: SlideContents,
    *,
    associated: bool = False,
    include_patient: bool = False,
    urls: Mapping[str, str] | None = None,
    check_frames: CheckFrames = None,
) -> dict[str, Parts]:
    """Return the parts of the datasets of a slide by path, whose images are virtual arrays.

    They are those of ``slide.to_datatree(orientation="stored", mask_and_scale=False)``, without
    masks of what was scanned: a chunk that isn't there says the same.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    associated, include_patient
        See :meth:`dicomslide.Slide.to_datatree`.
    urls : mapping of str to str, optional
        URL of a source by its name, where it isn't that of a file or object.
    check_frames : {"all", "sample"}, optional
        See :func:`dicomslide.virtual.to_icechunk`.

    Raises
    ------
    NotVirtualError
        When frames can't be chunks.

    """
    check_installed("virtualizarr")
    groups = slide_parts(
        slide,
        data=virtual_data(urls, check_frames),
        orientation="stored",
        mask_and_scale=False,
        associated=associated,
        include_patient=include_patient,
        with_scanned=False,
    )
    for parts in groups.values():
        _make_storable(parts)
    return groups


def _make_storable(parts: Parts) -> None:
    """Convert texts to those of variable length, which zarr specifies."""
    for name, variable in parts.coords.items():
        if variable.dtype.kind == "U":
            texts = np.asarray(variable.values, object)
            parts.coords[name] = xr.Variable(variable.dims, texts, variable.attrs)
            if parts.indexes.pop(name, None) is not None and variable.dims == (name,):
                parts.indexes[name] = index = PandasIndex(pd.Index(texts, dtype=object), name)
                parts.coords |= index.create_variables({name: parts.coords[name]})
    for variable in (*parts.coords.values(), *parts.variables.values()):
        variable.encoding = {}
