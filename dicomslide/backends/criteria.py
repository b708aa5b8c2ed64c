"""What is searched for in a store or an archive: values of studies, series and slides."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from dicomslide import utils
from dicomslide.header import dicom

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom.dataset import Dataset

__all__ = [
    "DERIVED_MODALITIES",
    "SLIDE_MODALITY",
    "Criteria",
    "Dates",
    "has_wildcard",
    "is_code",
    "is_text",
    "listed",
]

SLIDE_MODALITY = "SM"
DERIVED_MODALITIES = ("SEG", "OT", "ANN")
"""Modality of segmentations, parametric maps (which have no value of their own) and annotations."""

Day: TypeAlias = "str | datetime.date"
Dates: TypeAlias = "Day | tuple[Day | None, Day | None]"
"""A day, as a date or as ISO 8601 text; or the first and the last day, None for no bound."""


@dataclasses.dataclass(frozen=True)
class Criteria:
    """Values that slides have; by default any.

    Texts are compared exactly, but ``*`` stands for any characters and ``?`` for one (PS3.4
    C.2.2.2.4).

    Parameters
    ----------
    study_instance_uid : str, optional
        Study Instance UID.
    patient_id, study_id, accession_number, container_id : str, optional
        Patient ID, Study ID, Accession Number, and Container Identifier of the glass slide.
    study_date : datetime.date, str or tuple of two, optional
        Study Date: see :data:`Dates`.
    modality : str or iterable of str, optional
        Modality of the series; by default that of slides and of what is derived from them.
    stains : iterable of str, Code or CodedConcept, optional
        Stains, of which a volume image has at least one, as codes or as their meaning, without
        regard to case.

    Raises
    ------
    TypeError
        When a value is of another type.
    ValueError
        When a text is empty, a date isn't one, or a range of dates ends before it begins.

    """

    study_instance_uid: str | None = None
    patient_id: str | None = None
    study_id: str | None = None
    container_id: str | None = None
    study_date: Dates | None = None
    accession_number: str | None = None
    modality: str | Iterable[str] | None = None
    stains: Iterable[Any] | None = None
    _days: tuple[str | None, str | None] | None = dataclasses.field(init=False, repr=False)
    _modalities: tuple[str, ...] | None = dataclasses.field(init=False, repr=False)
    _stains: tuple[Any, ...] | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("study_instance_uid", "patient_id", "study_id", "container_id",
                     "accession_number"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} is {value!r}; expected text")
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty; expected a value, or None for any")
        given = (self.modality,) if isinstance(self.modality, str) else self.modality
        normal = {
            "_days": None if self.study_date is None else _days(self.study_date),
            "_modalities": listed(given, "modality", "texts", is_text),
            "_stains": listed(
                self.stains, "stains", "codes or texts", lambda each: is_code(each) or is_text(each)
            ),
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    @property
    def of_study(self) -> dict[str, str]:
        """Matching keys of studies by keyword (PS3.18 8.3.4.1), without the Study Instance UID."""
        first, last = self._days or (None, None)
        dates = None
        if first or last:
            dates = first if first == last else f"{first or ''}-{last or ''}"
        keys = {
            "PatientID": self.patient_id,
            "StudyID": self.study_id,
            "StudyDate": dates,
            "AccessionNumber": self.accession_number,
        }
        return {keyword: value.strip() for keyword, value in keys.items() if value is not None}

    @property
    def given(self) -> list[str]:
        """Names of the criteria that are given."""
        fields = (each.name for each in dataclasses.fields(self) if each.init)
        return [name for name in fields if getattr(self, name) is not None]

    def of(self, study_instance_uid: str) -> Criteria:
        """Return the same criteria for one study."""
        return dataclasses.replace(
            self,
            study_instance_uid=study_instance_uid,
            modality=self._modalities,
            stains=self._stains,
        )

    def modalities(self, *, include_derived: bool = True) -> tuple[str, ...]:
        """Return the modalities of the series that are searched for."""
        found = self._modalities or (SLIDE_MODALITY, *DERIVED_MODALITIES)
        return tuple(each for each in found if include_derived or each not in DERIVED_MODALITIES)

    def matches(self, keyword: str, value: str | None, *, ignoring_case: bool = False) -> bool:
        """Whether a value of a header is one of those that are searched for.

        Parameters
        ----------
        keyword : str
            Keyword of a matching key of the study, or ContainerIdentifier.
        value : str, optional
            The value; None where a header lacks it.
        ignoring_case : bool, default: False
            Whether case is ignored, as some servers do.

        """
        if keyword == "StudyDate":
            return self._has_date(value)
        wanted = (
            self.container_id if keyword == "ContainerIdentifier" else self.of_study.get(keyword)
        )
        if wanted is None or value is None:
            return wanted is None
        case = re.IGNORECASE if ignoring_case else re.NOFLAG
        return re.fullmatch(_pattern(wanted.strip()), value.strip(), case) is not None

    def _has_date(self, value: str | None) -> bool:
        first, last = self._days or (None, None)
        day = (value or "").replace(".", "")  # as in ACR-NEMA (PS3.5 6.2)
        return not (first or last) or (bool(day) and (first or "") <= day <= (last or "9"))

    def keeps(self, header: Dataset) -> bool:
        """Whether an instance is of a study and of a modality that are searched for."""
        study = self.study_instance_uid
        return (
            study in (None, dicom.text(header, "StudyInstanceUID"))
            and all(self.matches(each, dicom.text(header, each)) for each in self.of_study)
            and (
                self._modalities is None
                or (dicom.text(header, "Modality") or SLIDE_MODALITY) in self._modalities
            )
        )

    def has_stain(self, header: Dataset) -> bool:
        """Whether the specimen of an image has one of the stains (TID 8003)."""
        if self._stains is None:
            return True
        names = [each.casefold() for each in dicom.stains_of(header)]
        specimens = dicom.items(header, "SpecimenDescriptionSequence")
        return any(
            any(re.fullmatch(_pattern(stain.casefold()), name) for name in names)
            if isinstance(stain, str)
            else any(utils.does_specimen_description_item_match(each, stain) for each in specimens)
            for stain in self._stains
        )


def has_wildcard(text: str) -> bool:
    """Whether a text has one of DICOM's wildcards."""
    return "*" in text or "?" in text


