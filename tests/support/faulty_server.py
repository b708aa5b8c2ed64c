"""A DICOMweb server on loopback, over the files of a folder, which plays faults on demand."""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import threading
import time
import zlib
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from tests.support.fake_client import FakeClient

TOKEN = "token-that-is-secret"
BOUNDARY = "a-boundary"
AS_STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that have gone."""

    def handle_error(self, request, client_address):
        pass


class FaultyServer:
    """Serves metadata, frames and bulk data; each fault is played once, in turn.

    Parameters
    ----------
    folder : pathlib.Path
        Where the files are.
    latency : float, default: 0
        Seconds before each answer.

    """

    def __init__(self, folder, *, latency=0.0):
        self.archive = None if folder is None else FakeClient(folder)
        self.latency = latency
        self.faults = deque()
        self.depth = 400
        self.bomb_type = "application/dicom+json"
        self.token = None  # if any, what a request must bear
        self.accepts = lambda accept: accept == AS_STORED
        self.refusal = 406  # status of what it doesn't accept
        self.requests = []  # (path, headers)
        self.frames = []  # one-based numbers asked for, request by request
        self.bad = set()  # numbers of frames that it doesn't give
        self.gate = None  # a barrier at which the first requests for frames wait for each other
        self.most_at_once = 0  # of requests for frames
        self._at_once = 0
        self._lock = threading.Lock()
        self.bytes_sent = 0
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/dicom-web"

    def play(self, *faults):
        """Let the next requests fail: names of methods of the handler, or status codes."""
        self.faults.extend(faults)

    @contextlib.contextmanager
    def counted(self, numbers):
        """Count a request for frames while it is answered; yield how many there have been."""
        with self._lock:
            self.frames.append(numbers)
            count = len(self.frames)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield count
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(self):
        server = self

        class Handler(self.handler):
            owner = server

        return Handler


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms
    owner = None

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        owner = self.owner
        owner.requests.append((self.path, dict(self.headers)))
        found = re.search(r"/frames/([\d,]+)", self.path)
        if found is None:
            self.respond()
            return
        numbers = [int(number) for number in found[1].split(",")]
        with owner.counted(numbers) as count:
            if owner.gate is not None and count <= owner.gate.parties:
                owner.gate.wait(10)
            self.respond(404 if owner.bad.intersection(numbers) else None)

    def respond(self, fault=None):
        owner = self.owner
        if owner.latency:
            time.sleep(owner.latency)
        if owner.faults and fault is None:
            fault = owner.faults.popleft()
        if owner.token is not None and self.headers.get("Authorization") != f"Bearer {owner.token}":
            fault = fault or 401
        if fault is None:
            self.answer()
        elif isinstance(fault, int):
            self.send(fault, "text/plain", b"no")
        elif isinstance(fault, tuple):
            status, headers = fault
            self.send(status, "text/plain", b"later", headers)
        else:
            getattr(self, fault)()

    # -- answers --

    def send(self, status, content_type, body, headers=(), length=None):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.owner.bytes_sent += len(body)

    def send_parts(self, parts, *, closing=b"--", cut=None, headers=()):
        body = b"".join(
            b"\r\n--%s\r\n%s\r\n\r\n%s" % (BOUNDARY.encode(), head.encode(), data)
            for head, data in parts
        )
        body += b"\r\n--%s%s" % (BOUNDARY.encode(), closing)
        kind = f'multipart/related; type="application/octet-stream"; boundary="{BOUNDARY}"'
        self.send(200, kind, body if cut is None else body[:cut], headers)

    def parts(self, located=True):
        path = urlsplit(self.path).path
        uid, numbers = re.search(r"/instances/([^/]+)/frames/([\d,]+)", path).groups()
        dataset = self.owner.archive.datasets[uid]
        frames = self.owner.archive.frames(uid)
        syntax = dataset.file_meta.TransferSyntaxUID
        return [
            (
                f"Content-Type: application/octet-stream; transfer-syntax={syntax}"
                + (f"\r\nContent-Location: {path.rpartition('/')[0]}/{number}" if located else ""),
                frames[int(number) - 1],
            )
            for number in numbers.split(",")
        ]

    def answer(self):
        archive = self.owner.archive
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/dicom-web").strip("/").split("/")
        if "frames" in path:
            if not self.owner.accepts(self.headers.get("Accept")):
                return self.send(self.owner.refusal, "text/plain", b"")
            return self.send_parts(self.parts())
        if len(path[-1]) == 8 and path[-1].isdecimal():  # a tag
            (data,) = archive.retrieve_bulkdata(parts.path)
            return self.send_parts([("Content-Type: application/octet-stream", data)])
        if path[-1] == "metadata":
            uids = dict(zip(path[::2], path[1::2], strict=False))
            found = [
                archive._json(dataset)
                for dataset in archive.datasets.values()
                if dataset.SeriesInstanceUID == uids["series"]
                and uids.get("instances") in (None, dataset.SOPInstanceUID)
            ]
            return self.send(200, "application/dicom+json", json.dumps(found).encode())
        if path[-1] in ("series", "studies", "instances"):
            return self.search(path, parse_qs(parts.query))
        return self.send(404, "text/plain", b"")

    def search(self, path, query):
        archive = self.owner.archive
        page = dict(limit=int(query["limit"][0]), offset=int(query["offset"][0]))
        filters = {k: v[0] for k, v in query.items() if k not in page}
        search = getattr(archive, f"search_for_{path[-1]}")
        where = {} if len(path) < 3 else {"study_instance_uid": path[1]}
        found = search(search_filters=filters, **where, **page)
        self.send(200, "application/dicom+json", json.dumps(found).encode())

    # -- faults --

    def silence(self):
        self.owner.released.wait(5)

    def reset(self):
        linger = struct.pack("ii", 1, 0)
        import socket

        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()

    def truncated(self):
        whole = self.parts()[0][1]
        self.send(200, f"multipart/related; boundary={BOUNDARY}", whole[:20], length=5000)
        self.close_connection = True

    def cut_last_part(self):
        self.send_parts(self.parts(), cut=-len(BOUNDARY) - 12)

    def no_closing_delimiter(self):
        self.send_parts(self.parts(), cut=-len(BOUNDARY) - 6)

    def short_part(self):
        head, data = self.parts()[0]
        self.send_parts([(f"{head}\r\nContent-Length: {len(data)}", data[:-3]), *self.parts()[1:]])

    def missing(self):
        self.send_parts(self.parts(located=False)[:-1])

    def surplus(self):
        self.send_parts([*self.parts(located=False), self.parts(located=False)[0]])

    def reordered(self):
        self.send_parts(self.parts()[::-1])

    def other_frames(self):
        head, data = self.parts()[0]
        self.send_parts([(re.sub(r"/frames/\d+", "/frames/999", head), data), *self.parts()[1:]])

    def wrong_part_type(self):
        self.send_parts([("Content-Type: text/html", b"<p>no") for _ in self.parts()])

    def login_page(self):
        self.send(200, "text/html", b"<html>please log in")

    def empty(self):
        self.send(200, "application/octet-stream", b"")

    def empty_part(self):
        """All parts but the first have no bytes."""
        (first, data), *others = self.parts()
        self.send_parts([(first, data if others else b""), *((head, b"") for head, _ in others)])

    def empty_part_with_length(self):
        self.send_parts([(f"{head}\r\nContent-Length: 0", b"") for head, _ in self.parts()])

    def damaged_frames(self):
        """A reply that is whole, of codestreams that aren't."""
        self.send_parts([(head, data[: len(data) // 2]) for head, data in self.parts()])

    def no_codestreams(self):
        self.send_parts([(head, b"<html>".ljust(len(data), b" ")) for head, data in self.parts()])

    def cropped_frames(self):
        """Codestreams that are whole, of fewer pixels than a frame has, also one at an edge."""
        file = io.BytesIO()
        Image.new("RGB", (2, 2), (200, 40, 120)).save(file, "JPEG")
        self.send_parts([(head, file.getvalue()) for head, _ in self.parts()])

    def no_content(self):
        self.send_response(204)
        self.end_headers()

    def swapped_numbers(self):
        (first, data), (second, other) = self.parts()[:2]
        parts = [(second, data), (first.partition("\r\n")[0], other)]
        self.send_parts(parts)

    def redirect(self):
        headers = {"Location": self.owner.elsewhere + urlsplit(self.path).path}
        self.send(302, "text/plain", b"", headers)

    def dripping_headers(self):
        self.send_response(200)
        self.flush_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b"X-Endless: ")
            while not self.owner.released.wait(0.01):
                self.wfile.write(b"-")

    def steady(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(10):
            self.owner.released.wait(0.05)
            self.wfile.write(bytes(100_000))

    def endless(self):
        """Bytes that come steadily, and never end: more than anybody waits for."""
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"[")
            while not self.owner.released.wait(0.02):
                self.wfile.write(b" " * 50_000)

    def bomb(self):
        """A reply of 300 kB that becomes 300 MB."""
        body = getattr(self.owner, "bomb", None)
        if body is None:
            packer = zlib.compressobj(9, zlib.DEFLATED, 31)
            nothing = bytes(2**20)
            body = b"".join(packer.compress(nothing) for _ in range(300)) + packer.flush()
            self.owner.bomb = body
        self.send(200, self.owner.bomb_type, body, {"Content-Encoding": "gzip"})

    def deep_json(self):
        self.send(200, "application/dicom+json", b"[" * 10**6)

    def nested_json(self):
        """DICOM JSON that is valid, and nested deeper than any program goes."""
        depth = self.owner.depth
        body = b'[{"00081140":{"vr":"SQ","Value":' * depth + b"[]" + b"}}]" * depth
        self.send(200, "application/dicom+json", body)

    def dripping_chunk(self):
        """A chunk whose length never ends."""
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.owner.released.wait(0.01):
                self.wfile.write(b"0")

    def trickle(self):
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/related; boundary={BOUNDARY}")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.owner.released.wait(0.01):
                self.wfile.write(b"-")


FaultyServer.handler = Handler


def url_of(server, series=True):
    """Return the URL of a server's study, or of its series, as `open_slide` takes it."""
    dataset = next(iter(server.archive.datasets.values()))
    study, its_series = dataset.StudyInstanceUID, dataset.SeriesInstanceUID
    return f"dicomweb+{server.url}/studies/{study}" + (f"/series/{its_series}" if series else "")
