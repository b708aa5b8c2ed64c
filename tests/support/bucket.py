"""A server of a folder that answers as S3 does: it lists objects and gives ranges, after a while.

Run as a program, it takes no time from the process whose requests it counts:
``python -m tests.support.bucket FOLDER SECONDS`` prints its URL and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

NAME = "slides"
"""Of the only bucket."""
PAGE = 1000
"""Objects that one answer to a listing names, as in S3."""


class BucketServer:
    """Serves the files of a folder as objects of the bucket `NAME`, each after some seconds."""

    def __init__(self, folder, latency=0.0):
        self.folder = Path(folder)
        self.latency = latency
        self.requests = []  # (method, key or listing, range)
        self.gate = 0  # objects are given once so many are asked for at once
        self.under_way = 0
        self._etags = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self):
        """Keys of the objects that were asked for, in order; not listings."""
        return [key for _, key, _ in self.requests if not key.startswith("list ")]

    @property
    def options(self):
        """Storage options of s3fs."""
        where = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return {"key": "someone", "secret": "secret", "client_kwargs": where}

    def forget(self):
        self.requests.clear()

    async def start(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader, writer):
        # cancelled at the end of the server
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")
                method, target, _ = first.split(" ")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                self.under_way += 1
                await asyncio.sleep(self.latency)
                if "list-type" not in target:
                    await self._wait_at_gate()
                status, fields, body = self._answer(method, target, headers.get("range"))
                self.under_way -= 1
                fields |= {"Content-Length": str(len(body))}
                text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
                writer.write(f"HTTP/1.1 {status}\r\n{text}\r\n".encode())
                writer.write(b"" if method == "HEAD" else body)
                await writer.drain()
        writer.close()

    async def _wait_at_gate(self):
        for _ in range(1000):
            if self.under_way >= self.gate:
                self.gate = 0
                return
            await asyncio.sleep(0.01)

    def _answer(self, method, target, wanted):
        path, _, query = target.partition("?")
        if path == "/requests":  # for who counts them in another process
            return "200 OK", {}, str(len(self.requests)).encode()
        bucket, _, key = unquote(path).strip("/").partition("/")
        if not key:
            given = {name: values[0] for name, values in parse_qs(query).items()}
            self.requests.append((method, f"list {given.get('prefix', '')}", None))
            return "200 OK", {"Content-Type": "application/xml"}, self._listing(given)
        self.requests.append((method, key, wanted))
        file = self.folder / key
        if bucket != NAME or not file.is_file():
            code = "<Error><Code>NoSuchKey</Code></Error>"
            return "404 Not Found", {"Content-Type": "application/xml"}, code.encode()
        data = file.read_bytes()
        fields = {"ETag": self._etag(file, data), "Last-Modified": "Mon, 30 Nov 2026 09:00:00 GMT"}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if found is None:
            return "200 OK", fields, data
        start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
        fields["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return "206 Partial Content", fields, data[start:stop]

    def _etag(self, file, data):
        key = file, file.stat().st_mtime_ns, len(data)
        if key not in self._etags:
            self._etags[key] = f'"{hashlib.md5(data).hexdigest()}"'
        return self._etags[key]

    def _listing(self, given):
        prefix, after = given.get("prefix", ""), given.get("continuation-token", "")
        keys = {
            file.relative_to(self.folder).as_posix(): file
            for file in self.folder.rglob("*")
            if file.is_file()
        }
        keys = {key: keys[key] for key in sorted(keys) if key.startswith(prefix) and key > after}
        folders = []
        if delimiter := given.get("delimiter"):
            inside = {key: key[len(prefix) :].partition(delimiter) for key in keys}
            folders = sorted({prefix + a + delimiter for a, mark, _ in inside.values() if mark})
            keys = {key: file for key, file in keys.items() if not inside[key][1]}
        page = list(keys.items())[:PAGE]
        more = len(keys) > PAGE
        parts = [f"<Name>{NAME}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{PAGE}</MaxKeys>"]
        parts += [f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"]
        if more:
            token = escape(page[-1][0])
            parts.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        parts += [
            f"<Contents><Key>{escape(key)}</Key><Size>{file.stat().st_size}</Size>"
            "<LastModified>2026-11-30T09:00:00.000Z</LastModified>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key, file in page
        ]
        parts += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders]
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return f'<ListBucketResult xmlns="{space}">{"".join(parts)}</ListBucketResult>'.encode()


@contextlib.contextmanager
def bucket_of(folder, latency=0.0):
    """Serve a folder from a thread of this process; yield the server, which counts requests."""
    server = BucketServer(folder, latency)
    ready = threading.Event()

    async def run():
        listening = await server.start()
        server.loop, server.end = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await server.end.wait()
        listening.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield server
    finally:
        server.loop.call_soon_threadsafe(server.end.set)
        thread.join(10)


@contextlib.contextmanager
def bucket_beside(folder, latency=0.0):
    """Serve a folder from a process of its own; yield the URL."""
    command = [sys.executable, "-m", "tests.support.bucket", str(folder), str(latency)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


async def _run(folder, latency):
    server = BucketServer(folder, latency)
    listening = await server.start()
    print(server.url, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    listening.close()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], float(sys.argv[2])))
