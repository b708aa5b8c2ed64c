"""Slides that tests of views look at."""

from __future__ import annotations

import numpy as np

from dicomslide.testing import write_slide
from tests.support import derive

RAW = "1.2.840.10008.1.2.1"


def write_tissue(folder):
    """Write a slide of tissue with a segmentation of two segments and 300 annotations."""
    files = write_slide(folder, shape=(1200, 1600), downsamples=(1, 4), container_id="S-1")
    masks = np.zeros((1200, 1600, 2), np.uint8)
    masks[300:700, 200:800, 0] = masks[700:900, 200:1200, 1] = 1
    derive.write_segmentation(folder / "seg.dcm", files[0], masks, "BINARY")
    cells = np.random.default_rng(0).uniform((100, 100), (1500, 1100), (300, 1, 2))
    graphics = list(cells + np.array([[0, 0], [12.0, 0], [12, 9], [0, 9]]))
    derive.annotations_of(files[0], [derive.group_of(graphics)]).save_as(folder / "ann.dcm")
    return folder


def write_markers(folder):
    """Write a slide of three channels and three focal planes."""
    write_slide(
        folder, shape=(600, 800), drawing="cells", samples=1, bits=16, transfer_syntax_uid=RAW,
        optical_paths=("DAPI", "FITC", "Cy5"), planes=(0, 2, 4), container_id="F-1", slide_number=2,
    )  # fmt: skip
    return folder
