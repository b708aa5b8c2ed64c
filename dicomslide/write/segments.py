"""Descriptions of segments: labels, codes, algorithms and tracking (PS3.3 C.8.20.4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dicomslide.write.codes import coded
from dicomslide.write.headers import LONGEST_LO, item, new_uid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["UNNAMED", "algorithm_items", "cielab_of", "codes_of_word", "segment_items"]

_TISSUE = ("85756007", "SCT", "Tissue")
_ANATOMICAL = ("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
_SPATIAL = ("309825002", "SCT", "Spatial and Relational Concept")
_OBJECT = ("260787004", "SCT", "Physical object")
_SUBSTANCE = ("91720002", "SCT", "Body Substance")
_REGION = ("111030", "DCM", "Image Region")
WORDS: dict[str, tuple[tuple[str, str, str], tuple[str, str, str]]] = {
    "tissue": (_TISSUE, _TISSUE),
    "tumour": (_ABNORMAL, ("108369006", "SCT", "Neoplasm")),
    "lesion": (_ABNORMAL, ("52988006", "SCT", "Lesion")),
    "necrosis": (_ABNORMAL, ("6574001", "SCT", "Necrosis")),
    "inflammation": (_ABNORMAL, ("409774005", "SCT", "Inflammation")),
    "fibrosis": (_ABNORMAL, ("112674009", "SCT", "Fibrosis")),
    "stroma": (_TISSUE, ("21793004", "SCT", "Connective tissue")),
    "connective tissue": (_TISSUE, ("21793004", "SCT", "Connective tissue")),
    "fat": (_TISSUE, ("55603005", "SCT", "Adipose tissue")),
    "muscle": (_TISSUE, ("71616004", "SCT", "Muscle")),
    "nerve": (_ANATOMICAL, ("91728009", "SCT", "Nerve")),
    "vessel": (_ANATOMICAL, ("59820001", "SCT", "Blood vessel")),
    "lymph node": (_ANATOMICAL, ("59441001", "SCT", "Lymph node")),
    "cell": (_ANATOMICAL, ("4421005", "SCT", "Cell")),
    "nucleus": (_ANATOMICAL, ("84640000", "SCT", "Nucleus")),
    "blood": (_SUBSTANCE, ("87612001", "SCT", "Blood")),
    "region": (_SPATIAL, _REGION),
}
"""Category and type of usual words."""
_SYNONYMS = {
    "tumor": "tumour", "neoplasm": "tumour", "adipose": "fat", "adipose tissue": "fat",
    "blood vessel": "vessel", "foreground": "tissue", "roi": "region",
    "region of interest": "region", "nuclei": "nucleus", "cells": "cell",
}  # fmt: skip
_TYPES = {word: kind for word, (_, kind) in WORDS.items()}
_TYPES |= {word: _TYPES[same] for word, same in _SYNONYMS.items()}
_FAMILY = ("123110", "DCM", "Artificial Intelligence")
FAMILIES = {
    "otsu": ("123105", "DCM", "Histogram Analysis"),
    "threshold": ("123105", "DCM", "Histogram Analysis"),
}
"""Algorithm families (PS3.16 CID 7162) by words in an algorithm's name; else it is an AI's."""
KEYS = frozenset(
    {
        "label", "category", "type", "algorithm", "algorithm_type", "description", "number",
        "tracking_id", "tracking_uid", "anatomic_region", "color",
    }
)  # fmt: skip
UNNAMED = "unspecified"
"""Segment Algorithm Name where none is given: it is required of what wasn't drawn by hand."""


def segment_items(described: Sequence[Any], *, numbers: Sequence[int] | None = None) -> list[Any]:
    """Return the items of the Segment Sequence.

    Parameters
    ----------
    described : sequence
        A label, a mapping, or an item such as highdicom's ``SegmentDescription``, of each segment.
    numbers : sequence of int, optional
        Segment Numbers; by default from one.

    Raises
    ------
    TypeError, ValueError
        When a description isn't one of these, or a value in it isn't.

    """
    numbers = range(1, len(described) + 1) if numbers is None else numbers
    return [_segment(each, number) for each, number in zip(described, numbers, strict=True)]


