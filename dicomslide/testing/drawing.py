"""Drawings for synthetic slides: encoded positions, H&E tissue, fluorescent cells, a label."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicomslide.header.geometry import SlideGeometry

__all__ = ["Drawing", "PositionDrawing", "RasterDrawing", "StackDrawing", "draw_cells",
           "draw_label", "draw_tissue", "position_values"]  # fmt: skip

BLUR = 1.2
"""Blur radius of a cell in pixels per µm of defocus."""
TYPES = 5
"""Types of fluorescent cells, each with markers of its own."""


class Drawing(Protocol):
    """Source of the pixels of a synthetic image."""

    def tile(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], channel: int, plane: int
    ) -> NDArray[Any]:
        """Return the pixels at (row, column) of the matrix, shape (rows, columns, samples)."""
        ...


def position_values(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    channel: int = 0,
    plane: int = 0,
    *,
    samples: int = 3,
    dtype: Any = np.uint8,
) -> NDArray[Any]:
    """Return pixels whose values encode their positions.

    Parameters
    ----------
    rows, columns : numpy.ndarray
        Zero-based indices, one-dimensional.
    channel, plane : int
        Zero-based channel and focal plane.
    samples : {1, 3}
        For three samples, red is the row and green the column modulo 256, and blue the next
        four bits of each (turned by channel and plane): unique in 4,096² pixels.
    dtype : numpy.dtype
        For one sample, ``257 * row + column + 7919 * channel + 30011 * plane`` modulo the range
        of the type (``True`` where odd, for bool): unique in 256² pixels of 16 bits.

    Returns
    -------
    numpy.ndarray
        Shape (len(rows), len(columns), samples).

    """
    row, column = rows[:, None], columns[None, :]
    if samples == 3:
        high = (row >> 8 & 15) << 4 | (column >> 8 & 15)
        blue = (high + 37 * channel + 101 * plane) & 255
        stacked = np.broadcast_arrays(row & 255, column & 255, blue)
        return np.stack(stacked, axis=-1).astype(dtype)
    value = 257 * row + column + 7919 * channel + 30011 * plane
    kind = np.dtype(dtype)
    if kind == np.bool_:
        return (value % 7 % 2 == 1)[:, :, None]
    if kind.kind == "f":
        return (value / 8)[:, :, None].astype(kind)
    return (value % 2 ** (8 * kind.itemsize - (kind.kind == "i")))[:, :, None].astype(kind)


@dataclasses.dataclass(frozen=True)
class PositionDrawing:
    """Pixels that encode their positions: see :func:`position_values`."""

    samples: int
    dtype: Any

    def tile(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], channel: int, plane: int
    ) -> NDArray[Any]:
        """Return the pixels at (row, column) of the matrix."""
        return position_values(
            rows, columns, channel, plane, samples=self.samples, dtype=self.dtype
        )


@dataclasses.dataclass(frozen=True)
class RasterDrawing:
    """An upright picture, sampled in the orientation of the stored matrix."""

    picture: NDArray[Any]
    """Upright: y descending, x ascending, shape (ny, nx, samples)."""
    geometry: SlideGeometry
    """Orientation and position of the stored matrix."""

    def tile(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], channel: int, plane: int
    ) -> NDArray[Any]:
        """Return the pixels at (row, column) of the matrix."""
        height, width = self.picture.shape[:2]
        orientation = self.geometry.orientation
        if orientation is None:  # oblique: nearest neighbour, clipped to the picture
            x_min, y_min, x_max, y_max = self.geometry.bounds
            at = self.geometry.to_slide(np.stack(np.meshgrid(rows, columns, indexing="ij"), -1))
            across = np.floor((at[..., 0] - x_min) / (x_max - x_min) * width).astype(int)
            down = np.floor((y_max - at[..., 1]) / (y_max - y_min) * height).astype(int)
            return self.picture[np.clip(down, 0, height - 1), np.clip(across, 0, width - 1)]
        y, x = (columns, rows) if orientation.transpose else (rows, columns)
        y = height - 1 - y if orientation.flip_y else y
        x = width - 1 - x if orientation.flip_x else x
        part = self.picture[np.ix_(y, x)]
        return part.swapaxes(0, 1) if orientation.transpose else part


@dataclasses.dataclass(frozen=True)
class StackDrawing(RasterDrawing):
    """A picture whose samples are channels and focal planes, the planes of a channel in a row."""

    num_planes: int
    """Number of focal planes."""

    def tile(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], channel: int, plane: int
    ) -> NDArray[Any]:
        """Return the pixels at (row, column) of the matrix."""
        all_planes = super().tile(rows, columns, channel, plane)
        return all_planes[..., [channel * self.num_planes + plane]]


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """Smooth noise between 0 and 1, with about `cells` hills along the longer edge."""
    from PIL import Image

    edge = max(shape)
    small = rng.random((max(2, cells * shape[0] // edge + 2), max(2, cells * shape[1] // edge + 2)))
    image = Image.fromarray((small * 255).astype(np.uint8)).resize(
        shape[::-1], Image.Resampling.BICUBIC
    )
    return np.asarray(image, np.float32) / np.float32(255)


def _nuclei(rng: np.random.Generator, edge: int, count: int) -> NDArray[np.uint8]:
    """Periodic texture of nuclei: 255 inside, soft at the rim."""
    from PIL import Image, ImageDraw, ImageFilter

    image = Image.new("L", (edge, edge))
    draw = ImageDraw.Draw(image)
    for x, y, a, b, shade in zip(
        *rng.uniform(0, edge, (2, count)),
        *rng.uniform(4, 8, (2, count)),
        rng.integers(150, 255, count),
        strict=True,
    ):
        for dx in (-edge, 0, edge):  # the texture is periodic
            for dy in (-edge, 0, edge):
                box = (x + dx - a, y + dy - b, x + dx + a, y + dy + b)
                draw.ellipse(box, fill=int(shade))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)))


def draw_tissue(shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Draw an H&E section: islands of pink tissue with nuclei, glands and a pale background.

    Parameters
    ----------
    shape : tuple of int
        (rows, columns) of the upright picture.
    seed : int, default: 0
        Seed of the random generator.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, 3), uint8.

    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    rows, columns = shape
    scale = max(1, max(shape) // 1024)
    coarse = (max(2, rows // scale), max(2, columns // scale))
    down, across = np.meshgrid(
        np.linspace(-1, 1, coarse[0]), np.linspace(-1, 1, coarse[1]), indexing="ij"
    )
    island = 1.05 - (down / 0.86) ** 2 - (across / 0.82) ** 2  # above zero inside of an ellipse
    body = island + 1.2 * (_noise(rng, coarse, 5) - 0.5) + 0.4 * (_noise(rng, coarse, 20) - 0.5)
    glands = _noise(rng, coarse, 42)
    fields = np.stack(
        [
            np.clip(body * 6, 0, 1) * np.clip((0.80 - glands) * 14, 0, 1),  # where tissue is
            _noise(rng, coarse, 9),  # eosin, slowly varying
            np.clip(1 - np.abs(glands - 0.72) * 11, 0, 1)  # nuclei line the glands
            + 0.6 * np.clip(_noise(rng, coarse, 12) * 2.2 - 1.1, 0, 1),  # and gather elsewhere
        ]
    )
    maps = [Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8)) for field in fields]
    edge = 1024
    dense, sparse = _nuclei(rng, edge, 3600), _nuclei(rng, edge, 700)
    fibres = np.asarray(
        Image.fromarray(rng.integers(0, 255, (edge // 4, edge // 16), np.uint8)).resize(
            (edge, edge), Image.Resampling.BICUBIC
        )
    )
    grain = rng.integers(0, 7, (edge, edge), np.uint8)
    glass, eosin, haematoxylin = (
        np.array(rgb, np.float32) for rgb in ((244, 242, 246), (226, 150, 190), (92, 58, 138))
    )
    picture = np.empty((rows, columns, 3), np.uint8)
    for top in range(0, rows, edge):  # in bands, as wide as the textures
        height = min(edge, rows - top)
        box = (0, top * coarse[0] / rows, coarse[1], (top + height) * coarse[0] / rows)
        tissue, pink, cells = (
            np.asarray(m.resize((columns, height), Image.Resampling.BILINEAR, box), np.float32)
            / 255
            for m in maps
        )
        repeat = (1, -(-columns // edge))
        d, s, f, g = (
            np.tile(t[:height], repeat)[:, :columns] for t in (dense, sparse, fibres, grain)
        )
        nuclei = np.maximum(d * cells, s * np.float32(0.75)) * tissue / 255
        stain = tissue * (0.55 + 0.35 * pink + f * np.float32(0.12 / 255))
        band = picture[top : top + height]
        for sample in range(3):
            value = glass[sample] + (eosin[sample] - glass[sample]) * stain
            value += (haematoxylin[sample] - value) * nuclei
            value -= g
            band[..., sample] = np.clip(value, 0, 255).astype(np.uint8)
    return picture


def draw_cells(
    shape: tuple[int, int], channels: int, planes: Sequence[float], seed: int = 0
) -> NDArray[np.uint16]:
    """Draw cells in fluorescence: nuclei, cell bodies and granules, each in focus on one plane.

    Parameters
    ----------
    shape : tuple of int
        (rows, columns) of the upright picture.
    channels : int
        The first shows nuclei, the second bodies, the third granules, all of all cells; the next
        three show those of cells of one type, and so on: there are five types of cells, each of
        which has the markers of every fifth three.
    planes : sequence of float
        Z offset of each focal plane in µm.
    seed : int, default: 0
        Seed of the random generator.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, channels * planes), uint16: all planes of the first channel, then
        those of the next.

    """
    from PIL import Image, ImageDraw, ImageFilter

    rng = np.random.default_rng(seed)
    rows, columns = shape
    kinds = min(channels, 3 + 3 * TYPES) if channels > 3 else 3  # of layers
    layers = [[Image.new("L", (columns, rows)) for _ in planes] for _ in range(kinds)]
    draws = [[ImageDraw.Draw(layer) for layer in of_kind] for of_kind in layers]
    of_types = np.random.default_rng((seed, 1))
    count = rows * columns // 1800
    crowd = _noise(rng, shape, 6)  # where cells gather
    for _ in range(count):
        x, y = rng.uniform(0, columns), rng.uniform(0, rows)
        depth, radius, turn = rng.integers(len(planes)), rng.uniform(8, 13), rng.uniform(0.7, 1.3)
        granules = rng.normal(0, 1.1 * radius, (int(rng.integers(2, 9)), 2))
        shade = int(rng.integers(140, 255))
        if crowd[int(y), int(x)] < 0.42:
            continue
        width, height = radius * turn, radius / turn
        body = (x - 2 * width, y - 2 * height, x + 2 * width, y + 2 * height)
        nucleus = (x - width, y - height, x + width, y + height)
        own = 3 + 3 * int(of_types.integers(TYPES))
        for number in (0, 1, 2, *range(own, min(own + 3, kinds))):
            draw = draws[number][depth]
            if number % 3 == 0:
                draw.ellipse(nucleus, shade)
            elif number % 3 == 1:
                draw.ellipse(body, shade // 2)
                draw.ellipse(nucleus, shade // 5)
            else:
                for dx, dy in granules:
                    draw.ellipse((x + dx - 2, y + dy - 2, x + dx + 2, y + dy + 2), shade)
    picture = np.empty((rows, columns, channels * len(planes)), np.uint16)
    for channel in range(channels):
        of_kind = layers[channel if channel < 3 else 3 + (channel - 3) % (3 * TYPES)]
        for plane, z in enumerate(planes):
            light = np.zeros(shape, np.float32)
            for layer, own_z in zip(of_kind, planes, strict=True):
                blurred = layer.filter(ImageFilter.GaussianBlur(0.8 + BLUR * abs(own_z - z)))
                light += np.asarray(blurred, np.float32)
            light = 200 + 30 * light
            light += rng.standard_normal(shape, np.float32) * np.sqrt(light)
            picture[..., channel * len(planes) + plane] = light.clip(0, 65535)
    return picture


def draw_label(shape: tuple[int, int], lines: list[str]) -> NDArray[np.uint8]:
    """Draw a paper label with text and a bar code, upright, shape (rows, columns, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    rows, columns = shape
    image = Image.new("RGB", (columns, rows), (250, 249, 244))
    draw = ImageDraw.Draw(image)
    margin = max(2, columns // 16)
    size = (columns - 2 * margin) * 2 // max(8, *(len(line) + 2 for line in lines))
    size = max(6, min(size, rows // (2 * len(lines) + 1)))
    font = ImageFont.load_default(size)
    y = margin
    for line in lines:
        draw.text((margin, y), line, fill=(20, 20, 30), font=font)
        y += size * 5 // 4
    bars = np.random.default_rng(sum(map(ord, "".join(lines)))).integers(0, 2, 64)
    width = max(1, (columns - 2 * margin) // len(bars))
    for i in np.flatnonzero(bars).tolist():
        left = margin + i * width
        bottom = max(y, rows - margin)
        draw.rectangle((left, y, left + width - 1, bottom), fill=(20, 20, 30))
    return np.asarray(image)
