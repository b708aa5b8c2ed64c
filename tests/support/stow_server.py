"""A DICOMweb server on loopback that stores instances, and refuses some."""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydicom

UIDS, FAILED, STORED = "00081155", "00081198", "00081199"


class StowServer:
    """Stores instances in memory.

    Parameters
    ----------
    refused : callable
        Returns the Failure Reason of a data set, or None for one that is stored.

    """

    def __init__(self, refused=lambda dataset: None):
        self.stored = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                boundary = self.headers["Content-Type"].rpartition("boundary=")[2].encode()
                part = body.split(b"--" + boundary)[1].partition(b"\r\n\r\n")[2][:-2]
                dataset = pydicom.dcmread(io.BytesIO(part))
                reason = refused(dataset)
                item = {UIDS: {"vr": "UI", "Value": [dataset.SOPInstanceUID]}}
                if reason is None:
                    server.stored[dataset.SOPInstanceUID] = part
                    answer = {STORED: {"vr": "SQ", "Value": [item]}}
                else:
                    item["00081197"] = {"vr": "US", "Value": [reason]}
                    answer = {FAILED: {"vr": "SQ", "Value": [item]}}
                answer = json.dumps(answer).encode()
                self.send_response(200 if reason is None else 409)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/dicom-web"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
