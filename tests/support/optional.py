"""Packages that dicomslide does without: a test that needs one that isn't installed is skipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

EXTRAS = {
    "aiohttp": "remote",
    "anndata": "anndata",
    "dask_array": "dask-array",
    "dicomweb_client": "dicomweb",
    "distributed": "distributed",
    "fsspec": "remote",
    "geopandas": "geo",
    "highdicom": "test",
    "icechunk": "virtual",
    "large_image": "large-image",
    "matplotlib": "plot",
    "moto": "test",
    "napari": "napari",
    "nbformat": "notebooks",
    "ome_zarr_models": "test",
    "npe2": "napari",
    "openslide": "test",
    "panel": "view",
    "playwright": "test",
    "pyarrow": "parquet",
    "pylibjpeg": "test",
    "requests": "dicomweb",
    "s3fs": "test",
    "scipy": "recipes",
    "skimage": "recipes",
    "torch": "torch",
    "virtualizarr": "virtual",
    "wsidata": "wsidata",
    "zarr": "zarr",
}
"""The extra of pyproject.toml that installs a package, by the name that is imported."""


def reason_to_skip(*packages: str) -> str | None:
    """Return which of some packages isn't installed and how to install it, or None."""
    for package in packages:
        extra = EXTRAS[package]
        if importlib.util.find_spec(package) is None:
            return f"{package} isn't installed: pip install 'dicomslide[{extra}]'"
    return None


def need(*packages: str) -> None:
    """Skip the running test, or the file that is being imported, if a package isn't installed."""
    if reason := reason_to_skip(*packages):
        pytest.skip(reason, allow_module_level=True)


def reason_of(error: BaseException | None) -> str | None:
    """Return why a test is skipped that ended with an error; None if the error is a failure.

    Only an import that stands in a file of tests/ may miss a package. One that dicomslide itself
    misses is a failure, unless the test is marked with ``needs``.
    """
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    files = []
    trace = error.__traceback__
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    importer = next(name for name in reversed(files) if not name.startswith("<frozen importlib"))
    if package not in EXTRAS or not Path(importer).is_relative_to(TESTS):
        return None
    return reason_to_skip(package)
