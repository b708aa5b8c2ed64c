"""DICOM whole slide images as lazy, labelled arrays.

Names and submodules that need dask, xarray or Pillow are imported at first use, so that
``import dicomslide`` imports none of these.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING, Any

from dicomslide._version import __version__
from dicomslide.enum import ChannelTypes, ImageFlavors
from dicomslide.errors import (
    AmbiguousSlideError,
    AnnotationError,
    CacheWarning,
    CohortIndexError,
    DicomSlideError,
    ExportError,
    FrameDecodeError,
    FrameError,
    FramePositionError,
    FrameReadError,
    FrameWarning,
    GridError,
    LevelNotFoundError,
    MemoryLimitError,
    MetadataError,
    MetadataWarning,
    NotDicomError,
    NotPicklableError,
    NotSlideError,
    NotVirtualError,
    PerformanceWarning,
    PixelValueError,
    SlideTaskError,
    SourceChangedError,
    SourceDeniedError,
    SourceNotFoundError,
    SourceReadError,
    StorageRefusedError,
    StoreExistsError,
    ViewerWarning,
)
from dicomslide.options import Options, get_options, set_options
from dicomslide.process import above
from dicomslide.process.budget import clear_all
from dicomslide.utils import (
    does_optical_path_item_match,
    does_segment_item_match,
    does_specimen_description_item_match,
    is_image,
    is_label_image,
    is_overview_image,
    is_tiled_image,
    is_volume_image,
)

if TYPE_CHECKING:
    from dicomslide import (  # noqa: F401 - submodules, which __getattr__ imports
        image,
        matrix,
        openslide,
        pyramid,
        recipes,
        slide,
        testing,
        tile,
    )
    from dicomslide.annotation.group import AnnotationGroup, Measurement
    from dicomslide.backends.dicomweb.connection import register_client
    from dicomslide.backends.net.credentials import forget, register_credentials
    from dicomslide.backends.net.storage_options import register_storage_options
    from dicomslide.display.plots import add_scale_bar
    from dicomslide.export.ome_zarr import to_ome_zarr
    from dicomslide.export.spatialdata import to_spatialdata
    from dicomslide.image import TiledImage
    from dicomslide.labelled.index import SlideIndex
    from dicomslide.matrix import TotalPixelMatrix, TotalPixelMatrixSampler
    from dicomslide.openslide import OpenSlide
    from dicomslide.pyramid import (
        Pyramid,
        PyramidLevel,
        compute_image_center_position,
        get_image_pixel_spacing,
        get_image_size,
        select_image_at_magnification,
        select_image_at_pixel_spacing,
        sort_images_by_pixel_spacing,
        sort_images_by_size,
    )
    from dicomslide.slide import Slide, find_slides, open_slide
    from dicomslide.slide.calls import SlideResults
    from dicomslide.slide.cohort import Cohort
    from dicomslide.slide.collecting import open_slides
    from dicomslide.slide.sampler import SlideSampler
    from dicomslide.slide.tile_dataset import TileDataset
    from dicomslide.slide.tile_order import BlockShuffle, TileStream
    from dicomslide.tile import (
        assemble_total_pixel_matrix,
        compute_frame_positions,
        disassemble_total_pixel_matrix,
    )
    from dicomslide.write.annotations import write_annotations
    from dicomslide.write.maps import write_parametric_map
    from dicomslide.write.measurements import write_measurements
    from dicomslide.write.segmentation import write_segmentation

_LAZY_MODULES = {
    "AnnotationGroup": "annotation.group",
    "BlockShuffle": "slide.tile_order",
    "Cohort": "slide.cohort",
    "Measurement": "annotation.group",
    "OpenSlide": "openslide",
    "Pyramid": "pyramid",
    "PyramidLevel": "pyramid",
    "Slide": "slide",
    "SlideIndex": "labelled.index",
    "SlideResults": "slide.calls",
    "SlideSampler": "slide.sampler",
    "TileDataset": "slide.tile_dataset",
    "TileStream": "slide.tile_order",
    "TiledImage": "image",
    "TotalPixelMatrix": "matrix",
    "TotalPixelMatrixSampler": "matrix",
    "add_scale_bar": "display.plots",
    "assemble_total_pixel_matrix": "tile",
    "compute_frame_positions": "tile",
    "compute_image_center_position": "pyramid",
    "disassemble_total_pixel_matrix": "tile",
    "find_slides": "slide",
    "forget": "backends.net.credentials",
    "get_image_pixel_spacing": "pyramid",
    "get_image_size": "pyramid",
    "open_slide": "slide",
    "open_slides": "slide.collecting",
    "register_client": "backends.dicomweb.connection",
    "register_credentials": "backends.net.credentials",
    "register_storage_options": "backends.net.storage_options",
    "select_image_at_magnification": "pyramid",
    "select_image_at_pixel_spacing": "pyramid",
    "sort_images_by_pixel_spacing": "pyramid",
    "sort_images_by_size": "pyramid",
    "to_ome_zarr": "export.ome_zarr",
    "to_spatialdata": "export.spatialdata",
    "write_annotations": "write.annotations",
    "write_measurements": "write.measurements",
    "write_parametric_map": "write.maps",
    "write_segmentation": "write.segmentation",
}
"""Module of each public name that is imported at first use."""

_METHODS = {"store_of": "export", "view_of": "view"}
"""Functions by which methods of a slide are served, and the room of each, above that of slides."""

_SUBMODULES = {
    "enum", "errors", "image", "matrix", "openslide", "options", "pyramid", "recipes", "slide",
    "testing", "tile", "utils",
}  # fmt: skip

__all__ = [
    "AmbiguousSlideError",
    "AnnotationError",
    "AnnotationGroup",
    "BlockShuffle",
    "ChannelTypes",
    "Cohort",
    "CohortIndexError",
    "DicomSlideError",
    "ExportError",
    "FrameDecodeError",
    "FrameError",
    "FramePositionError",
    "FrameReadError",
    "CacheWarning",
    "FrameWarning",
    "GridError",
    "ImageFlavors",
    "LevelNotFoundError",
    "MemoryLimitError",
    "Measurement",
    "MetadataError",
    "MetadataWarning",
    "NotDicomError",
    "NotPicklableError",
    "NotSlideError",
    "NotVirtualError",
    "OpenSlide",
    "Options",
    "PerformanceWarning",
    "PixelValueError",
    "Pyramid",
    "PyramidLevel",
    "Slide",
    "SlideIndex",
    "SlideResults",
    "SlideSampler",
    "SlideTaskError",
    "SourceChangedError",
    "SourceDeniedError",
    "SourceNotFoundError",
    "SourceReadError",
    "StorageRefusedError",
    "StoreExistsError",
    "TileDataset",
    "TileStream",
    "TiledImage",
    "TotalPixelMatrix",
    "TotalPixelMatrixSampler",
    "ViewerWarning",
    "__version__",
    "add_scale_bar",
    "assemble_total_pixel_matrix",
    "clear_all",
    "compute_frame_positions",
    "compute_image_center_position",
    "disassemble_total_pixel_matrix",
    "does_optical_path_item_match",
    "does_segment_item_match",
    "does_specimen_description_item_match",
    "find_slides",
    "forget",
    "get_image_pixel_spacing",
    "get_image_size",
    "get_options",
    "is_image",
    "is_label_image",
    "is_overview_image",
    "is_tiled_image",
    "is_volume_image",
    "open_slide",
    "open_slides",
    "register_client",
    "register_credentials",
    "register_storage_options",
    "select_image_at_magnification",
    "select_image_at_pixel_spacing",
    "set_options",
    "sort_images_by_pixel_spacing",
    "sort_images_by_size",
    "to_ome_zarr",
    "to_spatialdata",
    "write_annotations",
    "write_measurements",
    "write_parametric_map",
    "write_segmentation",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ImportError as error:  # hasattr and inspect expect an AttributeError
            raise AttributeError(str(error)) from error
    if name not in _LAZY_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _imported(_LAZY_MODULES[name], name)
    globals()[name] = value
    return value


def _imported(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


for _method, _module in _METHODS.items():
    above.register(_method, partial(_imported, _module, _method))


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
