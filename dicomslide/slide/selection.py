"""Choice of slides by columns of their table."""

from __future__ import annotations

import fnmatch
import math
import numbers
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from dicomslide.contents.description import COLUMNS, STAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Test: TypeAlias = Callable[[Any], bool]

__all__ = ["Test", "tests_of"]

EQUAL = 1e-6
"""Relative difference up to which numbers are equal: units were converted."""


def tests_of(wanted: Mapping[str, Any]) -> dict[str, Test]:
    """Return a function for each column that says whether a value is one that is wanted.

    Parameters
    ----------
    wanted : mapping of str to object
        Values by column: see :meth:`Cohort.select`; those that are None are left out.

    Raises
    ------
    TypeError
        When there is no such column, or a value is of another type.

    """
    if unknown := wanted.keys() - COLUMNS.keys() - {STAIN}:
        raise TypeError(
            f"slides have no {', '.join(sorted(unknown))}; they are selected by"
            f" {', '.join((STAIN, *COLUMNS))}"
        )
    tests: dict[str, Test] = {}
    for name, value in wanted.items():
        if value is not None:
            is_text = COLUMNS.get(name, str) is str
            tests[name] = _text_test(name, value) if is_text else _number_test(name, value)
    if STAIN in tests:
        is_wanted = tests[STAIN]
        tests[STAIN] = lambda stains: any(map(is_wanted, stains))
    return tests


def _text_test(name: str, wanted: Any) -> Test:
    texts = [wanted] if isinstance(wanted, str) else wanted
    texts = list(texts) if isinstance(texts, Iterable) else [None]
    if not all(isinstance(each, str) for each in texts):
        raise TypeError(f"{name} is {wanted!r}; expected text, or several texts")
    # brackets are plain
    patterns = (fnmatch.translate(each.casefold().replace("[", "[[]")) for each in texts)
    matches = re.compile("|".join(patterns) or r"(?!)").fullmatch
    return lambda value: value is not None and matches(value.casefold()) is not None


def _number_test(name: str, wanted: Any) -> Test:
    bounds = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    is_number = all(
        each is None or (isinstance(each, numbers.Real) and not math.isnan(each)) for each in bounds
    )
    if len(bounds) != 2 or not is_number:
        raise TypeError(f"{name} is {wanted!r}; expected a number, or the lowest and the highest")
    low = -math.inf if bounds[0] is None else bounds[0] - EQUAL * abs(bounds[0])
    high = math.inf if bounds[1] is None else bounds[1] + EQUAL * abs(bounds[1])
    return lambda value: value is not None and low <= value <= high
