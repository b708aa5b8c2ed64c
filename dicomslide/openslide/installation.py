"""Makes openslide-python read DICOM with this package, for programs that aren't edited."""

from __future__ import annotations

import functools
import importlib
import multiprocessing.process
import sys
from typing import TYPE_CHECKING, Any

from dicomslide.errors import DicomSlideError, NotSlideError
from dicomslide.openslide import abstract, api, image_slide
from dicomslide.openslide.cache import OpenSlideCache
from dicomslide.openslide.handles import CACHE, FUNCTIONS, Handle, is_ours

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["install", "uninstall"]

NAME = "openslide"
OURS = "dicomslide.openslide"
PARTS = ("deepzoom", "lowlevel")
"""Modules that both packages have."""
ORIGINAL = "_without_dicomslide"
"""Attribute of a function that was put into openslide.lowlevel: the function that was there."""


def install() -> None:
    """Make the package `openslide` read DICOM with this package from now on.

    For programs that can't be edited. ``openslide.OpenSlide(path)``,
    ``openslide.open_slide(path)`` and ``OpenSlide.detect_format(path)`` then read DICOM files,
    folders of them and URLs through :class:`dicomslide.OpenSlide`. Slides in all other formats are
    read by libopenslide, as before.

    The classes of openslide-python stay the same, also where they were imported before: only the
    functions of ``openslide.lowlevel`` that they call are replaced. A slide is an instance of
    ``openslide.OpenSlide`` or of a subclass, and ``openslide.deepzoom`` works. A
    :class:`dicomslide.OpenSlide` counts as an instance of ``openslide.OpenSlide`` and
    ``openslide.AbstractSlide``, too.

    Without openslide-python, or without libopenslide, ``dicomslide.openslide`` becomes the
    module `openslide`, which opens DICOM and, by ``open_slide``, ordinary images.

    Processes that ``multiprocessing`` starts, by any start method, call this function, too.
    Calling it twice has no further effect; :func:`uninstall` undoes it.

    Notes
    -----
    Not affected are functions that were imported from ``openslide.lowlevel`` before, slides that
    are open already, and libraries that call libopenslide themselves, such as pyvips.

    Errors are ``openslide.OpenSlideError`` and ``openslide.OpenSlideUnsupportedFormatError``, whose
    ``__cause__`` is the error of this package. A DICOM slide can be used after an error, and can be
    pickled. An ``openslide.OpenSlideCache`` that is created afterwards caches tiles of DICOM
    slides, too, up to its capacity for each of the two kinds of slides.

    Examples
    --------
    >>> import dicomslide.openslide
    >>> dicomslide.openslide.install()
    >>> import openslide
    >>> slide = openslide.OpenSlide("slide/level-0.dcm")

    """
    ours = sys.modules[OURS]
    theirs = _openslide_python()
    if theirs is None or theirs is ours:
        sys.modules[NAME] = ours
        for part in PARTS:
            sys.modules[f"{NAME}.{part}"] = importlib.import_module(f"{OURS}.{part}")
    elif not hasattr(theirs.lowlevel.open, ORIGINAL):
        _replace(theirs.lowlevel)
        for own in (abstract.AbstractSlide, api.OpenSlide, image_slide.ImageSlide):
            getattr(theirs, own.__name__).register(own)
    _inherited()[OURS] = _Installed()


def uninstall() -> None:
    """Undo :func:`install`: DICOM is read by libopenslide again.

    DICOM slides that ``openslide.OpenSlide`` opened in between can't be used any more.
    """
    _inherited().pop(OURS, None)
    theirs = sys.modules.get(NAME)
    if theirs is sys.modules[OURS]:
        for name in (NAME, *(f"{NAME}.{part}" for part in PARTS)):
            sys.modules.pop(name, None)
    elif theirs is not None:
        for name, function in list(vars(theirs.lowlevel).items()):
            if hasattr(function, ORIGINAL):
                setattr(theirs.lowlevel, name, getattr(function, ORIGINAL))


def _openslide_python() -> ModuleType | None:
    """Import openslide-python; None where it or libopenslide isn't installed."""
    try:
        return importlib.import_module(NAME)
    except (ImportError, OSError):
        return None


def _replace(lowlevel: Any) -> None:
    """Replace functions of openslide.lowlevel by functions that accept both kinds of handles."""
    for name, function in FUNCTIONS.items():
        original = getattr(lowlevel, name, None)
        if original is not None:  # older versions of openslide-python lack some
            _put(lowlevel, name, _by_handle(original, function, lowlevel))
    _put(lowlevel, "open", _by_filename(lowlevel.open, _open, lowlevel))
    _put(lowlevel, "detect_vendor", _by_filename(lowlevel.detect_vendor, _vendor, lowlevel))
    if hasattr(lowlevel, "cache_create"):
        _put(lowlevel, "cache_create", _cache_create(lowlevel.cache_create))


def _put(lowlevel: Any, name: str, function: Callable[..., Any]) -> None:
    original = getattr(lowlevel, name)
    function.__name__ = function.__qualname__ = name
    function.available = getattr(original, "available", True)  # type: ignore[attr-defined]
    setattr(function, ORIGINAL, original)
    setattr(lowlevel, name, function)


def _open(filename: Any) -> Handle:
    return _InstalledHandle(api.OpenSlide(filename))


def _vendor(filename: Any) -> str | None:
    return api.OpenSlide.detect_format(filename)


def _by_filename(
    original: Callable[..., Any], ours: Callable[..., Any], lowlevel: Any
) -> Callable[..., Any]:
    ours = _with_their_errors(ours, lowlevel)

    def function(filename: Any) -> Any:
        return ours(filename) if is_ours(filename) else original(filename)

    return function


def _by_handle(
    original: Callable[..., Any], ours: Callable[..., Any], lowlevel: Any
) -> Callable[..., Any]:
    ours = _with_their_errors(ours, lowlevel)

    def function(handle: Any, *arguments: Any) -> Any:
        chosen = ours if isinstance(handle, Handle) else original
        return chosen(handle, *arguments)

    return function


def _cache_create(original: Callable[..., Any]) -> Callable[..., Any]:
    def function(capacity: Any) -> Any:
        cache = original(capacity)  # which checks the capacity
        setattr(cache, CACHE, OpenSlideCache(capacity))
        return cache

    return function


def _with_their_errors(function: Callable[..., Any], lowlevel: Any) -> Callable[..., Any]:
    """Return a function that raises the errors of openslide-python."""

    @functools.wraps(function)
    def raising(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except NotSlideError as error:
            raise lowlevel.OpenSlideUnsupportedFormatError(str(error)) from error
        except (DicomSlideError, OSError) as error:
            raise lowlevel.OpenSlideError(str(error)) from error

    return raising


# -- processes ---------------------------------------------------------------------------------


class _InstalledHandle(Handle):
    """A handle that calls :func:`install` in the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.slide,)


def _restored(slide: api.OpenSlide) -> Handle:
    install()
    return _InstalledHandle(slide)


class _Installed:
    """Calls :func:`install` where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _install_here, ()


def _install_here() -> _Installed:
    install()
    return _Installed()


def _inherited() -> dict[str, Any]:
    """Return what ``multiprocessing`` copies to each process that this one starts."""
    config: dict[str, Any] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    return config
