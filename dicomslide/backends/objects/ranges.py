"""Ranges of bytes of an object on a server.

Every answer is checked; one that isn't exactly what was asked for is a failure.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import time
from typing import TYPE_CHECKING, Any

from dicomslide.backends.net import policy
from dicomslide.backends.net.addresses import MOST_REDIRECTS, is_same_origin, redirect_of
from dicomslide.backends.net.policy import retry_after, status_text
from dicomslide.backends.objects.attempts import Fault, Place, Reach, ask, awaited
from dicomslide.process.forks import ForkLock
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from tarfile import TarInfo
    from zipfile import ZipInfo

    from dicomslide.header.blobs import Span

__all__ = ["Answer", "read_ranges", "version_of"]

IN_FLIGHT = 16
"""Upper bound on requests of one read that are under way at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Bytes of an object, with its size and version."""

    data: bytes
    size: int | None
    """Bytes of the whole object; None where the server doesn't say."""
    version: str
    """ETag of the object, or its time of change; empty where the server says neither."""


def read_ranges(reach: Reach, spans: Sequence[Span], *, is_known: bool = True) -> list[Answer]:
    """Read ranges of an object, several at once.

    Parameters
    ----------
    reach : Reach
        The way to the object.
    spans : sequence of Span
        The ranges.
    is_known : bool, default: True
        Whether the caller knows the version of the object and compares it. If not, an object that
        changes while it is read is a failure.

    Returns
    -------
    list of Answer
        One for each range; shorter than it only where the object ends.

    Raises
    ------
    RangeError
        When a range can't be read.

    """
    bounds = policy.POLICY
    nbytes = sum(stop - start for start, stop in spans)

    def request(place: Place, wanted: Sequence[int], left: float) -> list[Any]:
        limit = min(bounds.silence + bounds.extra(nbytes), left)
        return _request(place, [spans[item] for item in wanted], limit, left, is_known)

    return ask(reach, len(spans), request, nbytes=nbytes)


def version_of(place: Place) -> str:
    """Return a text that differs from that of any other object at the same place."""
    limit = policy.POLICY.silence
    (answer,) = _request(place, [(0, 1)], limit, limit, is_known=False)
    if isinstance(answer, Exception):
        raise answer
    return _version(answer)


def _version(answer: Answer) -> str:
    return f"{answer.size} {answer.version}"


def _request(
    place: Place, spans: Sequence[Span], limit: float, left: float, is_known: bool
) -> list[Any]:
    protocol = place.filesystem.protocol
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    get: Callable[[Any, str, int, int], Coroutine[Any, Any, Answer]]
    if names & {"http", "https"}:
        get = _http_range
    elif "s3" in names:
        get = _s3_range
    elif names & {"zip", "tar"} and place.inside and (member := _stored_member(place)) is not None:
        return _stored_ranges(place, member, spans, limit, left, is_known)
    elif "tar" in names:
        with _one_by_one:
            return _any_ranges(place, spans, limit, is_known)
    else:
        return _any_ranges(place, spans, limit, is_known)
    return awaited(place.filesystem.loop, _gathered(get, place, spans, limit, left), left + 1)


async def _gathered(
    get: Callable[[Any, str, int, int], Coroutine[Any, Any, Answer]],
    place: Place,
    spans: Sequence[Span],
    limit: float,
    left: float,
) -> list[Any]:
    """Request several ranges at once, each within the limits of a request and of the read."""
    import asyncio

    slots = asyncio.Semaphore(IN_FLIGHT)
    until = time.monotonic() + left

    async def one(span: Span) -> Answer:
        async with slots:
            time_left = min(limit, until - time.monotonic())
            return await asyncio.wait_for(get(place.filesystem, place.path, *span), time_left)

    return await asyncio.gather(*(one(span) for span in spans), return_exceptions=True)


async def _http_range(filesystem: Any, url: str, start: int, stop: int) -> Answer:
    """Ask an HTTP server for a range, in fsspec's session.

    fsspec's own request accepts the whole object as the answer to a request for a range.
    """
    options = {**filesystem.kwargs, "allow_redirects": False}
    wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    headers = {**options.pop("headers", {}), **wanted}
    session = await filesystem.set_session()
    at = str(filesystem.encode_url(url))

    first = at
    for _ in range(MOST_REDIRECTS + 1):
        if not is_same_origin(at, first):
            return await _elsewhere(filesystem, at, wanted, start, stop)
        async with session.get(filesystem.encode_url(at), headers=headers, **options) as response:
            target = redirect_of(at, response.status, response.headers.get("Location"))
            if target is None:
                return await _http_answer(response, start, stop)
        at = target
    raise Fault(f"more than {MOST_REDIRECTS} redirects", is_lasting=True)


