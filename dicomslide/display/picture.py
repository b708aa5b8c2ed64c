"""Pictures of a slide for people: upright, in colours that a screen shows, with scale."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MemoryLimitError
from dicomslide.options import check_memory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dicomslide.header.geometry import SlideGeometry
    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["add_scale_bar", "as_displayed", "picture_of", "plot_picture", "show_picture"]

BAND = 64 * 2**20
"""Bytes that are decoded at once."""
MOST_IN_A_ROW = 4 * 2**30
"""Bytes of which one row of a picture is made: no slide has as many."""


def picture_of(
    reader: MatrixReader, geometry: SlideGeometry | None, size: int
) -> NDArray[np.uint8]:
    """Return an upright picture of a whole matrix.

    Parameters
    ----------
    reader : MatrixReader
        Reads the matrix; any size is read in bands and reduced.
    geometry : SlideGeometry or None
        Where it lies on the slide; as stored where nothing says.
    size : int
        Pixels along the longer edge; never more than the matrix has.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, 3) or (rows, columns), uint8; the caller's own.

    """
    from PIL import Image

    orientation = None if geometry is None else geometry.orientation
    if geometry is not None and orientation is None:
        x_min, y_min, _, _ = geometry.bounds
        check_memory(math.prod(geometry.region_shape(geometry.physical_size)), "an oblique image")
        pixels = reader.read_grid(geometry.region((x_min, y_min), geometry.physical_size))
    else:
        pixels = _reduced(reader, max(1, max(reader.shape[:2]) // size))
        pixels = orientation.apply(pixels) if orientation is not None else pixels
    pixels = as_displayed(pixels)
    height, width = pixels.shape[:2]
    if geometry is not None:  # pixels needn't be square, millimetres are
        width_mm, height_mm = geometry.physical_size
        scale = min(size, max(reader.shape[:2])) / max(width_mm, height_mm)
        width, height = (max(1, round(edge * scale)) for edge in (width_mm, height_mm))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    # a copy: what Pillow lends can't be written to
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))


def _reduced(reader: MatrixReader, factor: int) -> NDArray[Any]:
    """Read a whole matrix in bands, and average boxes of `factor` pixels squared."""
    rows, columns, samples = reader.shape
    wide = min(factor, columns)  # of a matrix that is narrower than its picture's pixels
    factor = min(factor, rows)
    across = columns // wide
    tile_rows = reader.layout.grid.tile_rows
    per_row = columns * samples * reader.dtype.itemsize
    if factor * per_row > MOST_IN_A_ROW:
        raise MemoryLimitError(
            f"{reader.source.name}: a row of a picture is made of {factor * per_row:,} bytes; a"
            " larger picture takes less at once"
        )
    # at the edges of a band, tiles are read twice, unless boxes and tiles end there alike
    most = max(BAND // per_row, 2 * tile_rows)
    both = math.lcm(factor, tile_rows)
    unit = both if both <= most else factor
    step = max(unit, most // unit * unit)
    background = np.asarray(reader.background, reader.dtype)
    bands = []
    for top in range(0, rows // factor * factor, step):
        bottom = min(top + step, rows)
        down = (bottom - top) // factor
        if not _has_frames(reader, top, bottom):
            bands.append(np.full((down, across, samples), background, reader.dtype))
            continue
        band = reader.read((slice(top, bottom), slice(None), slice(None)))
        boxes = band[: down * factor, : across * wide]
        bands.append(_averaged(boxes, (factor, wide)) if max(factor, wide) > 1 else boxes)
    return np.concatenate(bands)


def _averaged(pixels: NDArray[Any], box: tuple[int, int]) -> NDArray[Any]:
    """Average boxes of (rows, columns), of which there are whole ones only."""
    rows, columns, samples = pixels.shape
    down, across = box
    if pixels.dtype == np.uint8:
        from PIL import Image

        image = Image.fromarray(pixels if samples > 1 else pixels[:, :, 0])
        reduced = np.asarray(image.reduce((across, down)))
        return reduced.reshape(rows // down, columns // across, samples)
    boxes = pixels.reshape(rows // down, down, columns // across, across, samples)
    means = boxes.mean(axis=(1, 3), dtype=np.float32)
    return (np.rint(means) if pixels.dtype.kind in "iu" else means).astype(pixels.dtype)


def _has_frames(reader: MatrixReader, top: int, bottom: int) -> bool:
    """Whether any tile of some rows is there."""
    grid = reader.layout.grid
    first, last = top // grid.tile_rows, (bottom - 1) // grid.tile_rows + 1
    return reader.has_frames(first * grid.shape[1], last * grid.shape[1])


def as_displayed(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels of shape (rows, columns, samples) as a screen shows them.

    Colour stays as it is; greys are stretched between their 0.1th and 99.9th percentile, or their
    lowest and highest value where these are one (of the finite ones: NaN is black, infinite values
    are at the ends); of one value only, 8 bits stay as they are. A single sample loses its dim.
    """
    is_grey = pixels.shape[2] == 1
    if is_grey:
        pixels = pixels[:, :, 0]
    if pixels.dtype == np.uint8 and (not is_grey or np.ptp(pixels) == 0):
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    values = pixels.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.1, 99.9)) if finite.size else (0.0, 1.0)
    if low == high and finite.size:  # few pixels are anything else: those are what there is to see
        low, high = finite.min(), finite.max()
    clipped = np.clip(np.nan_to_num(values, nan=low), low, high)
    return ((clipped / 2 - low / 2) / max(high / 2 - low / 2, 1e-12) * 255).astype(np.uint8)


