"""What lies on a slide, by name: segmentations, maps and annotations; and what a caller adds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dicomslide.annotation.group import AnnotationGroup
from dicomslide.errors import GridError
from dicomslide.labelled.index import FRAME_OF_REFERENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from dicomslide.slide.arrays import SlideArrays

__all__ = ["Layer", "layers_of"]

ANNOTATIONS = "annotations"
"""Name of all bulk annotations together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """Arrays of one content at several resolutions, or shapes."""

    name: str
    arrays: tuple[xr.DataArray, ...] = ()
    """Dims ([channels,] y, x) in mm, from the finest to the coarsest; empty for shapes."""
    shapes: Any = None
    """An AnnotationGroup or a GeoDataFrame in mm; None for arrays."""

    def at(self, spacing: float) -> xr.DataArray:
        """Return the coarsest array that is as fine as a spacing in mm, else the finest."""
        fine = [each for each in self.arrays if each.slide.spacing[0] <= spacing * (1 + 1e-6)]
        return max(fine or self.arrays[:1], key=lambda each: float(each.slide.spacing[0]))


def layers_of(slide: SlideArrays, tree: xr.DataTree, overlay: Any = None) -> list[Layer]:
    """Return what is drawn over a slide.

    Parameters
    ----------
    slide : Slide
        The slide, for its annotations.
    tree : xarray.DataTree
        The slide's tree, upright.
    overlay : sequence or mapping, optional
        Names of variables such as ``"segmentation"``, labels of annotation groups,
        ``"annotations"`` for all groups, xarray.DataArray in mm, AnnotationGroup or
        geopandas.GeoDataFrame in mm; a mapping names each. By default all that the slide has.

    Raises
    ------
    KeyError
        When the slide has nothing of a name.
    GridError
        When an array is in another frame of reference.
    ValueError
        When an array has no place in mm, or dims other than y, x and one of channels.
    TypeError
        When an overlay is of another type.

    """
    own = _arrays_of(tree)
    if overlay is None:
        return [*own.values(), *_groups(slide)]
    is_table = hasattr(overlay, "geometry") or hasattr(overlay, "dims")
    if is_table or isinstance(overlay, (str, AnnotationGroup)) or not isinstance(overlay, Iterable):
        overlay = [overlay]
    pairs: Iterable[tuple[Any, Any]]
    pairs = overlay.items() if isinstance(overlay, Mapping) else ((None, each) for each in overlay)
    found: list[Layer] = []
    for name, each in pairs:
        found += _layers(slide, own, each, name)
    return found


def _layers(slide: SlideArrays, own: dict[str, Layer], each: Any, name: str | None) -> list[Layer]:
    if isinstance(each, str):
        if each in own:
            return [dataclasses.replace(own[each], name=name or each)]
        groups = _groups(slide)
        if each == ANNOTATIONS and groups:
            return groups
        labelled = [layer for layer in groups if layer.name == each]
        if not labelled:
            there = [*own, *(layer.name for layer in groups)]
            raise KeyError(f"{slide.name}: nothing called {each!r} lies on it; there are {there}")
        return [dataclasses.replace(layer, name=name or each) for layer in labelled]
    if isinstance(each, AnnotationGroup):
        return [Layer(name or each.label or f"group {each.number}", shapes=each)]
    if hasattr(each, "geometry") and hasattr(each, "columns"):
        return [Layer(name or "shapes", shapes=each)]
    if hasattr(each, "dims") and hasattr(each, "coords"):
        return [Layer(name or str(each.name or "array"), (_checked(slide, each),))]
    raise TypeError(
        f"an overlay of type {type(each).__name__}: expected a name, an xarray.DataArray, an"
        " AnnotationGroup or a GeoDataFrame"
    )


def _checked(slide: SlideArrays, array: Any) -> xr.DataArray:
    """Return an array of a caller's, as it is drawn."""
    others = [dim for dim in array.dims if dim not in ("y", "x")]
    if not {"y", "x"} <= {*array.dims} or len(others) > 1:
        raise ValueError(f"an overlay has dims y, x in mm and at most one other, not {array.dims}")
    array.slide.spacing  # noqa: B018 - evenly spaced, in mm
    uid = array["x"].attrs.get(FRAME_OF_REFERENCE)
    if uid is not None and slide._frames and uid not in slide._frames:
        raise GridError(
            f"{array.name or 'an overlay'} is in the frame of reference {uid}, the slide in"
            f" {', '.join(sorted(slide._frames))}: register it, then"
            " array.slide.restore(frame_of_reference_uid=...)"
        )
    found: xr.DataArray = array.transpose(*others, "y", "x")
    return found


def _arrays_of(tree: xr.DataTree) -> dict[str, Layer]:
    """Return the variables of a tree other than images, by name."""
    found: dict[str, list[xr.DataArray]] = {}
    for name, node in tree.children.items():
        apart = re.sub(r"_level_\d+$", "", str(name))
        for variable, array in node.data_vars.items():
            is_apart = not str(name).startswith("level_")
            if str(variable).startswith("image") or not {"y", "x"} <= {*array.dims}:
                continue
            found.setdefault(apart if is_apart else str(variable), []).append(_plain(array))
    return {
        name: Layer(name, tuple(sorted(arrays, key=lambda each: each.slide.spacing[0])))
        for name, arrays in found.items()
    }


def _plain(array: xr.DataArray) -> xr.DataArray:
    """Return an array of its first focal plane."""
    return array.isel(z=0) if "z" in array.dims else array


def _groups(slide: SlideArrays) -> list[Layer]:
    groups: Sequence[AnnotationGroup] = slide.annotations()  # type: ignore[attr-defined]
    return [Layer(each.label or f"group {each.number}", shapes=each) for each in groups]