async def _elsewhere(
    filesystem: Any, url: str, headers: dict[str, str], start: int, stop: int
) -> Answer:
    """Follow a redirect to another origin, without the credentials and headers for the first."""
    from fsspec.implementations.http import HTTPFileSystem

    # one file system, cached by fsspec with its connections: some archives redirect each request
    proxies = bool(filesystem.client_kwargs.get("trust_env"))
    session = await HTTPFileSystem(client_kwargs={"trust_env": proxies}).set_session()
    async with session.get(url, headers=headers, max_redirects=MOST_REDIRECTS) as response:
        return await _http_answer(response, start, stop)


async def _http_answer(response: Any, start: int, stop: int) -> Answer:
    status, headers = response.status, response.headers
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    content_range = headers.get("Content-Range", "")
    if status == 416:
        size = content_range.rpartition("/")[2]
        if size.isdecimal() and int(size) <= start:
            return Answer(b"", int(size), version)
    if status == 200:
        length = headers.get("Content-Length", "")
        if start > 0 or not length.isdecimal() or int(length) > stop:
            raise Fault(
                f"the whole object came (HTTP status 200), not bytes {start} to {stop}: does the"
                " server take range requests?"
            )
        content_range = f"bytes 0-{int(length) - 1}/{length}"
    elif status != 206:
        wait = retry_after(headers.get("Retry-After"), policy.POLICY.clock)
        raise Fault(status_text(status), status, wait=wait)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Fault(f"it came compressed: {headers['Content-Encoding']}", is_lasting=True)
    return _checked(await response.read(), start, stop, content_range, version)


async def _s3_range(filesystem: Any, path: str, start: int, stop: int) -> Answer:
    """Ask S3 for a range; unlike the method of s3fs, this returns the ETag of the object."""
    bucket, key, version = filesystem.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}"}
    wanted |= filesystem.req_kw  # RequestPayer, which not every version of s3fs adds
    if version:
        wanted["VersionId"] = version
    answer = await filesystem._call_s3("get_object", **wanted)
    async with answer["Body"] as body:
        data = await body.read()
    content_range = answer.get("ContentRange")
    if content_range is None:  # the whole object
        content_range = f"bytes 0-{answer['ContentLength'] - 1}/{answer['ContentLength']}"
    return _checked(data, start, stop, content_range, answer.get("ETag", ""))


_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)


def _checked(data: bytes, start: int, stop: int, content_range: str, version: str) -> Answer:
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        raise Fault(f"its answer doesn't say which bytes it holds (Content-Range {content_range})")
    first, last = int(found[1]), int(found[2])
    size = None if found[3] == "*" else int(found[3])
    expected = stop if size is None else min(stop, size)
    if first != start or last + 1 != expected or len(data) != expected - start:
        raise Fault(
            f"{len(data)} bytes came as bytes {first} to {last + 1}, expected {start} to {expected}"
        )
    return Answer(data, size, version)


# -- any file system -------------------------------------------------------------------------

_ETAGS = ("ETag", "etag", "generation")
_TIMES = (
    "mtime", "last_modified", "LastModified", "updated", "modified", "modify", "date_time",
    "last_write_time", "created",
)  # fmt: skip


def _any_ranges(place: Place, spans: Sequence[Span], limit: float, is_known: bool) -> list[Any]:
    """Read with the methods that every file system has, and ask for the version afterwards.

    If size and version are the same before and after, the bytes in between are of that version.
    """
    filesystem = place.filesystem
    paths = [place.path] * len(spans)
    starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
    before = None if is_known else _state(place, limit)
    if filesystem.async_impl:
        data = awaited(
            filesystem.loop,
            filesystem._cat_ranges(paths, starts, stops, batch_size=IN_FLIGHT, on_error="return"),
            limit,
        )
    else:
        data = filesystem.cat_ranges(paths, starts, stops, on_error="return")
    size, version = _state(place, limit)
    if before not in (None, (size, version)):
        raise Fault("it was changed while it was read")
    return [
        each if isinstance(each, Exception) else _checked_length(each, span, size, version)
        for each, span in zip(data, spans, strict=True)
    ]