def listed(
    given: Any, name: str, kind: str, is_one: Callable[[object], bool]
) -> tuple[Any, ...] | None:
    """Return the items of a list; a single code or str, though iterable, is a TypeError.

    Parameters
    ----------
    given : iterable, optional
        The list; None for none.
    name, kind : str
        Name of the argument, and of its items in the plural, for messages.
    is_one : callable
        Whether an item is one.

    """
    if given is None:
        return None
    items = None if is_one(given) or not isinstance(given, Iterable) else tuple(given)
    if items is None or not all(map(is_one, items)):
        shown = " ".join(repr(given).split())  # on one line; a data set has several
        raise TypeError(f"{name} is {shown}; expected a list of {kind}")
    return items


def is_text(value: object) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def is_code(value: object) -> bool:
    """Whether a value is a code of pydicom or highdicom."""
    return hasattr(value, "scheme_designator")


def _pattern(text: str) -> str:
    """Return the regular expression of a text with DICOM's wildcards; brackets are plain."""
    return fnmatch.translate(text.replace("[", "[[]"))


def _days(given: Any) -> tuple[str | None, str | None]:
    """Return the first and last day as values of VR DA; None for no bound."""
    if isinstance(given, (list, tuple)):
        if len(given) != 2:
            raise ValueError(f"study_date is {given!r}; expected a day, or the first and the last")
        first, last = (None if each is None else _day(each) for each in given)
    else:
        first = last = _day(given)
    if first is not None and last is not None and last < first:
        raise ValueError(f"study_date is {given!r}: it ends before it begins")
    return first, last


def _day(given: Any) -> str:
    if isinstance(given, datetime.datetime):
        given = given.date()
    if isinstance(given, str):
        try:
            given = datetime.date.fromisoformat(given)
        except ValueError:
            raise ValueError(f"study_date is {given!r}; expected a date as YYYY-MM-DD") from None
    if not isinstance(given, datetime.date):
        raise TypeError(f"study_date is {given!r}; expected a date, or text as YYYY-MM-DD")
    return f"{given.year:04}{given:%m%d}"
