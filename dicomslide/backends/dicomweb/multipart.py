"""Replies of several parts (multipart/related, RFC 2387), parsed while they arrive."""

from __future__ import annotations

import dataclasses
import functools
from email.message import Message
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Part", "ReplyError", "WrongTypeError", "parts_of"]

LONGEST_HEADERS = 16384
"""Upper bound on the bytes of a part's headers."""
MOST_DIGITS = 18
"""Upper bound on the digits of a number in a header."""
WHETHER_STORED = "a fault, or what is stored so, which a reply doesn't tell"
"""Appended to messages about empty parts: an empty frame may be stored, as background."""
END_OF_LINE = b"\r\n"
END_OF_HEADERS = b"\r\n\r\n"


class ReplyError(ValueError):
    """A reply is damaged; another attempt may succeed."""


class WrongTypeError(ReplyError):
    """A reply is complete, but not what was requested; another attempt has no prospect."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Part of a reply."""

    headers: Mapping[str, str]
    """Values by name in lower case."""
    data: bytes

    @property
    def media_type(self) -> str:
        """Media type, in lower case; empty if the part has none."""
        return _parsed(self.headers.get("content-type", ""))[0]

    @property
    def transfer_syntax_uid(self) -> str | None:
        """Transfer syntax that the part declares; None if it doesn't."""
        return _parsed(self.headers.get("content-type", ""))[1].get("transfer-syntax")

    @property
    def frame_number(self) -> int | None:
        """One-based frame number in the Content-Location; None without one."""
        before, found, number = self.headers.get("content-location", "").rpartition("/frames/")
        return _number(number) if found and before else None


def parts_of(content_type: str, chunks: Iterable[bytes]) -> Iterator[Part]:
    """Yield the parts of a reply, each as soon as it is complete.

    Parameters
    ----------
    content_type : str
        Content-Type of the reply. A reply that isn't multipart is returned as one part, because
        some servers send a single frame in this way.
    chunks : iterable of bytes
        The body, divided at any position.

    Raises
    ------
    ReplyError
        When the reply ends before its closing delimiter, or a part has another length than it
        declares.

    """
    media_type, parameters = _parsed(content_type)
    boundary = parameters.get("boundary")
    if not media_type.startswith("multipart/") or boundary is None:
        data = b"".join(chunks)
        if media_type.startswith("multipart/") and data.startswith(b"--"):
            raise ReplyError(f"a reply of several parts without a boundary: {content_type}")
        if not data:  # it would be background
            raise ReplyError(f"the reply is empty: {WHETHER_STORED}")
        single = {} if media_type.startswith("multipart/") else {"content-type": content_type}
        yield Part(single, data)
        return
    delimiter = END_OF_LINE + b"--" + boundary.encode("latin-1", "replace")
    body = _Body(chunks)
    body.take_to(delimiter, "its first part")
    count = 0
    while not body.starts_with(b"--"):
        count += 1
        what = f"the end of part {count}"
        headers = _headers(body.take_to(END_OF_HEADERS, what, most=LONGEST_HEADERS))
        length = _number(headers.get("content-length", ""))
        if length is not None:
            # not by the delimiter, which the bytes of a frame may contain
            data = body.take(length, what)
            if not body.starts_with(delimiter):
                raise ReplyError(f"part {count} isn't the {length} bytes long that it says")
            body.take(len(delimiter), what)
        else:
            data = body.take_to(delimiter, what)
        yield Part(headers, data)
    body.finish()


class _Body:
    """Body of a reply, of which only unused bytes are held."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        # the first delimiter may begin the body, without an end of line before it
        self._held = bytearray(END_OF_LINE)

    def _receive(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._held += chunk
        return True

    def _expect(self, size: int) -> bool:
        while len(self._held) < size:
            if not self._receive():
                return False
        return True

    def starts_with(self, text: bytes) -> bool:
        """Whether the remaining body starts with a text."""
        return self._expect(len(text)) and self._held.startswith(text)

    def take(self, size: int, what: str) -> bytes:
        """Return the next bytes."""
        if not self._expect(size):
            raise ReplyError(f"the reply ends before {what}")
        with memoryview(self._held) as held:
            taken = bytes(held[:size])
        del self._held[:size]
        return taken

    def take_to(self, mark: bytes, what: str, most: int | None = None) -> bytes:
        """Return the bytes before a mark, and skip the mark."""
        start = 0
        while (at := self._held.find(mark, start)) < 0:
            start = max(0, len(self._held) - len(mark) + 1)
            if most is not None and start > most:
                raise ReplyError(f"there are no headers at the start of {what.split(' of ')[-1]}")
            if not self._receive():
                raise ReplyError(f"the reply ends before {what}")
        taken = self.take(at, what)
        del self._held[: len(mark)]
        return taken

    def finish(self) -> None:
        """Receive and ignore the rest, after which the connection can be reused."""
        for _ in self._chunks:
            pass


def _headers(block: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in block.decode("latin-1").split("\r\n"))
    return {name.strip().lower(): value.strip() for name, colon, value in lines if colon}


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


@functools.lru_cache(64)  # parts of a reply mostly have equal types
def _parsed(content_type: str) -> tuple[str, Mapping[str, str]]:
    """Return media type and parameters of a Content-Type."""
    message = Message()
    message["content-type"] = content_type.replace("\r", "").replace("\n", "")
    (media_type, _), *parameters = message.get_params(failobj=[("", "")])
    return media_type.strip().lower(), {name.lower(): str(value) for name, value in parameters}
