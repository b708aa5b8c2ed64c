"""Writer of valid synthetic slides, for tests, the demo and notebooks.

Files are VL Whole Slide Microscopy Images (PS3.3 A.32.8) in any transfer syntax that the package
reads, with any organisation of frames, orientation and offset table. Pixels are a drawing of
tissue, of cells in fluorescence, or values that encode the position of each pixel.
"""

from __future__ import annotations

from dicomslide.testing.drawing import (
    Drawing,
    PositionDrawing,
    RasterDrawing,
    StackDrawing,
    draw_cells,
    draw_label,
    draw_tissue,
    position_values,
)
from dicomslide.testing.encode import ENCODERS, encode_frame
from dicomslide.testing.image import SyntheticImage, srgb_profile, uid_of
from dicomslide.testing.slide import averaged, write_slide
from dicomslide.testing.write import write_image

__all__ = [
    "ENCODERS",
    "Drawing",
    "PositionDrawing",
    "RasterDrawing",
    "StackDrawing",
    "SyntheticImage",
    "averaged",
    "draw_cells",
    "draw_label",
    "draw_tissue",
    "encode_frame",
    "position_values",
    "srgb_profile",
    "uid_of",
    "write_image",
    "write_slide",
]
