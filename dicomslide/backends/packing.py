"""Values and arrays as bytes, for the index of a cohort: numbers, texts and raw arrays, no code."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.header import dicom
from dicomslide.header.tiling import FramePositions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    Cuts = list[tuple[int, str]]

__all__ = ["packed", "packed_header", "packed_positions", "unpacked", "unpacked_header",
           "unpacked_positions"]  # fmt: skip

SHARED = 1024
"""Bytes from which an ICC profile, which many headers have in common, is kept apart."""

_LENGTH = struct.Struct("<I")
_INTEGERS = ("|i1", "<i2", "<i4", "<i8")
_STORED = {*_INTEGERS, "<f8"}


def packed(values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return plain values, as JSON, and one-dimensional arrays of int64, uint8 or float64."""
    stored = {name: _shortest(array) for name, array in arrays.items()}
    listed = [(name, array.dtype.str, len(array)) for name, array in stored.items()]
    head = json.dumps([values, listed], separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(head)), head, *(a.tobytes() for a in stored.values())))


def unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the values and arrays of :func:`packed`.

    Integers of arrays are int64, except where they were bytes.

    Raises
    ------
    ValueError
        When it isn't what :func:`packed` returns.

    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        at = _LENGTH.size + length
        values, listed = json.loads(data[_LENGTH.size : at])
        arrays: dict[str, NDArray[Any]] = {}
        for name, dtype, count in listed:
            if dtype not in _STORED | {"|u1"}:
                raise ValueError(f"an array of {dtype!r}")
            array = np.frombuffer(data, dtype, count, at)
            arrays[name] = array.astype(np.int64) if array.dtype.kind == "i" else array
            at += array.nbytes
    except (struct.error, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if at != len(data):
        raise ValueError(f"{len(data)} bytes, expected {at}")
    return values, arrays


def _shortest(array: NDArray[Any]) -> NDArray[Any]:
    """Return integers in the shortest type that holds them."""
    if array.dtype.kind != "i":
        return np.ascontiguousarray(array, "<f8" if array.dtype.kind == "f" else "|u1")
    least, most = (int(array.min()), int(array.max())) if len(array) else (0, 0)
    ranges = ((each, np.iinfo(each)) for each in _INTEGERS)
    return array.astype(next(t for t, each in ranges if each.min <= least and most <= each.max))


def packed_positions(
    positions: FramePositions,
) -> tuple[list[str] | None, dict[str, NDArray[Any]]]:
    """Return the names of channels, and positions of frames as arrays for :func:`packed`."""
    # differences, most of which are equal
    arrays = {
        "rows": np.diff(positions.rows, prepend=0),
        "columns": np.diff(positions.columns, prepend=0),
    }
    if positions.z is not None:
        arrays["z"] = positions.z
    if positions.channels is None:
        return None, arrays
    names, arrays["channels"] = np.unique(positions.channels, return_inverse=True)
    return names.tolist(), arrays


def unpacked_positions(names: list[str] | None, arrays: Mapping[str, Any]) -> FramePositions:
    """Return the positions of :func:`packed_positions`."""
    return FramePositions(
        rows=np.cumsum(arrays["rows"]),
        columns=np.cumsum(arrays["columns"]),
        z=arrays.get("z"),
        channels=None if names is None else np.array(names)[arrays["channels"]],
    )


def packed_header(
    head: bytes, dataset: Dataset, shared: dict[str, bytes]
) -> tuple[Cuts, NDArray[np.uint8]]:
    """Return a header as stored, without its ICC profiles.

    Parameters
    ----------
    head : bytes
        Encoded data set.
    dataset : pydicom.dataset.Dataset
        The same data set.
    shared : dict of str to bytes
        Receives the profiles by digest.

    Returns
    -------
    cuts : list of tuple of int and str
        Offset and digest of each profile.
    rest : numpy.ndarray
        The other bytes.

    """
    items = (dataset, *dicom.items(dataset, "OpticalPathSequence"))
    cuts: Cuts = []
    parts, at = [], 0
    for item in items:  # in the order of the bytes, but for a profile of the whole image
        value = item.get("ICCProfile")
        if not isinstance(value, bytes) or len(value) < SHARED:
            continue
        found = head.find(value, at)
        if found < 0:
            continue
        digest = hashlib.sha256(value).hexdigest()
        shared[digest] = value
        cuts.append((found, digest))
        parts.append(head[at:found])
        at = found + len(value)
    return cuts, np.frombuffer(b"".join((*parts, head[at:])), np.uint8)


def unpacked_header(cuts: Cuts, rest: NDArray[np.uint8], shared: Mapping[str, bytes]) -> bytes:
    """Return the header of :func:`packed_header`."""
    head, whole, taken = rest.tobytes(), bytearray(), 0
    for at, digest in cuts:
        count = at - len(whole)
        whole += head[taken : taken + count]
        taken += count
        whole += shared[digest]
    return bytes(whole + head[taken:])
