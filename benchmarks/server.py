"""A slide on a local Orthanc server, with and without latency; tests know how to start it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LATENCY", "ROUND_TRIP", "Place", "place_of", "served", "served_as_objects"]

ROUND_TRIP = 0.020
"""Added latency of a round trip in seconds."""
LATENCY = 0.050
"""Seconds after which a bucket answers a request."""
NAME = "server.json"
Place = dict[str, str]
"""URLs of the service: direct, without and with latency; and UIDs of study and series."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the slide in a folder; yield the reason if that isn't possible, else nothing."""
    try:
        from tests.support import orthanc
    except ImportError as error:
        yield str(error)
        return
    if reason := orthanc.reason_to_skip():
        yield reason
        return
    with (
        tempfile.TemporaryDirectory() as data,
        orthanc.running(Path(data)) as url,
        _way(url, 0) as near,
        _way(url, ROUND_TRIP) as far,
    ):
        study, series = orthanc.store(url, sorted(folder.glob("*.dcm")))
        place = {"itself": url, "near": near, "far": far, "study": study, "series": series}
        (folder / NAME).write_text(json.dumps(place), encoding="utf-8")
        yield ""


@contextlib.contextmanager
def served_as_objects(folder: Path, latency: float = LATENCY) -> Iterator[str]:
    """Serve the files of a folder as a bucket; yield why that can't be, or nothing."""
    try:
        import s3fs  # noqa: F401 - by which the bucket is read

        from tests.support.bucket import bucket_beside
    except ImportError as error:
        yield str(error)
        return
    with bucket_beside(folder, latency) as url:
        # so short that it isn't taken for an image
        (folder / NAME).write_text(json.dumps({"bucket": url}), encoding="utf-8")
        yield ""


def place_of(folder: str) -> Place:
    """Return the URLs of the slide in a folder."""
    return json.loads((Path(folder) / NAME).read_text(encoding="utf-8"))


@contextlib.contextmanager
def _way(url: str, round_trip: float) -> Iterator[str]:
    """Yield a URL of a proxy that adds latency in seconds, with the same throughput."""
    parts = urlsplit(url)
    started: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]]
    started = queue.SimpleQueue()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        ways = (reader, back), (there, writer)
        try:
            await asyncio.gather(*(_delayed(*way, round_trip / 2) for way in ways))
        finally:
            writer.close()
            back.close()

    async def run() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        end = asyncio.Event()
        started.put((asyncio.get_running_loop(), end, server.sockets[0].getsockname()[1]))
        await end.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    loop, end, port = started.get(timeout=10)
    try:
        yield parts._replace(netloc=f"127.0.0.1:{port}").geturl()
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)


async def _delayed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    """Forward data, each byte with a delay."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        data = b"-"
        while data:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            writer.write(data)
            await writer.drain()
        writer.close()

    arriving = asyncio.create_task(arrive())
    data = b"-"
    with contextlib.suppress(OSError):
        while data:
            data = await reader.read(2**18)
            under_way.put_nowait((loop.time() + seconds, data))
    with contextlib.suppress(OSError):
        await arriving
