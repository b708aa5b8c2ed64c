"""Calls of a function for each slide of a cohort: on threads, processes, executors, a cluster."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from dicomslide.backends.base import is_distant
from dicomslide.errors import (
    SlideTaskError,
    SourceChangedError,
    SourceDeniedError,
    SourceNotFoundError,
)
from dicomslide.header import dicom
from dicomslide.options import get_options, set_options
from dicomslide.process.child import Child, ChildEndedError
from dicomslide.process.parallel import as_done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicomslide.contents.options import SlideOptions
    from dicomslide.slide.slide import Slide
    from dicomslide.slide.sorting import Openable

__all__ = ["Call", "Outcome", "Place", "SlideResults", "bare", "cluster_client", "failure_of",
           "may_pass", "outcomes"]  # fmt: skip

R = TypeVar("R")
Place: TypeAlias = "Literal['threads', 'processes', 'cluster'] | concurrent.futures.Executor | Any"

THREADS = 16
"""Threads where slides are on a server: they wait for it most of the time."""
LEAST_BUDGET = 64 * 2**20
"""Lower bound on `memory_budget` of a process, in bytes."""
PER_THREAD = 2
"""Tasks on a cluster per thread of its workers: one runs while the next one arrives."""
PATIENCE = 30.0
"""Seconds to wait for a result that a worker has, at first; twice as long each further time."""
LARGE = 2**20
"""Bytes of a pickled function from which on it is sent once to each worker."""

_LASTING = (
    SourceNotFoundError, SourceDeniedError, SourceChangedError, FileNotFoundError,
    FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError,
)  # fmt: skip
"""Errors of the system that another attempt would end in, too."""


class SlideResults(Mapping[str, R]):
    """Results of a function by the name of the slide, in the order of the slides.

    Returned by :meth:`Cohort.map`.

    Parameters
    ----------
    found : mapping of str to object
        Results by name.
    failures : mapping of str to SlideTaskError
        See :attr:`failures`.

    """

    def __init__(self, found: Mapping[str, R], failures: Mapping[str, SlideTaskError]) -> None:
        self._found = dict(found)
        self._failures = dict(failures)

    @property
    def failures(self) -> Mapping[str, SlideTaskError]:
        """Errors by the name of the slide, of those that have no result."""
        return MappingProxyType(self._failures)

    def __getitem__(self, name: str) -> R:
        if name in self._failures:
            raise self._failures[name]
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found  # a failure is none, though looking it up raises no KeyError

    def __repr__(self) -> str:
        failed = f", {len(self._failures)} failed" if self._failures else ""
        return f"<SlideResults of {len(self)}{failed}>"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a call, or its error."""

    result: Any = None
    error: Exception | None = None
    """Without traceback and cause, which hold references to slides."""
    traceback: str = ""
    is_open: bool = True
    """Whether the slide was opened."""

    @classmethod
    def of(cls, error: Exception, *, is_open: bool = True) -> Outcome:
        """Return the outcome of a call that raised an error, within its ``except`` clause."""
        text = "".join(traceback.format_exception(error))
        return cls(None, bare(error), text, is_open)


@dataclasses.dataclass(frozen=True)
class Call:
    """Opens a slide and calls a function with it; in any process."""

    function: Callable[[Slide], Any]
    options: SlideOptions

    def __call__(self, member: Openable) -> Outcome:
        """Return the result or the error; nothing of the slide is referenced afterwards."""
        is_open = False
        try:
            slide = member.open(self.options)
            is_open = True
            return Outcome(self.function(slide))
        except Exception as error:
            return Outcome.of(error, is_open=is_open)


def bare(error: Exception) -> Exception:
    """Remove traceback, cause and context of an error, which hold references to headers."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: of errors of a server, a disk or a process."""
    return isinstance(error, (OSError, ChildEndedError)) and not isinstance(error, _LASTING)


def failure_of(name: str, outcome: Outcome, attempts: int) -> SlideTaskError:
    """Return the error of a slide that has no result."""
    assert outcome.error is not None
    return SlideTaskError(name, outcome.error, attempts, outcome.traceback)


def outcomes(
    call: Call, members: Sequence[Openable], on: Place | None, workers: int | None
) -> Iterator[tuple[int, Outcome]]:
    """Yield the index and the outcome of each call, as soon as it is there.

    Parameters
    ----------
    call : Call
        What is called.
    members : sequence of Openable
        Slides, in the order in which they are begun.
    on, workers
        See :meth:`Cohort.map`.

    Raises
    ------
    ValueError
        When `on` is none of the places; when there is no cluster; when `workers` is less than one.
    TypeError
        When `on` is something else; when `workers` isn't an integer; when the function
        can't be pickled.

    """
    if workers is not None:
        workers = dicom.integer(workers, "workers", least=1)
    client = cluster_client() if on in (None, "cluster") else _as_client(on)
    if client is not None:
        return _on_cluster(client, call, members, workers)
    if on == "cluster":
        raise ValueError("no dask cluster: make a distributed.Client first, or pass it as `on`")
    if on is None or on == "threads":
        return as_done(call, members, workers or _threads_for(members))
    if on == "processes":
        return _in_processes(call, members, workers or _processors())
    if isinstance(on, concurrent.futures.Executor):
        return as_done(functools.partial(_submitted, on, call), members, workers or THREADS)
    if isinstance(on, str):
        raise ValueError(f"on is {on!r}; expected 'threads', 'processes' or 'cluster'")
    raise TypeError(
        f"on is a {type(on).__name__}; expected 'threads', 'processes', 'cluster', an Executor or a"
        " distributed.Client"
    )


