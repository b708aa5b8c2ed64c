"""Attributes whose value is made at the first access."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["lazy", "lazy_once"]

T = TypeVar("T")


class lazy(Generic[T]):
    """An attribute that a method makes at the first access, and that is then stored.

    Threads that access it at the same time may each call the method; all get the value that was
    stored first. Until Python 3.12, :class:`functools.cached_property` has a lock per attribute
    instead, which is held forever in a child that is forked meanwhile.

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
        # once it is stored, Python finds it without calling this descriptor
        made: T = instance.__dict__.setdefault(self._name, self._make(instance))
        return made


class lazy_once(lazy[T]):
    """A lazy attribute that one thread makes while others wait: for values that warn or take long.

    The lock belongs to the object and is renewed in a forked child. Objects that are pickled leave
    it out.
    """

    def __get__(self, instance: object | None, owner: type[Any]) -> Any:
        if instance is None:
            return self
        with instance.__dict__.setdefault(f"_making_{self._name}", ForkLock()):
            if self._name in instance.__dict__:
                return instance.__dict__[self._name]
            return super().__get__(instance, owner)