def plot_picture(
    pixels: NDArray[Any],
    bounds: tuple[float, float, float, float],
    *,
    scale_bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Plot an upright picture with axes in mm; see :meth:`Slide.plot` and :func:`show_picture`."""
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise ImportError(
                "plot draws with matplotlib, which isn't installed: pip install 'dicomslide[plot]'"
            ) from None
        ax = plt.gca()
    show_picture(ax, pixels, bounds)
    if scale_bar:
        add_scale_bar(ax)
    return ax


def show_picture(
    axes: Axes, pixels: NDArray[Any], bounds: tuple[float, float, float, float]
) -> None:
    """Show an upright picture in its place: bounds are (x_min, y_min, x_max, y_max) in mm."""
    x_min, y_min, x_max, y_max = bounds
    grey = dict(cmap="gray") if pixels.ndim == 2 else {}
    axes.imshow(pixels, extent=(x_min, x_max, y_min, y_max), **grey)  # type: ignore[arg-type]
    axes.set_xlabel("x [mm]")
    axes.set_ylabel("y [mm]")


def add_scale_bar(axes: Axes, *, color: str = "black", unit: str | None = None) -> None:
    """Draw a scale bar, of a round length, into the lower left of axes in mm, or another unit.

    It holds in every direction: a millimetre of y is made as long as one of x.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        With x and y of the slide, such as those of ``image.plot.imshow()``.
    color : str, default: "black"
        Of the bar, and of its length in mm or µm above it.
    unit : str, optional
        In which x and y are: mm, µm (also um or micrometer), nm, cm or m. By default, the one in
        brackets at the end of their labels, as xarray writes them: "x [µm]"; mm where there is
        none.

    Raises
    ------
    ValueError
        When the unit is no length, or x and y are in different ones.

    Examples
    --------
    >>> plot = slide.to_dataset(1).image.plot.imshow()
    >>> dicomslide.add_scale_bar(plot.axes)

    """
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    mm = _millimeters_of(axes, unit)
    axes.set_aspect("equal")
    left, right = sorted(axes.get_xlim())
    bottom, top = sorted(axes.get_ylim())
    longest = mm * (right - left) / 4
    length = 10 ** math.floor(math.log10(longest))
    length *= max(m for m in (1, 2, 5) if m * length <= longest)
    x, y = left + 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    label = f"{length:g} mm" if length >= 0.5 else f"{length * 1000:g} µm"
    style: dict[str, Any] = dict(color=color, zorder=10)
    end = x + length / mm
    (bar,) = axes.plot([x, end], [y, y], linewidth=4, solid_capstyle="butt", **style)
    text = axes.annotate(
        label, ((x + end) / 2, y), (0, 5), textcoords="offset points", ha="center", **style
    )
    outline = "white" if sum(to_rgb(color)) < 1.5 else "black"  # seen on tissue and on glass
    bar.set_path_effects([withStroke(linewidth=6, foreground=outline)])
    text.set_path_effects([withStroke(linewidth=2, foreground=outline)])


MILLIMETERS = {
    "m": 1e3, "meter": 1e3, "metre": 1e3,
    "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "µm": 1e-3, "um": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3, "micron": 1e-3,
    "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
}  # fmt: skip
"""In a unit of length."""


def _millimeters_of(axes: Axes, unit: str | None) -> float:
    """Return how many mm a unit is, or that which the labels of axes name."""
    if unit is not None:
        return _millimeters(unit)
    labels = (axes.get_xlabel(), axes.get_ylabel())
    named = [re.search(r"[\[(]([^\])]*)[\])]\s*$", label) for label in labels]
    found = {_millimeters(each[1]) for each in named if each is not None}
    if len(found) > 1:
        raise ValueError(
            f"a scale bar holds in every direction: not of {labels[0]!r}, {labels[1]!r}"
        )
    return found.pop() if found else 1.0


def _millimeters(unit: str) -> float:
    name = unicodedata.normalize("NFKC", unit.strip()).replace("\N{GREEK SMALL LETTER MU}", "µ")
    for each in (name, name.removesuffix("s")):
        if each in MILLIMETERS:
            return MILLIMETERS[each]
    raise ValueError(
        f"{unit!r} is no length: give the one that x and y are in, add_scale_bar(..., unit='mm')"
    )
