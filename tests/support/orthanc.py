"""An Orthanc server of our own, on loopback: a real DICOMweb server, old and strict."""

from __future__ import annotations

import base64
import contextlib
import glob
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydicom

from tests.support import optional, parts

PLUGINS = sorted(glob.glob("/usr/lib/orthanc/libOrthancDicomWeb.so*"))
PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


def reason_to_skip():
    """Return why there is no Orthanc; None where there is one."""
    if PROGRAM is None or not PLUGINS:
        return "Orthanc isn't installed: apt-get install orthanc orthanc-dicomweb"
    return optional.reason_to_skip("requests", "dicomweb_client")


@contextlib.contextmanager
def running(folder, users=None):
    """Run a server whose data are in a folder; yield the URL of its DICOMweb service.

    Parameters
    ----------
    folder : pathlib.Path
        Where its data are.
    users : mapping of str to str, optional
        Passwords by user; everybody is let in if not given.

    """
    parts.check("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpServerEnabled": True,
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": bool(users),
        "RegisteredUsers": users or {},
        "DicomServerEnabled": False,
        "HttpThreadsCount": 8,
        "Plugins": PLUGINS[-1:],
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
            "EnableWado": True,
            "StudiesMetadata": "Full",
            "SeriesMetadata": "Full",
        },
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([PROGRAM, str(path)], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/dicom-web"
        _wait_for(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _wait_for(url, process, log):
    import requests

    for _ in range(300):
        if process.poll() is not None:
            break
        with contextlib.suppress(requests.ConnectionError):
            answer = requests.get(f"{url}/studies", timeout=10)
            if answer.ok or answer.status_code == 401:
                return
        time.sleep(0.1)
    raise RuntimeError(f"Orthanc doesn't answer: {log.read_text()[-2000:]}")


def store(url, paths, auth=None):
    """Store files by STOW, byte for byte; return the UIDs of study and series of the last one."""
    import requests

    for path in paths:
        part = b"--b-b\r\nContent-Type: application/dicom\r\n\r\n%s\r\n--b-b--"
        kind = 'multipart/related; type="application/dicom"; boundary=b-b'
        answer = requests.post(
            f"{url}/studies",
            data=part % path.read_bytes(),
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
            timeout=60,
            auth=auth,
        )
        answer.raise_for_status()
        assert not answer.json().get("00081198", {}).get("Value"), answer.text  # what failed
        header = pydicom.dcmread(path, stop_before_pixels=True)
    return str(header.StudyInstanceUID), str(header.SeriesInstanceUID)


class Gate:
    """A reverse proxy before a server: each user sees some of its studies, and no others.

    Parameters
    ----------
    url : str
        URL of the DICOMweb service behind it, which checks passwords itself.
    rights : mapping of str to set of str
        Study Instance UIDs by user. What is changed holds from the next request on.

    """

    def __init__(self, url, rights):
        self._behind = url
        self.rights = rights
        self.requests = []  # (user, path)
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                gate.answer(self)

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # clients may go

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/dicom-web"

    def answer(self, request):
        authorization = request.headers.get("Authorization") or ""
        user = None
        if authorization.startswith("Basic "):
            user = base64.b64decode(authorization[6:]).decode().partition(":")[0]
        path = request.path.removeprefix("/dicom-web")
        self.requests.append((user, path))
        study = re.match(r"/studies/([\d.]+)", path)
        allowed = self.rights.get(user, set())
        headers = {
            name: request.headers[name]
            for name in ("Accept", "Authorization")
            if name in request.headers
        }
        if user is not None and study is not None and study[1] not in allowed:
            status, kind, body = 403, "text/plain", b"not for you"
        else:
            import requests

            answer = requests.get(self._behind + path, headers=headers, timeout=60)
            status, kind = answer.status_code, answer.headers.get("Content-Type", "")
            body = answer.content
            if study is None and status == 200:  # what a search finds
                found = [each for each in answer.json() if each["0020000D"]["Value"][0] in allowed]
                body = json.dumps(found).encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