def _checked_length(data: bytes, span: Span, size: int, version: str) -> Answer | Fault:
    expected = max(0, min(span[1], size) - span[0])
    if len(data) == expected:
        return Answer(bytes(data), size, version)
    return Fault(f"{len(data)} bytes came, expected {expected} from byte {span[0]}")


def _state(place: Place, limit: float) -> tuple[int, str]:
    """Return size and version of an object, as they are now."""
    filesystem = place.filesystem
    filesystem.invalidate_cache()
    if filesystem.async_impl:
        info = awaited(filesystem.loop, filesystem._info(place.path), limit)
    else:
        info = filesystem.info(place.path)
    if info.get("type") == "directory":
        raise IsADirectoryError(place.path)
    names = [name for name in _ETAGS if info.get(name)] or [n for n in _TIMES if info.get(n)]
    parts = [str(info[name]) for name in names[:1]]
    parts += [str(info[name]) for name in ("CRC",) if name in info]
    parts += [str(part) for inner in place.inside for part in _state(inner, limit)]
    return int(info["size"] or 0), " ".join(parts)


# -- archives --------------------------------------------------------------------------------

_ZIP_HEADER = struct.Struct("<4s22xHH")
"""Local header of a zip's member: signature, and lengths of the two parts behind it."""
_TAR_HEADER = 512
"""Bytes of a tar's member before its own."""
_starts: Registry[ZipInfo | TarInfo, int] = Registry(1024, "places in archives")
"""Offset of the bytes of members in their archives."""
_one_by_one = ForkLock()
"""Held while fsspec reads a compressed tar, in which all threads share one position."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    """A member of an archive that is stored without compression."""

    entry: ZipInfo | TarInfo
    """Entry of the archive's directory."""
    at: int
    """Offset of its header."""
    header: int
    """Bytes of the header."""
    size: int
    tag: str
    """Text that differs between members of one name."""

    def start(self, header: bytes) -> int | None:
        """Return the offset of its bytes; None where `header` isn't the header of a member."""
        if self.header == _TAR_HEADER:
            return self.at + _TAR_HEADER if _is_tar_header(header, self.size) else None
        signature, *lengths = _ZIP_HEADER.unpack(header.ljust(self.header, b"\0"))
        return self.at + self.header + sum(lengths) if signature == b"PK\3\4" else None


def _is_tar_header(block: bytes, size: int) -> bool:
    import tarfile

    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size in (size, 0)
    except tarfile.HeaderError:
        return False


def _stored_member(place: Place) -> _Member | None:
    """Return a member that is stored without compression; None for any other."""
    filesystem = place.filesystem
    if filesystem.protocol == "tar":
        return _member_of_tar(place)
    member: ZipInfo | None = filesystem.zip.NameToInfo.get(place.path)
    if member is None or member.compress_type or member.flag_bits & 1 or not member.file_size:
        return None
    return _Member(
        member, member.header_offset, _ZIP_HEADER.size, member.file_size, str(member.CRC)
    )


def _member_of_tar(place: Place) -> _Member | None:
    from fsspec.utils import infer_compression

    (archive,) = place.inside
    if infer_compression(archive.path):
        return None
    try:
        member: TarInfo = place.filesystem.tar.getmember(place.path)
    except KeyError:  # fsspec has changed the name
        return None
    if not member.isreg() or member.issparse() or not member.size:
        return None
    at = member.offset_data - _TAR_HEADER
    return _Member(member, at, _TAR_HEADER, member.size, f"{at} {member.mtime}")


def _stored_ranges(
    place: Place, member: _Member, spans: Sequence[Span], limit: float, left: float, is_known: bool
) -> list[Any]:
    """Read ranges of the archive itself: zipfile would read all bytes before them."""
    (archive,) = place.inside
    size = member.size

    def read(spans: list[Span]) -> list[Any]:
        answers = _request(archive, spans, limit, left, is_known)
        for each in answers:
            is_answer = isinstance(each, Answer) and not archive.inside
            if is_answer and not is_known and _version(each) != place.archive:
                raise Fault("the archive was changed while it was opened", is_lasting=True)
        return answers

    def find() -> int:
        (answer,) = read([(member.at, member.at + member.header)])
        if isinstance(answer, Exception):
            raise answer
        start = member.start(answer.data)
        if start is None:
            raise Fault("it doesn't begin where the archive's directory says")
        return start

    start = _starts.get(member.entry, find)
    return [
        each
        if isinstance(each, Exception)
        else Answer(each.data, size, f"{each.version} {member.tag}")
        for each in read([(start + first, start + min(last, size)) for first, last in spans])
    ]
