"""Codes of quantities, units and properties: given as words, tuples, pydicom's or highdicom's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from dicomslide.write.headers import code_item

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom.dataset import Dataset

__all__ = ["MEASUREMENTS", "QUANTITIES", "coded", "measurement_items", "unit_item"]

_AREA = ("42798000", "SCT", "Area")
_MEAN = ("373098007", "SCT", "Mean")
_DEVIATION = ("386136009", "SCT", "Standard Deviation")
MEASUREMENTS: dict[str, tuple[tuple[str, str, str], str]] = {
    "area": (_AREA, "mm2"),
    "perimeter": (("131191004", "SCT", "Perimeter"), "mm"),
    "length": (("410668003", "SCT", "Length"), "mm"),
    "diameter": (("81827009", "SCT", "Diameter"), "mm"),
    "major axis": (("131187009", "SCT", "Major Axis"), "mm"),
    "minor axis": (("131188004", "SCT", "Minor Axis"), "mm"),
    "volume": (("118565006", "SCT", "Volume"), "mm3"),
    "mean": (_MEAN, "1"),
    "median": (("373099004", "SCT", "Median"), "1"),
    "minimum": (("255605001", "SCT", "Minimum"), "1"),
    "maximum": (("56851009", "SCT", "Maximum"), "1"),
    "std": (_DEVIATION, "1"),
    "standard deviation": (_DEVIATION, "1"),
    "probability": (("122157", "DCM", "Probability"), "1"),
}
"""Code and unit of measurements that are called by usual words."""
QUANTITIES: dict[str, tuple[str, str, str]] = {
    "class activation": ("130402", "DCM", "Class activation"),
    "gradient-weighted class activation": ("130403", "DCM", "Gradient-weighted class activation"),
    "saliency": ("130404", "DCM", "Saliency"),
} | {word: code for word, (code, _) in MEASUREMENTS.items()}  # fmt: skip
"""Codes of quantities (PS3.16 CID 7180, and those of measurements) that are usual words."""
UNITS = {
    "1": "no units", "%": "percent", "mm": "millimeter", "um": "micrometer",
    "mm2": "square millimeter", "um2": "square micrometer", "mm3": "cubic millimeter",
    "um3": "cubic micrometer", "/mm2": "per square millimeter", "nm": "nanometer",
    "{counts}": "counts", "{ratio}": "ratio",
}  # fmt: skip
"""Meanings of usual units (UCUM)."""


def coded(given: Any, what: str, words: Mapping[str, tuple[str, str, str]]) -> Dataset:
    """Return an item of a code sequence.

    Parameters
    ----------
    given : str, pydicom.sr.coding.Code, tuple of str or pydicom.dataset.Dataset
        A word; a code; (value, scheme, meaning); or an item, such as highdicom's ``CodedConcept``.
    what : str
        What it is for, for messages.
    words : mapping
        Codes of words, in lower case.

    Raises
    ------
    TypeError, ValueError
        When it isn't one of these.

    """
    if isinstance(given, str):
        found = words.get(given.strip().lower().replace("_", " "))
        if found is None:
            raise ValueError(
                f"{what}: no code is known for {given!r}; expected one of {sorted(words)}, or a"
                " code: (value, scheme, meaning)"
            )
        return code_item(*found)
    if hasattr(given, "CodingSchemeDesignator"):
        return copy.deepcopy(given)
    if hasattr(given, "scheme_designator"):
        version = getattr(given, "scheme_version", None)
        return code_item(given.value, given.scheme_designator, given.meaning, version)
    if isinstance(given, (tuple, list)) and 3 <= len(given) <= 4 and all(given):
        return code_item(*map(str, given))
    raise TypeError(
        f"{what}: {given!r} is no code; expected pydicom's Code, (value, scheme, meaning), or one"
        f" of {sorted(words)}"
    )


def unit_item(given: Any, what: str) -> Dataset:
    """Return an item of a unit: a text in UCUM, or a code.

    Raises
    ------
    TypeError, ValueError
        When it is neither.

    """
    if isinstance(given, str):
        if not given.strip() or " " in given.strip() or not given.isascii():
            raise ValueError(
                f'{what}: the unit is {given!r}; expected UCUM, such as "um2", "mm", "%", or "1"'
                " for no unit"
            )
        return code_item(given.strip(), "UCUM", UNITS.get(given.strip(), given.strip()))
    return coded(given, f"unit of {what}", {})


def measurement_items(name: str, given: Any, unit: str | None) -> tuple[Dataset, Dataset]:
    """Return the items of the quantity and the unit of a measurement.

    Parameters
    ----------
    name : str
        Name of its column or variable, which may be a usual word.
    given : tuple or None
        (quantity, unit) as the caller gives them.
    unit : str or None
        Unit that the table says; else that of the word.

    Raises
    ------
    TypeError, ValueError
        When no code is known, or what is given is none.

    """
    word = name.strip().lower().replace("_", " ")
    if given is not None:
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ValueError(f"measurement {name!r}: {given!r}; expected (quantity, unit)")
        quantity, unit = given
    elif word in MEASUREMENTS:
        quantity, usual = MEASUREMENTS[word]
        unit = usual if unit is None else unit
    else:
        raise ValueError(
            f"measurement {name!r}: no code is known for it; expected one of"
            f" {sorted(MEASUREMENTS)}, or {{{name!r}: (quantity, unit)}}"
        )
    return coded(quantity, f"measurement {name!r}", QUANTITIES), unit_item(unit, name)
