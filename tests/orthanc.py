"""An Orthanc server of our own, on loopback: a real DICOMweb server, old and strict."""

from __future__ import annotations

import contextlib
import glob
import json
import shutil
import socket
import subprocess
import time

import pydicom
import requests

PLUGINS = sorted(glob.glob("/usr/lib/orthanc/libOrthancDicomWeb.so*"))
PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


def reason_to_skip():
    """Return why there is no Orthanc; None where there is one."""
    if PROGRAM is None or not PLUGINS:
        return "Orthanc isn't installed: apt-get install orthanc orthanc-dicomweb"
    return None


@contextlib.contextmanager
def running(folder):
    """Run a server whose data are in a folder; yield the URL of its DICOMweb service."""
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
        "AuthenticationEnabled": False,
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
    for _ in range(300):
        if process.poll() is not None:
            break
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/studies", timeout=10).ok:
                return
        time.sleep(0.1)
    raise RuntimeError(f"Orthanc doesn't answer: {log.read_text()[-2000:]}")


def store(url, paths):
    """Store files by STOW, byte for byte; return the UIDs of study and series of the last one."""
    for path in paths:
        part = b"--b-b\r\nContent-Type: application/dicom\r\n\r\n%s\r\n--b-b--"
        kind = 'multipart/related; type="application/dicom"; boundary=b-b'
        answer = requests.post(
            f"{url}/studies",
            data=part % path.read_bytes(),
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
            timeout=60,
        )
        answer.raise_for_status()
        assert not answer.json().get("00081198", {}).get("Value"), answer.text  # what failed
        header = pydicom.dcmread(path, stop_before_pixels=True)
    return str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
