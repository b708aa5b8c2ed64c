"""Slides as trees of virtual arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomslide.labelled.tree import slide_groups
from dicomslide.labelled.variables import is_mask_of
from dicomslide.readers.scanned_reader import ScannedReader
from dicomslide.virtual.arrays import virtual_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import xarray as xr

    from dicomslide.contents.contents import SlideContents
    from dicomslide.readers.stacked_reader import StackedReader

__all__ = ["check_installed", "virtual_groups"]


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


def virtual_groups(
    slide: SlideContents,
    *,
    associated: bool = False,
    include_patient: bool = False,
    urls: Mapping[str, str] | None = None,
) -> dict[str, xr.Dataset]:
    """Return the datasets of a slide by path, whose images are virtual arrays.

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

    Raises
    ------
    NotVirtualError
        When frames can't be chunks.

    """
    check_installed("virtualizarr")
    of_reader = virtual_data(urls)

    def data(reader: StackedReader, dims: Sequence[str]) -> Any:
        if isinstance(reader, ScannedReader):  # left out below; costs no memory
            return np.broadcast_to(np.False_, reader.shape)
        return of_reader(reader, dims)

    groups = slide_groups(
        slide,
        data=data,
        orientation="stored",
        mask_and_scale=False,
        associated=associated,
        include_patient=include_patient,
    )
    return {path: _storable(dataset) for path, dataset in groups.items()}


def _storable(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset without masks, and with texts as zarr stores them."""
    masks = [name for name in dataset.data_vars if is_mask_of(str(name), dataset.data_vars)]
    kept = dataset.drop_vars(masks) if masks else dataset
    of_dims = {}
    for name, variable in kept.variables.items():
        variable.encoding = {}
        if variable.dtype.kind != "U":
            continue
        texts = np.asarray(variable.values, object)  # variable-length: zarr's specification
        if name in kept.xindexes:  # whose values can't be set
            of_dims[name] = (variable.dims, texts, variable.attrs)
        else:
            variable.data = texts
    return kept.assign_coords(of_dims) if of_dims else kept
