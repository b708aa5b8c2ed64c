"""A process that calls a function for one argument after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import traceback
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = ["Child", "ChildEndedError"]

PATIENCE = 5.0
"""Seconds that a process which has nothing more to do is waited for."""


class ChildEndedError(RuntimeError):
    """A process ended before it had returned a result."""


class Child:
    """A process that calls a function for one argument after the other.

    It is started anew, rather than forked: threads and locks of this process don't get into it. The
    function is pickled by value if it isn't importable there: of a notebook, or a lambda.

    Parameters
    ----------
    function : callable
        Function of one argument. What it raises is raised here.
    prepare : callable, optional
        Called first, without arguments.

    """

    def __init__(
        self, function: Callable[[Any], Any], prepare: Callable[[], object] | None = None
    ) -> None:
        import cloudpickle  # late: only for other processes

        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        what = cloudpickle.dumps((function, prepare))
        self._process = context.Process(target=_serve, args=(there, what), name="dicomslide")
        self._process.start()
        there.close()

    def __call__(self, argument: Any) -> Any:
        """Return the result for an argument.

        Raises
        ------
        ChildEndedError
            When the process ends meanwhile: it was killed, ran out of memory, or couldn't start.

        """
        try:
            self._connection.send_bytes(pickle.dumps(argument))
            # both: an answer that was sent before the end is taken
            wait([self._connection, self._process.sentinel])
            if self._connection.poll():
                is_result, value = pickle.loads(self._connection.recv_bytes())
                if is_result:
                    return value
                raise value
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        self._process.join(PATIENCE)
        code = self._process.exitcode
        how = f"exit status {code}" if code is None or code >= 0 else f"signal {-code}"
        raise ChildEndedError(
            f"the process ended without a result ({how}): it was killed, ran out of memory, or"
            ' couldn\'t start, as from a script without `if __name__ == "__main__":`'
        )

    def close(self, *, kill: bool = False) -> None:
        """End the process; `kill` doesn't wait for what it does."""
        with contextlib.suppress(OSError):
            self._connection.close()
        if not kill:
            self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(PATIENCE)


def _serve(connection: Connection, what: bytes) -> None:
    """Answer requests until the other end is closed."""
    with contextlib.suppress(ValueError):  # Ctrl-C: the process that started this one ends it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    function, prepare = pickle.loads(what)
    if prepare is not None:
        prepare()
    while True:
        try:
            argument = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            answer = pickle.dumps((True, function(pickle.loads(argument))))
        except Exception as error:
            answer = _pickled_error(error)
        connection.send_bytes(answer)


def _pickled_error(error: Exception) -> bytes:
    try:
        answer = pickle.dumps((False, error.with_traceback(None)))
        pickle.loads(answer)  # some errors pickle, but can't be made again
    except Exception:
        text = "".join(traceback.format_exception_only(error)).strip()
        answer = pickle.dumps((False, RuntimeError(text)))
    return answer
