"""One sharp image of several focal planes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.recipes.grid import coords_of
from dicomslide.recipes.label_maps import checked_array
from dicomslide.recipes.tile_checks import checked_integer

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["focus_stack"]


def focus_stack(image: xr.DataArray, *, window: int = 15) -> xr.Dataset:
    """Return the sharpest focal plane at each pixel, and its pixels.

    The sharpness of a plane is the mean of the squared Laplacian in a window around a pixel. Where
    planes are equally sharp, as on glass, the first one is the best.

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``z``, ``y``, ``x``, and optionally ``sample`` or ``channel``. The samples of a colour
        image have one best plane; each channel has its own.
    window : int, default: 15
        Pixels along an edge of the window, odd.

    Returns
    -------
    xarray.Dataset
        ``image``, with the data type and dims of the image except ``z``; and ``plane``, the
        zero-based index along ``z`` of the best plane, without ``sample``. Lazy if the image is:
        a task for each chunk, with a halo of half a window.

    Raises
    ------
    TypeError
        When the image is no labelled array.
    ValueError
        When the image has no dims ``z``, ``y`` and ``x``, or the window isn't a positive odd
        number.

    """
    import dask.array as da
    import xarray as xr

    window = checked_integer(window, "window")
    if window % 2 == 0:
        raise ValueError(f"window {window}: expected an odd number of pixels")
    image = checked_array(image, dims=())
    if not {"z", "y", "x"} <= set(image.dims):
        raise ValueError(
            f"the image has the dims {tuple(map(str, image.dims))}; expected z, y and x: open it"
            " with squeeze=False if it has one focal plane"
        )
    samples = ["sample"] if "sample" in image.dims else []
    others = [dim for dim in image.dims if dim not in ("z", "y", "x", "sample")]
    ordered = image.transpose(*others, "z", *samples, "y", "x")
    if image.chunks is None:
        data: Any = ordered.values
        plane = _sharpest(data, window=window, has_samples=bool(samples))
    else:
        data = ordered.chunk({"z": -1, **dict.fromkeys(samples, -1)}).data
        halo = window // 2 + 1
        lead = len(others)
        depth = {data.ndim - 2: halo, data.ndim - 1: halo}
        plane = da.overlap.overlap(  # type: ignore[no-untyped-call]
            data, depth, dict.fromkeys(depth, "reflect"), allow_rechunk=True
        ).map_blocks(
            _sharpest,
            window=window,
            has_samples=bool(samples),
            drop_axis=list(range(lead, data.ndim - 2)),
            dtype=np.int16,
        )
        plane = da.overlap.trim_internal(  # type: ignore[no-untyped-call]
            plane, {plane.ndim - 2: halo, plane.ndim - 1: halo}, "reflect"
        )
        data = data.rechunk({axis: plane.chunks[axis - data.ndim] for axis in depth})
    best = xr.DataArray(plane, dims=(*others, "y", "x"))
    z_last = xr.DataArray(data, dims=ordered.dims)
    fused = xr.apply_ufunc(
        _taken,
        z_last,
        best,
        input_core_dims=[["z"], []],
        dask="parallelized",
        output_dtypes=[image.dtype],
    )
    kept = [dim for dim in image.dims if dim != "z"]
    result = xr.Dataset(
        {
            "image": fused.transpose(*kept).assign_attrs(image.attrs),
            "plane": best.transpose(*(dim for dim in kept if dim != "sample")).assign_attrs(
                long_name="focal plane's index"
            ),
        }
    )
    return result.assign_coords(coords_of(image, kept))


def _sharpest(pixels: NDArray[Any], *, window: int, has_samples: bool) -> NDArray[np.int16]:
    """Return the index of the sharpest plane, shape (..., rows, columns)."""
    from scipy.ndimage import laplace, uniform_filter

    axes = (-2, -1)
    sharp = pixels.astype(np.float32)
    if has_samples:
        sharp = sharp.mean(axis=-3)
    sharp = np.square(laplace(sharp, mode="reflect", axes=axes))
    sharp = uniform_filter(sharp, window, mode="reflect", axes=axes)
    return sharp.argmax(axis=-3).astype(np.int16)


def _taken(pixels: NDArray[Any], plane: NDArray[np.int16]) -> NDArray[Any]:
    """Return the pixels of the best plane; `pixels` have the planes along the last axis."""
    index = plane[..., None].astype(np.intp)
    index = np.broadcast_to(index, (*pixels.shape[:-1], 1))
    return np.take_along_axis(pixels, index, axis=-1)[..., 0]
