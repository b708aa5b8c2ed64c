"""Conversion of DICOM JSON (PS3.18 annex F) to data sets; bulk data aren't retrieved."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header.per_frame import positions_of_json
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset

__all__ = ["MOST_NESTED", "BulkData", "dataset_of_json", "frame_groups_of_json", "nesting_of"]

BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
NUMBER_VRS = frozenset({"FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})
TEXT_VRS = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI",
     "UR", "UT"}
)  # fmt: skip
PER_FRAME_GROUPS = "52009230"
NUMBER_OF_FRAMES = "00280008"
MOST_NESTED = 192
"""Upper bound on nested arrays and objects of JSON, which is three for each sequence.

Conversion is recursive. At Python's limit of recursion it would end anywhere, also in the finalizer
of an object that has nothing to do with it."""
BLOCK = 2**18
"""Bytes whose brackets are counted at once."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class BulkData(bytes):
    """Empty value with the URI of the bulk data."""

    uri: str = ""


def nesting_of(data: bytes | bytearray) -> int:
    """Return how many arrays and objects of JSON lie in one another at most.

    Strings are left out only where the depth with their brackets is out of bounds, because that
    takes longer than to parse the JSON. Text that closes brackets can hide as many levels.
    """
    depth = _depth_of(data)
    return _depth_of(STRING.sub(b"", data)) if depth > MOST_NESTED else depth


def _depth_of(data: bytes | bytearray) -> int:
    depth = most = 0
    for start in range(0, len(data), BLOCK):
        octets = np.frombuffer(data, np.uint8, min(BLOCK, len(data) - start), start) | 0x20
        # [ is { now, and ] is }
        brackets = octets[(octets == ord("{")) | (octets == ord("}"))]
        if brackets.size:
            depths = depth + np.cumsum(np.where(brackets == ord("{"), 1, -1))
            depth, most = int(depths[-1]), max(most, int(depths.max()))
    return most


def dataset_of_json(json: Mapping[str, Any]) -> Dataset:
    """Return the data set that DICOM JSON describes, without pixel data and per-frame groups.

    Bulk data become :class:`BulkData`, with the URI to retrieve them. Positions of the per-frame
    functional groups become the attribute `frame_positions` of the data set, because a data set for
    each frame would take most of the time.

    Raises
    ------
    MetadataError
        When the argument isn't DICOM JSON.

    """
    if not isinstance(json, dict):
        raise MetadataError(f"what should be an instance's DICOM JSON is a {type(json).__name__}")
    # some servers send the first number of float pixels only
    kept = {tag: element for tag, element in json.items() if not tag.startswith("7FE0")}
    groups = (kept.get(PER_FRAME_GROUPS) or {}).get("Value") or []
    try:
        count = (json.get(NUMBER_OF_FRAMES) or {}).get("Value") or [1]
        positions = positions_of_json(groups, int(count[0])) if groups else None
    except (MetadataError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return _dataset(kept)  # an error is raised when they are needed
    kept.pop(PER_FRAME_GROUPS, None)
    dataset = _dataset(kept)
    dataset.frame_positions = positions
    return dataset


def frame_groups_of_json(json: Mapping[str, Any], indices: Sequence[int]) -> list[Dataset]:
    """Return the per-frame functional groups of some frames; none if there are none.

    Raises
    ------
    MetadataError
        When the groups aren't DICOM JSON.

    """
    groups = (json.get(PER_FRAME_GROUPS) or {}).get("Value") or []
    return [_dataset(groups[index]) for index in indices] if groups else []


def _dataset(json: dict[str, Any]) -> Dataset:
    from pydicom.dataset import Dataset

    from dicomslide.header.lenient import no_validation

    def bulk_data(tag: str, vr: str, uri: str) -> BulkData | None:
        if vr == "SQ":  # not in the standard; some servers do it with long sequences
            warn(
                f"{_name_of(json)}: the sequence {tag} is left out, for it comes as bulk data",
                MetadataWarning,
            )
        if vr not in BULK_VRS:
            return None
        value = BulkData()
        value.uri = uri
        return value

    try:
        with no_validation():
            return Dataset.from_json(json, bulk_data)
    except Exception:  # pydicom raises KeyError, TypeError, ValueError and others
        return _element_by_element(json, bulk_data, _name_of(json))


def _element_by_element(
    json: dict[str, Any], bulk_data: Callable[[str, str, str], Any], name: str
) -> Dataset:
    """Return a data set in which values that don't convert are kept as text, as of a file.

    An error is raised when such an element is used; most aren't.
    """
    from pydicom.dataset import Dataset

    from dicomslide.header.lenient import LenientDataset, no_validation

    dataset = Dataset()
    dataset.set_original_encoding(False, True, ["utf8"])
    try:
        for tag, element in json.items():
            try:
                with no_validation():
                    dataset.update(Dataset.from_json({tag: element}, bulk_data))
            except Exception:
                kept = _kept(tag, element, bulk_data, name)
                if kept is not None:
                    dataset[kept.tag] = kept
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise MetadataError(f"{name}: its metadata aren't DICOM JSON: {error}") from error
    return LenientDataset(dataset, name)


def _kept(
    tag: str, element: dict[str, Any], bulk_data: Callable[[str, str, str], Any], name: str
) -> DataElement | RawDataElement | None:
    """Return an element as read from a file; None if that isn't possible."""
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.tag import Tag

    number, vr = Tag(int(tag, 16)), element.get("vr")
    values = element.get("Value", element.get("InlineBinary"))
    values = values if isinstance(values, list) else [values]
    if vr == "SQ":
        items = [_element_by_element(item or {}, bulk_data, name) for item in values]
        return DataElement(number, vr, items)
    if vr in NUMBER_VRS:  # binary in a file
        vr = "DS"
    if vr not in TEXT_VRS:
        return None
    data = "\\".join(map(_text_of, values)).encode()
    return RawDataElement(number, vr, len(data), data, 0, False, True)


def _text_of(value: Any) -> str:
    if isinstance(value, dict):  # a person's name
        groups = (value.get(group) for group in ("Alphabetic", "Ideographic", "Phonetic"))
        return "=".join("" if group is None else str(group) for group in groups).rstrip("=")
    return "" if value is None else str(value)


def _name_of(json: Any) -> str:
    found = json.get("00080018") if isinstance(json, dict) else None
    uid = found.get("Value") if isinstance(found, dict) else None
    return str(uid[0]) if isinstance(uid, list) and uid else "an instance"