def _threads_for(members: Sequence[Openable]) -> int:
    sources = (source for member in members[:THREADS] for source in member.sources)
    return THREADS if any(map(is_distant, sources)) else max(1, get_options().num_threads)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _submitted(executor: concurrent.futures.Executor, call: Call, member: Openable) -> Outcome:
    try:
        outcome: Outcome = executor.submit(call, member).result()
    except Exception as error:  # the executor's own: a process that died, what doesn't pickle
        return Outcome.of(error)
    return outcome


# -- processes -------------------------------------------------------------------------------


def _in_processes(
    call: Call, members: Sequence[Openable], workers: int
) -> Iterator[tuple[int, Outcome]]:
    """Call in processes, each of which a thread of this one attends to.

    A process that dies takes one slide with it; another one takes its place.
    """
    workers = min(workers, len(members))
    here = get_options()
    options = dataclasses.asdict(here) | {
        "num_threads": max(1, here.num_threads // max(1, workers)),
        "memory_budget": max(LEAST_BUDGET, here.memory_budget // max(1, workers)),
    }
    prepare = functools.partial(_prepare, options)
    mine = threading.local()
    children: list[Child] = []
    ended = threading.Event()

    def do(member: Openable) -> Outcome:
        child: Child | None = getattr(mine, "child", None)
        if child is None:
            child = mine.child = Child(call, prepare)
            children.append(child)
            if ended.is_set():
                child.close(kill=True)
        try:
            outcome: Outcome = child(member)
        except ChildEndedError as error:
            mine.child = None
            children.remove(child)
            child.close(kill=True)
            return Outcome.of(error)
        except Exception as error:  # a result that can't be pickled
            return Outcome.of(error)
        return outcome

    with contextlib.closing(as_done(do, members, workers)) as found:  # type: ignore[type-var]
        try:
            yield from found
        except BaseException:
            ended.set()
            for child in children:
                child.close(kill=True)
            raise
    for child in children:
        child.close()


def _prepare(options: dict[str, Any]) -> None:
    set_options(**options)


# -- clusters --------------------------------------------------------------------------------


def cluster_client() -> Any:
    """Return the current client of a dask cluster; None without one, and within a task."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        distributed.get_worker()
    except ValueError:
        pass
    else:
        return None  # a task that waits for other tasks can deadlock
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return None if client.asynchronous or not client.nthreads() else client


def _as_client(value: Any) -> Any:
    distributed = sys.modules.get("distributed")
    is_client = distributed is not None and isinstance(value, distributed.Client)
    return value if is_client else None


def _on_cluster(
    client: Any, call: Call, members: Sequence[Openable], workers: int | None
) -> Iterator[tuple[int, Outcome]]:
    """Call in tasks of a cluster: a few a thread at once, so that no worker collects results."""
    import cloudpickle

    distributed: Any = sys.modules["distributed"]  # whose types mypy doesn't know
    waiting = iter(enumerate(members))
    under_way: dict[Any, int] = {}
    patience: dict[int, float] = {}
    sent: Any = call
    if len(cloudpickle.dumps(call)) > LARGE:
        sent = client.scatter(call, broadcast=True, hash=False)
    done = distributed.as_completed([], loop=client.loop)

    def submit(at: int, member: Openable) -> None:
        future = client.submit(_called, sent, member, pure=False)
        under_way[future] = at
        done.add(future)

    def submit_more() -> None:
        most = workers or _at_once(client)
        while len(under_way) < most and (item := next(waiting, None)) is not None:
            submit(*item)

    try:
        submit_more()
        while under_way:
            future = next(done)
            at = under_way.pop(future)
            try:
                outcome = future.result(timeout=patience.setdefault(at, PATIENCE))
            except TimeoutError:  # its worker has died since, and the scheduler forgot the task
                patience[at] *= 2
                future.release()
                submit(at, members[at])
                continue
            except Exception as error:  # of the cluster: a worker that died, a task that is lost
                outcome = Outcome.of(error)
            future.release()
            submit_more()
            yield at, outcome
    finally:
        if under_way:
            client.cancel(list(under_way))


def _at_once(client: Any) -> int:
    """Return the number of tasks for the workers that there are at the moment."""
    return max(1, PER_THREAD * sum(client.nthreads().values()))


def _called(call: Call, member: Openable) -> Outcome:
    return call(member)
