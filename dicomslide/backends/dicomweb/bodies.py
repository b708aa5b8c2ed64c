"""Bodies of replies: decompression within bounds, and closing of sockets of abandoned requests."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import sys
import threading
import time
import zlib
from typing import TYPE_CHECKING

from dicomslide.backends.dicomweb.multipart import ReplyError, WrongTypeError
from dicomslide.process.forks import after_fork_in_child
from dicomslide.process.parallel import start

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["decompressed", "hang_up"]

CHUNK = 2**18
"""Upper bound on the bytes of one decompressed chunk."""
GZIP, ZLIB, RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
"""Values of `wbits` of zlib for each format."""
STEP = 0.05
"""Polling interval in seconds at which abandoned threads are checked."""


# -- decompressing ---------------------------------------------------------------------------


def decompressed(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Yield the decompressed body in chunks of bounded size.

    A caller that counts bytes can stop before a few megabytes have become gigabytes.

    Parameters
    ----------
    pieces : iterable of bytes
        The body as received.
    encoding : str
        Its Content-Encoding, in lower case; empty if it has none.

    Raises
    ------
    ReplyError
        When the body is damaged.
    WrongTypeError
        When the encoding wasn't requested.

    """
    if encoding in ("", "identity"):
        yield from pieces
    elif encoding in ("gzip", "x-gzip"):
        yield from _inflated(pieces, GZIP)
    elif encoding == "deflate":  # zlib as in the standard, or raw as some servers send
        begun = iter(pieces)
        first = b""
        while len(first) < 2 and (piece := next(begun, b"")):
            first += piece
        is_zlib = len(first) > 1 and first[0] & 15 == 8 and int.from_bytes(first[:2]) % 31 == 0
        yield from _inflated(itertools.chain([first], begun), ZLIB if is_zlib else RAW)
    else:
        raise WrongTypeError(f"the reply is compressed as {encoding}, which wasn't asked for")


def _inflated(pieces: Iterable[bytes], how: int) -> Iterator[bytes]:
    inflating = zlib.decompressobj(how)
    is_begun = False
    try:
        for piece in pieces:
            rest = piece
            while rest:
                if inflating.eof:  # a body of several compressed members
                    inflating = zlib.decompressobj(how)
                is_begun = True
                yield inflating.decompress(rest, CHUNK)
                rest = inflating.unconsumed_tail or inflating.unused_data
        while chunk := inflating.decompress(b"", CHUNK):
            yield chunk
    except zlib.error as error:
        raise ReplyError(f"the compressed reply is damaged: {error}") from None
    if is_begun and not inflating.eof:
        raise ReplyError("the compressed reply ends too early")


# -- hanging up ------------------------------------------------------------------------------


class _Left:
    """Threads of abandoned requests, which would end only when the server closes the socket."""

    def __init__(self) -> None:
        self._start()
        after_fork_in_child(self, "_start")

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def add(self, thread: threading.Thread) -> None:
        with self._lock:
            self._threads.append(thread)
            if len(self._threads) > 1:
                return
        if start(self._end_all, "dicomslide hang up") is None:  # the process is ending
            self._threads.clear()

    def _end_all(self) -> None:
        while True:
            with self._lock:
                self._threads = [each for each in self._threads if each.is_alive()]
                threads = list(self._threads)
            if not threads:
                return
            frames = sys._current_frames()
            for thread in threads:
                _shut_down(frames.get(thread.ident or 0))
            del frames  # they reference the objects of all threads
            time.sleep(STEP)


_left = _Left()


def hang_up(thread: threading.Thread) -> None:
    """Close the socket on which a thread waits, so that the thread ends.

    The socket is found in the stack frames of the thread, because a caller's session has no
    interface for it. The session is not modified.
    """
    _left.add(thread)


def _shut_down(frame: object) -> None:
    """Shut down the first socket that a stack frame, or one below it, uses."""
    while frame is not None:
        owner = getattr(frame, "f_locals", {}).get("self")
        found = owner.sock if isinstance(owner, http.client.HTTPConnection) else owner
        if isinstance(found, socket.SocketIO):
            found = getattr(found, "_sock", None)
        if isinstance(found, socket.socket):
            with contextlib.suppress(OSError):  # that of a TLS socket ends encryption only
                socket.socket.shutdown(found, socket.SHUT_RDWR)
            return
        frame = getattr(frame, "f_back", None)
