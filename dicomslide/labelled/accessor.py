"""Accessor ``slide`` of xarray's arrays, datasets and trees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import xarray as xr

from dicomslide.labelled.channel_coordinates import channels_restored
from dicomslide.labelled.coordinates import ONE_PLANE, restored, step_of
from dicomslide.labelled.match import match
from dicomslide.labelled.name_index import SAME
from dicomslide.labelled.presentation import channel_displays

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from matplotlib.axes import Axes

    from dicomslide.labelled.match import Method
    from dicomslide.labelled.presentation import ChannelDisplay

__all__ = ["SlideAccessor", "SlideTreeAccessor"]


@xr.register_dataset_accessor("slide")  # type: ignore[no-untyped-call]
@xr.register_dataarray_accessor("slide")  # type: ignore[no-untyped-call]
class SlideAccessor:
    """Spacing, extent and index of an array or dataset with coordinates in mm: ``array.slide``.

    Parameters
    ----------
    data : xarray.DataArray or xarray.Dataset
        Data opened by the engine, also after it was computed, coarsened, or saved and opened
        again.

    """

    def __init__(self, data: xr.DataArray | xr.Dataset) -> None:
        self._data = data

    def restore(self, *, frame_of_reference_uid: str | None = None) -> xr.DataArray | xr.Dataset:
        """Return the data with the indexes that the engine returns: in mm, and of channels.

        Files hold coordinates, but no indexes: opened again, ``x``, ``y`` and ``z`` have xarray's
        default index, for which a slice has a direction and a number has to be exact. ``coarsen``
        and ``interp`` make default indexes, too. The spacing of an existing
        :class:`~dicomslide.SlideIndex` is kept.

        Parameters
        ----------
        frame_of_reference_uid : str, optional
            Frame of Reference UID of ``x`` and ``y``, by default that of their attributes. It is
            needed, for example, for an array that was registered onto a slide.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The data with a :class:`~dicomslide.SlideIndex` of ``x``, ``y`` and ``z``, and with
            indexes of the identifiers, names and wavelengths of channels; no pixels are read.

        Raises
        ------
        ValueError
            When none of these is a coordinate in mm.

        """
        coords = restored(self._data, frame_of_reference_uid)
        if coords is None:
            found = {
                name: str(coord.attrs.get("units", coord.dtype))
                for name, coord in self._data.coords.items()
                if name in self._data.dims
            }
            raise ValueError(f"x, y or z in mm is needed; the coordinates are {found}")
        return self._data.assign_coords(coords).assign_coords(channels_restored(self._data))

    def sel(
        self,
        indexers: Mapping[Any, Any] | None = None,
        method: Literal["nearest"] | None = None,
        tolerance: float | None = None,
        **labels: Any,
    ) -> xr.DataArray | xr.Dataset:
        """Select as xarray's ``sel`` does, also by what has no dim since there is only one of it.

        Slides of one focal plane have no dim ``z``, and those of one channel none of channels,
        unless they are opened with ``squeeze=False``; xarray can't select by such coordinates. Here
        they are compared: ``sel(z=0)`` is valid for a stack and for a single plane.

        Parameters
        ----------
        indexers : mapping, optional
            Values by the name of the coordinate; or as keywords.
        method, tolerance
            See ``xarray.DataArray.sel``.
        **labels
            Values by the name of the coordinate.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The selected data; no pixels are read.

        Raises
        ------
        KeyError
            When nothing has the value; the only focal plane, when it is more than 0.5 µm away.

        """
        wanted = {**(indexers or {}), **labels}
        coords = self._data.coords
        only = {name for name in wanted if name in coords and not coords[name].ndim}
        for name in only:
            value = coords[name].item()
            extent = tolerance
            if extent is None:
                extent = math.inf if method else ONE_PLANE / 2 if name == "z" else 0.0
            if not _selects(wanted[name], value, extent):
                raise KeyError(f"no {name} {wanted[name]!r}; the only one is {value!r}")
        rest = {name: label for name, label in wanted.items() if name not in only}
        return self._data.sel(rest, method=method, tolerance=tolerance) if rest else self._data

    def match(
        self,
        like: xr.DataArray | xr.Dataset,
        method: Method = "mean",
        *,
        fill_value: Any = None,
    ) -> xr.DataArray:
        """Resample the array onto the grid of another one, such as a mask onto an image.

        Parameters
        ----------
        like : xarray.DataArray or xarray.Dataset
            Array with the grid: ``y`` and ``x`` in mm, evenly spaced. Its values aren't read.
        method : {"mean", "nearest", "majority", "linear"}, default: "mean"
            ``"mean"``: mean, weighted by area, of the pixels that a new pixel covers, without NaN
            (for bool a fraction, float32). ``"nearest"``: pixel that contains the centre of the new
            pixel. ``"majority"``: value that covers the largest part of the new pixel, the lowest
            one of several. ``"linear"``: interpolation between the four centres around that of the
            new pixel, which isn't a mean where the new grid is coarser. Integers are rounded,
            halves up.
        fill_value : scalar, optional
            Value of pixels outside the array; by default NaN, 0 for integers, False for bool.

        Returns
        -------
        xarray.DataArray
            Lazy (dask), in the chunks of `like`; with ``y`` and ``x`` of `like`, and all
            other dims unchanged. Positions in mm are kept: nothing is registered.

        Raises
        ------
        GridError
            When the frames of reference differ.
        ValueError
            When `method` isn't one of these, or there are no evenly spaced coordinates in mm.
        TypeError
            When this is a dataset: match its variables.

        """
        if not isinstance(self._data, xr.DataArray):
            raise TypeError("match() takes an array: dataset[name].slide.match(...)")
        return match(self._data, like, method, fill_value)

    def channel_displays(self) -> tuple[ChannelDisplay, ...]:
        """Return names, colours and windows in which the channels are displayed.

        A colour is the one that the header recommends: the brightest of an optical path's Palette
        Color Lookup Table. Otherwise it is that of a fluorochrome or a colour in the name of the
        channel (DAPI is blue); of the wavelength of its emission; or, by a typical distance, of its
        illumination. A channel of which nothing is known has a colour that no other channel has, as
        long as there is one; if it is the only channel, white.

        Returns
        -------
        tuple of ChannelDisplay
            One for each channel, with the attributes ``name``, ``color`` (``"#RRGGBB"``),
            ``valid_range`` (of Bits Stored; None for real numbers) and ``window`` (recommended by
            the header; None where it recommends none). No pixels are read.

        Raises
        ------
        TypeError
            When this is a dataset: take one of its variables.

        """
        if not isinstance(self._data, xr.DataArray):
            raise TypeError("channel_displays() takes an array: dataset[name].slide")
        return channel_displays(self._data)

    def plot(self, *, ax: Axes | None = None, scale_bar: bool = True, **options: Any) -> Axes:
        """Plot an image with axes in mm, a scale bar, and a title of its channels and spacing.

        Channels are blended in their colours.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to plot into; by default the current ones.
        scale_bar : bool, default: True
            Whether to draw a scale bar of a round length.
        **options
            ``colors``, ``limits`` and ``gamma`` of channels: see
            :func:`dicomslide.recipes.composite`.

        Returns
        -------
        matplotlib.axes.Axes
            The axes.

        Raises
        ------
        ImportError
            When matplotlib isn't installed.
        TypeError
            When this is a dataset: take one of its variables.
        ValueError
            When there are dims other than y, x, and one of channels or samples, or no coordinates
            in mm.

        """
        from dicomslide.labelled.plots import plot_image

        if not isinstance(self._data, xr.DataArray):
            raise TypeError("plot() takes an array: dataset[name].slide.plot()")
        return plot_image(self._data, ax=ax, scale_bar=scale_bar, **options)

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance between pixels along (x, y) in mm, from their coordinates.

        Raises
        ------
        ValueError
            When there are no coordinates in mm, or pixels aren't evenly spaced.

        """
        return abs(step_of(self._data, "x")), abs(step_of(self._data, "y"))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) of the outer edges of the pixels, in mm.

        Raises
        ------
        ValueError
            When there are no pixels, no coordinates in mm, or pixels aren't evenly spaced.

        """
        (x_min, x_max), (y_min, y_max) = (self._edges(dim) for dim in ("x", "y"))
        return x_min, y_min, x_max, y_max

    def _edges(self, dim: str) -> tuple[float, float]:
        half = abs(step_of(self._data, dim)) / 2
        values = self._data[dim].values
        return float(values.min()) - half, float(values.max()) + half


def _selects(label: Any, value: Any, extent: float) -> bool:
    """Whether a label, or an interval of numbers, selects the only value of a coordinate."""
    if isinstance(label, slice):
        bounds = sorted(each for each in (label.start, label.stop) if each is not None)
        if len(bounds) == 2:
            return bool(bounds[0] - extent <= value <= bounds[1] + extent)
        return not bounds or bool(value >= bounds[0] if label.stop is None else value <= bounds[0])
    if isinstance(value, str) or isinstance(label, str):
        return bool(label == value)
    apart = abs(float(label) - value)
    return apart <= max(extent, SAME * abs(value))


@xr.register_datatree_accessor("slide")  # type: ignore[no-untyped-call]
class SlideTreeAccessor:
    """Indexes in mm of all nodes of a tree: ``tree.slide``.

    Parameters
    ----------
    tree : xarray.DataTree
        Tree opened by the engine, also after it was saved and opened again.

    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def restore(self, *, frame_of_reference_uid: str | None = None) -> xr.DataTree:
        """Return the tree with indexes in mm in each node that has coordinates in mm.

        Parameters
        ----------
        frame_of_reference_uid : str, optional
            See :meth:`SlideAccessor.restore`.

        Returns
        -------
        xarray.DataTree
            The tree with new indexes; no pixels are read.

        Raises
        ------
        ValueError
            When no node has coordinates in mm.

        """
        datasets: dict[str, xr.Dataset] = {}
        found = False
        for node in self._tree.subtree:
            dataset = node.to_dataset(inherit=False)
            coords = restored(dataset, frame_of_reference_uid)
            found = found or coords is not None
            path = node.relative_to(self._tree)
            restored_here = dataset if coords is None else dataset.assign_coords(coords)
            datasets[path] = restored_here.assign_coords(channels_restored(dataset))
        if not found:
            raise ValueError("no node has x, y or z in mm")
        return xr.DataTree.from_dict(datasets, name=self._tree.name)
