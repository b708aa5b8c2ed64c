"""Zarr documents: metadata of arrays and groups as JSON values, and arrays of one chunk."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr

    from dicomslide.labelled.parts import Parts

__all__ = ["array_document", "chunk_of", "group_document"]


def group_document(parts: Parts) -> dict[str, Any]:
    """Return the metadata of a group, with the names of coordinates as xarray reads them."""
    names = " ".join(map(str, parts.coords))
    attributes = _plain(parts.attrs) | ({"coordinates": names} if names else {})
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_document(variable: xr.Variable, separator: str) -> dict[str, Any]:
    """Return the metadata of a variable.

    Parameters
    ----------
    variable : xarray.Variable
        A virtual array; or values in memory, which are stored as one chunk: see :func:`chunk_of`.
    separator : {".", "/"}
        Between the indices in the keys of chunks.

    """
    virtual = getattr(variable.data, "metadata", None)
    document = _whole_document(variable) if virtual is None else virtual.to_dict()
    return document | {
        "attributes": _plain(variable.attrs),
        "dimension_names": [str(dim) for dim in variable.dims],
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
    }


def _whole_document(variable: xr.Variable) -> dict[str, Any]:
    is_text = variable.dtype.kind == "O"
    codec: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(variable.shape),
        "data_type": "string" if is_text else variable.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(1, length) for length in variable.shape]},
        },
        "fill_value": "" if is_text else np.zeros((), variable.dtype).item(),
        "codecs": [{"name": "vlen-utf8"} if is_text else codec],
    }


def chunk_of(variable: xr.Variable) -> bytes:
    """Return the only chunk of a variable in memory, encoded as its document says."""
    if variable.dtype.kind != "O":
        little = variable.dtype.newbyteorder("<")
        return np.ascontiguousarray(variable.values, little).tobytes()
    texts = [str(text).encode() for text in np.asarray(variable.values).ravel().tolist()]
    sized = (len(text).to_bytes(4, "little") + text for text in texts)
    return len(texts).to_bytes(4, "little") + b"".join(sized)


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes as values of JSON types."""
    return {str(name): _as_json(value) for name, value in attrs.items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    json.dumps(value)  # raises a TypeError for what JSON hasn't
    return value
