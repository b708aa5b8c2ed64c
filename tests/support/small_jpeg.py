"""A small level of JPEG frames, and its pixels by other decoders."""

from __future__ import annotations

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames

import dicomslide
from dicomslide.testing import write_slide

EDGE, TILE = 512, 64
FRAME = TILE * TILE * 3
"""Bytes of a decoded frame."""
FRAMES = (EDGE // TILE) ** 2


def write(folder):
    """Write the level; return its path."""
    (path,) = write_slide(
        folder,
        shape=(EDGE, EDGE),
        downsamples=(1,),
        tile_shape=(TILE, TILE),
        associated=False,
    )
    return path


def decoded(path):
    """Return the whole level, decoded by pydicom's own way to frames and Pillow."""
    data = pydicom.dcmread(path)
    frames = generate_frames(data.PixelData, number_of_frames=FRAMES)
    tiles = [np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in frames]
    across = EDGE // TILE
    rows = [np.concatenate(tiles[i * across : (i + 1) * across], 1) for i in range(across)]
    return np.concatenate(rows)


def matrix_of(path, **options):
    """Return the matrix of a level."""
    slide = dicomslide.open_slide(path, correct_color=False, **options)
    return slide.get_volume_images()[0].get_total_pixel_matrix()