def _segment(described: Any, number: int) -> Dataset:
    described = getattr(described, "item", described)  # of a Channel
    if hasattr(described, "SegmentLabel"):  # highdicom's, or another item
        made = copy.deepcopy(described)
        made.SegmentNumber = number
        return made
    given = {"label": described} if isinstance(described, str) else described
    if not isinstance(given, Mapping):
        raise TypeError(
            f"a segment is described by {described!r}; expected its label, a mapping with one, or"
            " highdicom's SegmentDescription"
        )
    label = given.get("label")
    if not isinstance(label, str) or not label.strip() or len(label) > LONGEST_LO:
        raise ValueError(
            f"segment {number}: its label is {label!r}; expected text of 1 to {LONGEST_LO}"
            " characters"
        )
    if unknown := set(given) - KEYS:
        raise ValueError(
            f"segment {label!r}: unknown keys {sorted(unknown)}; known: {sorted(KEYS)}"
        )
    what = f"segment {label!r}"
    category, kind = codes_of_word(label) or WORDS["region"]
    made = item(
        SegmentNumber=number,
        SegmentLabel=label,
        SegmentedPropertyCategoryCodeSequence=[
            coded(given.get("category", category), what, _TYPES)
        ],
        SegmentedPropertyTypeCodeSequence=[coded(given.get("type", kind), what, _TYPES)],
    )
    if given.get("description"):
        made.SegmentDescription = str(given["description"])
    if given.get("anatomic_region"):
        made.AnatomicRegionSequence = [coded(given["anatomic_region"], what, _TYPES)]
    _add_algorithm(made, given, label)
    made.TrackingID = str(given.get("tracking_id") or label)
    made.TrackingUID = str(given.get("tracking_uid") or new_uid())
    if given.get("color") is not None:
        made.RecommendedDisplayCIELabValue = cielab_of(given["color"], what)
    return made


def codes_of_word(word: str) -> tuple[tuple[str, str, str], tuple[str, str, str]] | None:
    """Return the category and the type that a usual word means; None for another word."""
    word = word.strip().lower()
    return WORDS.get(_SYNONYMS.get(word, word))


def _add_algorithm(made: Dataset, given: Mapping[str, Any], label: str) -> None:
    """Describe how a segment was made: Segment Algorithm Type, and the algorithm's name."""
    algorithm: Any = given.get("algorithm")
    kind = str(given.get("algorithm_type", "AUTOMATIC")).upper()
    if kind not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"):
        raise ValueError(
            f"segment {label!r}: algorithm_type {kind!r}; expected AUTOMATIC, SEMIAUTOMATIC or"
            " MANUAL"
        )
    made.SegmentAlgorithmType = kind
    if kind == "MANUAL":
        if algorithm is not None:
            raise ValueError(f"segment {label!r}: it is MANUAL, and has an algorithm")
        return
    items = algorithm_items(algorithm, f"segment {label!r}")
    made.SegmentAlgorithmName = items[0].AlgorithmName if items else UNNAMED
    if items:
        made.SegmentationAlgorithmIdentificationSequence = items


def algorithm_items(algorithm: Any, what: str) -> list[Dataset]:
    """Return the items of an Algorithm Identification (PS3.3 10.16); none where none is given.

    Raises
    ------
    TypeError
        When it is neither a text, a mapping nor highdicom's.

    """
    of_highdicom: Any = [algorithm] if hasattr(algorithm, "AlgorithmName") else algorithm
    if isinstance(of_highdicom, Sequence) and hasattr(
        next(iter(of_highdicom), None), "AlgorithmName"
    ):
        return copy.deepcopy(list(of_highdicom))
    if algorithm is None:
        return []
    if isinstance(algorithm, str):
        name, _, version = algorithm.strip().rpartition(" ")
        if not name or not any(map(str.isdigit, version)):
            name, version = algorithm.strip(), ""
        algorithm = {"name": name, "version": version}
    if not isinstance(algorithm, Mapping) or not algorithm.get("name"):
        raise TypeError(
            f"{what}: algorithm {algorithm!r}; expected its name and version as text"
            ' ("otsu 1.0"), a mapping with name, version and family, or highdicom\'s'
        )
    name = str(algorithm["name"])
    family = algorithm.get("family") or next(
        (each for word, each in FAMILIES.items() if word in name.lower()), _FAMILY
    )
    return [
        item(
            AlgorithmFamilyCodeSequence=[coded(family, what, {})],
            AlgorithmName=name[:LONGEST_LO],
            AlgorithmVersion=str(algorithm.get("version") or UNNAMED)[:LONGEST_LO],
        )
    ]


def cielab_of(color: Any, what: str) -> list[int]:
    """Return a colour as CIELab, as encoded in DICOM: of ``"#ff8000"``, or (r, g, b)."""
    from dicomslide.pixels.color import srgb_to_cielab

    if isinstance(color, str) and len(color) == 7 and color.startswith("#"):
        color = tuple(bytes.fromhex(color[1:]))
    if not (isinstance(color, Sequence) and len(color) == 3 and all(0 <= c <= 255 for c in color)):
        raise ValueError(f'{what}: color {color!r}; expected (r, g, b), or "#rrggbb"')
    return list(srgb_to_cielab(color))
