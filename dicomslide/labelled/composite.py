"""Channels of fluorescence blended into one picture, lazily."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.display.blend import blend, check_gamma, rgb_of, robust_limits
from dicomslide.labelled.presentation import channel_displays

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["channel_dim", "composite", "limits_of"]


def channel_dim(image: xr.DataArray) -> str | None:
    """Return the name of the dim of channels; None where there is none.

    Raises
    ------
    ValueError
        When the pixels are colours, or there are dims other than y, x and one of channels.

    """
    others = [str(dim) for dim in image.dims if dim not in ("y", "x", "row", "column")]
    if "sample" in others:
        raise ValueError(
            "its pixels are colours, which aren't blended; expected dims (channel, y, x), not"
            f" {image.dims}"
        )
    if len(others) > 1:
        raise ValueError(
            f"dims {image.dims}: expected y, x and one of channels; select one of the others, such"
            " as image.isel(z=0)"
        )
    return others[0] if others else None


def composite(
    image: xr.DataArray,
    colors: Sequence[str] | None = None,
    limits: Any = "robust",
    gamma: float = 1.0,
) -> xr.DataArray:
    """Blend the channels of an image into a colour picture.

    Each channel is scaled between two limits, raised to the power of `gamma`, multiplied by its
    colour, and added.

    Parameters
    ----------
    image : xarray.DataArray
        Dims y, x, and one of channels in any position. Other dims, such as z, have to be selected.
    colors : sequence of str, optional
        Colour of the brightest value of each channel: ``"#RRGGBB"``, or a name such as
        ``"magenta"``. By default those of ``image.slide.channel_displays()``.
    limits : {"robust", "header"}, sequence or xarray.DataArray, default: "robust"
        Values of each channel that are darkest and brightest. ``"robust"``: the 1st and 99.8th
        percentile, for which all pixels are read once. An array, such as the same channels of a
        coarse level: robust limits of its pixels. ``"header"``: those that the header recommends,
        else the range of Bits Stored, without reading pixels. Or a pair for each channel, or one
        pair for all.
    gamma : float, default: 1.0
        Exponent of the brightness; below 1, dark structures are brighter.

    Returns
    -------
    xarray.DataArray
        Dims (y, x, sample), uint8, lazy if the image is; the coordinates of y and x, and the
        limits as the attribute ``limits``.

    Raises
    ------
    ValueError
        When the image has no channels to blend, there are other numbers of colours or limits than
        channels, or one isn't a colour or an ascending pair.

    Examples
    --------
    >>> coarse = tree["level_3"].image
    >>> recipes.composite(tree["level_0"].image, limits=coarse).sel(x=slice(10, 11))

    """
    import xarray as xr

    dim = channel_dim(image)
    if dim is None:
        image, dim = image.expand_dims("channel", 0), "channel"
    space = [each for each in image.dims if each != dim]
    image = image.transpose(dim, *space)
    shown = tuple(colors) if colors is not None else [d.color for d in channel_displays(image)]
    count = image.sizes[dim]
    if isinstance(colors, str) or len(shown) != count:
        raise ValueError(f"{len(shown)} colours for {count} channels: {colors!r}")
    for color in shown:
        rgb_of(color)
    ends = limits_of(image, limits)
    mixed = functools.partial(_blended, colors=shown, limits=ends, gamma=check_gamma(gamma))
    if image.chunks is not None:  # one task blends all channels of a place
        image = image.chunk({dim: -1})
    found: xr.DataArray = xr.apply_ufunc(
        mixed,
        image,
        input_core_dims=[[dim]],
        output_core_dims=[["sample"]],
        dask="parallelized",
        output_dtypes=[np.uint8],
        dask_gufunc_kwargs=dict(output_sizes={"sample": 3}),
    ).drop_attrs(deep=False)
    attrs = {"long_name": "composite", "limits": [list(pair) for pair in ends]}
    return found.assign_coords(sample=np.array(["r", "g", "b"])).assign_attrs(attrs)


def _blended(
    pixels: NDArray[Any],
    colors: Sequence[str],
    limits: Sequence[tuple[float, float]],
    gamma: float,
) -> NDArray[np.uint8]:
    return blend(list(np.moveaxis(pixels, -1, 0)), colors, limits, gamma)


def limits_of(image: xr.DataArray, limits: Any = "robust") -> list[tuple[float, float]]:
    """Return the values of each channel that are displayed darkest and brightest.

    See :func:`composite` for the parameters.
    """
    dim = channel_dim(image)
    count = 1 if dim is None else image.sizes[dim]
    if isinstance(limits, str):
        if limits not in ("robust", "header"):
            raise ValueError(f'limits {limits!r}: expected "robust", "header", pairs or an array')
        if limits == "header":
            return [
                display.window or display.valid_range or (0.0, 1.0)
                for display in channel_displays(image)
            ]
        limits = image
    if hasattr(limits, "dims"):
        own = channel_dim(limits)
        values = limits.transpose(own, ...).values if own else limits.values[None]
        if len(values) != count:
            raise ValueError(f"limits of {len(values)} channels for {count}")
        return [robust_limits(each) for each in values]
    try:
        pairs = np.asarray(limits, np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape == (2,):
        pairs = np.broadcast_to(pairs, (count, 2))
    is_pairs = pairs.shape == (count, 2) and np.isfinite(pairs).all()
    if not is_pairs or (pairs[:, 0] >= pairs[:, 1]).any():
        raise ValueError(
            f"limits {limits!r}: expected an ascending pair for each of {count} channels"
        )
    return [(float(low), float(high)) for low, high in pairs]
