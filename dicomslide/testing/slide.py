"""`write_slide`: a synthetic slide of a pyramid, a label and an overview."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing.drawing import (
    Drawing,
    PositionDrawing,
    RasterDrawing,
    StackDrawing,
    draw_cells,
    draw_label,
    draw_tissue,
)
from dicomslide.testing.image import OffsetTable, SyntheticImage
from dicomslide.testing.write import write_image

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["averaged", "write_slide"]

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


def write_slide(
    folder: str | os.PathLike[str],
    *,
    shape: tuple[int, int] = (1024, 1280),
    downsamples: Sequence[int] = (1, 2, 4),
    tile_shape: tuple[int, int] = (256, 256),
    origin: tuple[float, float] = (18.0, 32.0),
    level_origins: Literal["own", "base"] = "own",
    orientation: Sequence[float] = (0, -1, 0, -1, 0, 0),
    spacing: tuple[float, float] = (0.0005, 0.0005),
    transfer_syntax_uid: str = JPEG_BASELINE,
    drawing: Literal["tissue", "cells", "position"] = "tissue",
    samples: Literal[1, 3] = 3,
    bits: int = 8,
    optical_paths: Sequence[str] = ("1",),
    planes: Sequence[float] = (0.0,),
    sparse: bool = False,
    absent: Sequence[tuple[int, int]] = (),
    offset_table: OffsetTable = "basic",
    undefined_lengths: bool = False,
    associated: bool = True,
    icc_profile: bytes | None = None,
    container_id: str = "DS-0001",
    slide_number: int = 1,
    seed: int = 0,
) -> list[Path]:
    """Write a synthetic slide: a pyramid, and a label and an overview.

    Parameters
    ----------
    folder : path-like
        Folder to write to, created if absent.
    shape : tuple of int
        Total pixel matrix (rows, columns) of the base level.
    downsamples : sequence of int
        Factor of each level. A level of tissue and cells is the mean of boxes of factor × factor
        pixels; a level of positions encodes its own positions.
    tile_shape : tuple of int
        (rows, columns) of a frame.
    origin : tuple of float
        (x, y) of the centre of the base level's first pixel in mm.
    level_origins : {"own", "base"}
        Total Pixel Matrix Origin of coarser levels: the centre of the level's own first pixel, as
        PS3.3 requires, or the origin of the base level, as most scanners and converters write.
    orientation : sequence of float
        The six cosines of Image Orientation (Slide).
    spacing : tuple of float
        (between rows, between columns) of the base level in mm.
    transfer_syntax_uid : str
        Any key of :data:`ENCODERS`.
    drawing : {"tissue", "cells", "position"}
        Pixels of the levels: see :func:`draw_tissue`, :func:`draw_cells`,
        :func:`position_values`.
    samples : {1, 3}
        Samples per Pixel: 3 for tissue, 1 for cells.
    bits : {8, 12, 16}
        Bits Stored, of greyscale; 16 for cells.
    optical_paths : sequence of str
        Optical Path Identifiers; each image has all of them.
    planes : sequence of float
        Z offset of each focal plane in µm; each image has all of them.
    sparse : bool
        TILED_SPARSE rather than TILED_FULL.
    absent : sequence of tuple of int
        (row, column) in the tile grid of the base level's tiles without a frame.
    offset_table : {"basic", "extended", "empty"}
        Basic or Extended Offset Table of encapsulated frames, or an empty Basic Offset Table.
    undefined_lengths : bool
        Whether sequences of the per-frame groups have undefined lengths.
    associated : bool
        Whether to write a label and an overview.
    icc_profile : bytes, optional
        ICC Profile of colour images; by default sRGB.
    container_id : str
        Container Identifier.
    slide_number : int
        Images with the same number share study, series and frame of reference.
    seed : int
        Seed of the drawing.

    Returns
    -------
    list of pathlib.Path
        Files of the levels in order, then label and overview.

    Raises
    ------
    ValueError
        When `drawing` or `level_origins` has another value, or `samples` and `bits` aren't those
        of the drawing.

    Examples
    --------
    >>> files = write_slide("slide/", shape=(512, 512), downsamples=(1, 4))

    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cosines = tuple(float(value) for value in orientation)
    base = SlideGeometry(origin, cosines[0:2], cosines[3:5], spacing, shape)  # type: ignore[arg-type]
    pixel_format = PixelFormat(
        rows=tile_shape[0],
        columns=tile_shape[1],
        samples=samples,
        bits_allocated=8 if bits <= 8 else 16,
        bits_stored=bits,
    )
    common = dict(
        pixel_format=pixel_format,
        transfer_syntax_uid=transfer_syntax_uid,
        optical_paths=tuple(optical_paths),
        planes=tuple(float(z) for z in planes),
        sparse=sparse,
        offset_table=offset_table,
        undefined_lengths=undefined_lengths,
        icc_profile=icc_profile,
        container_id=container_id,
        slide_number=slide_number,
    )
    picture: NDArray[Any] | None = None
    upright = base.upright_shape if base.orientation else shape
    if drawing == "tissue":
        picture = draw_tissue(upright, seed)
    elif drawing == "cells":
        picture = draw_cells(upright, len(optical_paths), planes, seed)
    elif drawing != "position":
        raise ValueError(f"drawing {drawing!r}: expected 'tissue', 'cells' or 'position'")
    drawn = {"tissue": (3, 8), "cells": (1, 16)}.get(drawing, (samples, bits))
    if (samples, bits) != drawn:
        raise ValueError(
            f"{drawing} has {drawn[0]} samples of {drawn[1]} bits, not {samples} of {bits}"
        )
    if level_origins not in ("own", "base"):
        raise ValueError(f"level_origins {level_origins!r}: expected 'own' or 'base'")
    is_base_stated = level_origins == "base"
    images: list[tuple[str, SyntheticImage]] = []
    previous = 1
    for number, factor in enumerate(downsamples):
        geometry = averaged(base, factor)
        stated = dataclasses.replace(geometry, origin=origin) if is_base_stated else geometry
        shown: Drawing = PositionDrawing(samples, pixel_format.dtype)
        if picture is not None:
            picture = _averaged_picture(picture, geometry, factor // previous)
            shown = RasterDrawing(picture, geometry)
            if drawing == "cells":
                shown = StackDrawing(picture, geometry, len(planes))
        images.append(
            (
                f"level-{number}.dcm",
                SyntheticImage(
                    geometry=stated,
                    drawing=shown,
                    resampled=factor > 1,
                    absent=frozenset(absent) if factor == 1 else frozenset(),
                    instance_number=number + 1,
                    **common,  # type: ignore[arg-type]
                ),
            )
        )
        previous = factor
    if associated:
        section = picture if drawing == "tissue" else None
        images += _associated(base, section, container_id, slide_number, len(images))
    return [write_image(folder / name, image) for name, image in images]


def averaged(base: SlideGeometry, factor: int) -> SlideGeometry:
    """Return the geometry of a level whose pixels are boxes of `factor` × `factor` base pixels."""
    middle = (factor - 1) / 2
    x, y = base.to_slide((middle, middle)).tolist()
    return dataclasses.replace(
        base,
        origin=(x, y),
        spacing=(base.spacing[0] * factor, base.spacing[1] * factor),
        shape=(max(1, base.shape[0] // factor), max(1, base.shape[1] // factor)),
    )


def _averaged_picture(picture: NDArray[Any], geometry: SlideGeometry, factor: int) -> NDArray[Any]:
    """Average boxes of an upright picture, without incomplete boxes at the stored matrix's end."""
    if factor == 1:
        return picture
    orientation = geometry.orientation
    rows, columns = geometry.upright_shape if orientation else geometry.shape
    down = slice(None, rows * factor)
    across = slice(None, columns * factor)
    if orientation is not None and orientation.flip_y:
        down = slice(picture.shape[0] - rows * factor, None)
    if orientation is not None and orientation.flip_x:
        across = slice(picture.shape[1] - columns * factor, None)
    samples = picture.shape[2]
    boxes = picture[down, across].reshape(rows, factor, columns, factor, samples)
    total = np.zeros((rows, columns, samples), np.uint32)
    for i in range(factor):
        for j in range(factor):
            total += boxes[:, i, :, j]
    return (total // factor**2).astype(picture.dtype)


def _associated(
    base: SlideGeometry,
    picture: NDArray[np.uint8] | None,
    container_id: str,
    slide_number: int,
    count: int,
) -> list[tuple[str, SyntheticImage]]:
    """Return a label of 22 × 18 mm and an overview of the whole slide of 25 × 75 mm."""
    from PIL import Image

    def image(flavor: str, shown: NDArray[np.uint8], x: float, y: float, step: float) -> Any:
        # upright: column index along X, row index against Y
        geometry = SlideGeometry(
            (x + step / 2, y - step / 2), (1.0, 0.0), (0.0, -1.0), (step, step), shown.shape[:2]
        )
        return SyntheticImage(
            geometry=geometry,
            drawing=RasterDrawing(shown, geometry),
            pixel_format=PixelFormat(rows=shown.shape[0], columns=shown.shape[1], samples=3),
            transfer_syntax_uid=JPEG_BASELINE,
            flavor=flavor,
            container_id=container_id,
            slide_number=slide_number,
            instance_number=count + (1 if flavor == "LABEL" else 2),
        )

    label = draw_label((360, 440), [container_id, "H&E", "dicomslide"])
    overview = np.full((1500, 500, 3), (238, 240, 242), np.uint8)
    overview[10:370, 30:470] = label
    x_min, _, x_max, y_max = base.bounds
    if picture is not None:
        width = max(1, round((x_max - x_min) / 0.05))
        height = max(1, round(picture.shape[0] / picture.shape[1] * width))
        small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
        top, left = max(0, round((75 - y_max) / 0.05)), max(0, round(x_min / 0.05))
        part = overview[top : top + height, left : left + width]
        part[...] = small[: part.shape[0], : part.shape[1]]
    return [
        ("label.dcm", image("LABEL", label, 1.5, 74.5, 0.05)),
        ("overview.dcm", image("OVERVIEW", overview, 0.0, 75.0, 0.05)),
    ]
