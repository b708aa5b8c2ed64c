"""An HTTP server of files that takes ranges, counts them, and plays faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Serves a folder. `faults` are played by the requests that follow, one each."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder, port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = Path(folder)
        self.faults = []
        self.always = None
        self.requests = []  # (method, path, range, headers)
        self.nbytes = 0
        self.gate = None  # a barrier at which requests wait for each other
        self.token = None
        self.clients = set()
        self.connections = set()
        self.hangs = threading.Event()
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def forget(self):
        with self.lock:
            self.requests.clear()
            self.nbytes = 0

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def server_close(self):
        """End connections, too, as a process that ends."""
        super().server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # it has ended already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms
    server: RangeServer

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests.append(
                (self.command, self.path, self.headers.get("Range"), dict(self.headers))
            )
            fault = server.faults.pop(0) if server.faults else server.always
            server.clients.add(self.client_address)
        if fault == "hang":
            server.hangs.set()
            server.released.wait(60)
            self.close_connection = True
            return
        if server.gate is not None:
            server.gate.wait(10)
        if server.token is not None and self.headers.get("Authorization") != server.token:
            self.answer(401)
            return
        if isinstance(fault, tuple):
            status, headers = fault
            self.answer(status, headers)
            return
        if isinstance(fault, int):
            self.answer(fault)
            return
        path = server.folder / self.path.partition("?")[0].strip("/")
        if path.is_dir():
            links = "".join(f'<a href="{each.name}">x</a>' for each in sorted(path.iterdir()))
            self.answer(200, {"Content-Type": "text/html"}, links.encode())
            return
        if not path.is_file():
            self.answer(404)
            return
        self.give(path.read_bytes(), fault)

    def give(self, data, fault):
        etag = hashlib.md5(data).hexdigest() if fault != "etag" else "another"
        headers = {} if fault == "no etag" else {"ETag": f'"{etag}"'}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if found is None or fault == "whole":
            self.answer(200, headers, data)
            return
        start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
        if start >= stop:
            self.answer(416, headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        body = data[start:stop]
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if fault == "drip":
            self.drip(headers)
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True
            return
        if fault == "short":  # says so in its headers
            body = body[:-10]
            headers["Content-Range"] = f"bytes {start}-{stop - 11}/{len(data)}"
        if fault == "shifted":
            headers["Content-Range"] = f"bytes {start + 1}-{stop}/{len(data)}"
        self.answer(206, headers, body, cut=fault == "cut")

    def drip(self, headers):
        """Send a body that never ends, a byte now and then."""
        self.send_response(206)
        for name, value in (headers | {"Content-Length": "100000"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.server.released.wait(0.01):
                self.wfile.write(b"-")

    def answer(self, status, headers=None, body=b"", *, cut=False):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:  # the connection breaks in the middle of the body
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        with self.server.lock:  # before the client goes on, and perhaps asks how many there were
            self.server.nbytes += len(body)
        self.wfile.write(body)


@contextlib.contextmanager
def serving(folder, port=0):
    server = RangeServer(folder, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
