"""The command ``dicomslide demo``: measures the tissue of a slide, crops and draws a region."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.display.plots import add_scale_bar, show_picture
from dicomslide.errors import MetadataError
from dicomslide.recipes import area, tissue_mask, tissue_threshold
from dicomslide.recipes.tissue import chroma

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from matplotlib.axes import Axes

    from dicomslide.slide.slide import Slide

__all__ = ["run"]

SYNTHETIC_SHAPE = (8192, 10240)
SYNTHETIC_DOWNSAMPLES = (1, 4, 8, 16)
CHUNK_SIZE = "12MiB"
"""dask's ``array.chunk-size`` for ``chunks="auto"``: about 2,048² pixels in colour."""
CELL_SIZES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01)
"""Candidate edges in mm of the cells whose tissue fraction is shown; the largest that fits
3.5 times into the shorter edge of the slide is used."""


def run(slide: Slide | None, output: Path) -> None:
    """Print the tissue area of a slide, and save three pictures of it.

    Parameters
    ----------
    slide : Slide or None
        The slide; None writes and opens a synthetic slide in ``output / "slide"``.
    output : pathlib.Path
        Folder of ``slide.png``, ``tissue.png`` and ``region.png``, created if absent.

    Raises
    ------
    ImportError
        When matplotlib isn't installed. (scikit-image is needed to import this module.)
    MetadataError
        When the slide has no image with an upright position in mm.

    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ImportError(
            "the demo needs matplotlib, which isn't installed: pip install 'dicomslide[plot]'"
        ) from None
    mpl.use("Agg")
    import dask.base
    import xarray as xr
    from dask.diagnostics.progress import ProgressBar

    from dicomslide.slide.opening import open_slide

    output.mkdir(parents=True, exist_ok=True)
    if slide is None:
        _write_synthetic(output / "slide")
        slide = open_slide(output / "slide")
    with dask.config.set({"array.chunk-size": CHUNK_SIZE}):
        tree = xr.open_datatree(
            slide,  # type: ignore[arg-type]  # xarray's stubs know paths only
            engine="dicomslide",
            chunks="auto",
            associated=True,
        )
    print(f"\nxr.open_datatree(slide, engine='dicomslide', chunks='auto')\n{tree}\n")

    levels = [
        node.image
        for name, node in tree.children.items()
        if name.startswith("level_") and "image" in node
    ]
    if not levels or "x" not in levels[0].dims:
        raise MetadataError(
            f"{slide.name}: no image has an upright position in mm, which the demo needs"
        )
    image, coarsest = (
        level.isel({dim: 0 for dim in ("channel", "z") if dim in level.dims})
        for level in (levels[0], levels[-1])
    )
    threshold = float(tissue_threshold(coarsest))
    mask = tissue_mask(image, threshold)
    cell = next((c for c in CELL_SIZES if min(_extent(image)) >= 3.5 * c), CELL_SIZES[-1])
    spacing = dict(zip(("x", "y"), image.slide.spacing, strict=True))
    windows = {dim: max(1, round(cell / size)) for dim, size in spacing.items()}
    cells = mask.astype(np.uint32).coarsen(windows, boundary="trim").sum()
    print(f"tissue mask over level 0 ({mask.sizes['y']:,} × {mask.sizes['x']:,} pixels) with dask")
    with ProgressBar(dt=0.5):  # type: ignore[no-untyped-call]
        start = time.perf_counter()
        counts, tissue = dask.base.compute(cells, area(mask))  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - start
    width, height = _extent(image)
    fraction = counts / (windows["y"] * windows["x"])
    print(
        f"tissue: {float(tissue) / (width * height):.1%} of {width:.3g} × {height:.3g} mm,"
        f" {float(tissue):.3g} mm²"
        f" ({mask.size / seconds / 1e6:.0f} million pixels a second)"
    )
    print(f"tissue fraction in cells of {cell:g} × {cell:g} mm (y in mm down, x in mm across):")
    print(fraction.round(2).to_pandas().rename("{:.2f}".format, axis=0).rename(
        "{:.2f}".format, axis=1).to_string())  # fmt: skip

    region = _region(image, fraction)
    print(f"\nregion: {region.sizes['y']} × {region.sizes['x']} pixels around"
          f" x = {float(region.x.mean()):.3f} mm, y = {float(region.y.mean()):.3f} mm")  # fmt: skip
    for path in _draw(slide, tree, threshold, fraction, cell, region, output):
        print(f"saved {path}")


def _write_synthetic(folder: Path) -> None:
    from dicomslide.testing import write_slide

    rows, columns = SYNTHETIC_SHAPE
    print(f"writing a synthetic slide of {rows:,} × {columns:,} pixels to {folder}")
    write_slide(folder, shape=SYNTHETIC_SHAPE, downsamples=SYNTHETIC_DOWNSAMPLES)


def _extent(image: xr.DataArray) -> tuple[float, float]:
    """Return (width, height) in mm."""
    x_min, y_min, x_max, y_max = image.slide.extent
    return x_max - x_min, y_max - y_min


def _region(image: xr.DataArray, fraction: xr.DataArray) -> xr.DataArray:
    """Return a square of at most 640 pixels around the cell with the most tissue, cropped in mm."""
    inner = fraction.isel(y=slice(1, -1), x=slice(1, -1)) if min(fraction.shape) > 2 else fraction
    if not inner.size:  # the slide is smaller than a cell
        return image.load()
    best = inner.isel(inner.argmax(...))
    half = min(320 * image.slide.spacing[0], *(edge / 3 for edge in _extent(image)))
    x, y = float(best.x), float(best.y)
    return image.sel(x=slice(x - half, x + half), y=slice(y - half, y + half)).load()


# -- drawing ---------------------------------------------------------------------------------


def _draw(
    slide: Slide,
    tree: xr.DataTree,
    threshold: float,
    fraction: xr.DataArray,
    cell: float,
    region: xr.DataArray,
    output: Path,
) -> list[Path]:
    from matplotlib.figure import Figure

    image = slide.levels[0].image
    source = next(
        (level.image for level in reversed(slide.levels) if max(level.size) >= 900), image
    )
    picture = source._picture(1200)
    bounds = image.physical_bounds
    paths = []

    def save(figure: Figure, name: str) -> None:
        paths.append(output / name)
        figure.savefig(paths[-1], dpi=110)

    associated = [tree[name] for name in ("overview", "label") if name in tree.children]
    figure = Figure(figsize=(5 + 4 * len(associated), 6.5), layout="constrained")
    panels = figure.subplots(1, 1 + len(associated), squeeze=False)[0]
    for axes, node in zip(panels, associated, strict=False):
        if "x" in node.image.dims:
            node.image.plot.imshow(ax=axes)
            axes.set(aspect="equal", title=node.name)
            if node.name == "overview":
                x_min, y_min, x_max, y_max = bounds
                axes.add_patch(_rectangle(x_min, y_min, x_max - x_min, y_max - y_min))
        else:
            axes.imshow(node.image.values)
            axes.set_title(str(node.name))
    show_picture(panels[-1], picture, bounds)
    panels[-1].set_title(f"{slide.container_identifier or 'slide'}, {source.flavor.lower()}")
    add_scale_bar(panels[-1])
    save(figure, "slide.png")

    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    show_picture(axes, picture, bounds)
    stained = (chroma(picture) if picture.ndim == 3 else picture) > threshold
    height, width = stained.shape
    axes.contour(
        np.linspace(bounds[0], bounds[2], width),
        np.linspace(bounds[3], bounds[1], height),
        stained,
        levels=[0.5],
        colors="tab:green",
        linewidths=0.8,
    )
    _cells(axes, fraction, cell)
    width_mm, height_mm = _extent(region)
    axes.add_patch(_rectangle(float(region.x[0]), float(region.y[-1]), width_mm, height_mm))
    axes.set(xlim=(bounds[0], bounds[2]), ylim=(bounds[1], bounds[3]))
    axes.set_title(f"tissue (outlined) and tissue fraction in cells of {cell:g} × {cell:g} mm")
    add_scale_bar(axes)
    save(figure, "tissue.png")

    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    if "sample" in region.dims:
        region.plot.imshow(ax=axes)
    else:
        region.plot.imshow(ax=axes, cmap="gray")
    axes.set_title("region of interest")
    add_scale_bar(axes)
    save(figure, "region.png")
    return paths


def _cells(axes: Axes, fraction: xr.DataArray, cell: float) -> None:
    """Draw the borders of the cells and the tissue fraction of each."""
    style: dict[str, Any] = dict(color="0.35", linewidth=0.6, linestyle=":")
    half = cell / 2
    for x in fraction.x.values:
        axes.axvline(x - half, **style)
        axes.axvline(x + half, **style)
    for y in fraction.y.values:
        axes.axhline(y - half, **style)
        axes.axhline(y + half, **style)
    if fraction.size > 150:  # no room for numbers
        return
    box = dict(boxstyle="round", facecolor="white", edgecolor="none", alpha=0.75)
    for y in fraction.y.values:
        for x in fraction.x.values:
            text = f"{float(fraction.sel(x=x, y=y)):.0%}"
            axes.annotate(text, (x, y), ha="center", va="center", bbox=box)


def _rectangle(x: float, y: float, width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, fill=False, edgecolor="tab:blue", linewidth=1.5)
