"""Attributes that are made when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["lazy"]

T = TypeVar("T")


class lazy(Generic[T]):
    """An attribute that is made by a method when it is first asked for, and then kept.

    Threads that ask at the same time may each make it, and all get the one that was made first.
    Until Python 3.12, :class:`functools.cached_property` has a lock for each class instead, which
    a child that is forked meanwhile finds closed forever.

    Parameters
    ----------
    make : callable
        Makes the value; the objects need a ``__dict__``.

    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type[Any]) -> T: ...

    def __get__(self, instance: object | None, owner: type[Any]) -> Self | T:
        if instance is None:
            return self
        # once it is there, Python finds it without asking here
        made: T = instance.__dict__.setdefault(self._name, self._make(instance))
        return made
