"""A proxy that plays every fault before a server, and readers whose pixels must be right.

Run by hand, for as long as one likes: ``python -m tests.support.chaos SECONDS [SEED]``. Nothing may
come out wrong, hang, or fail with an error that isn't dicomslide's own; and once the server is well
again, all that was kept meanwhile must be what the files hold.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import email
import functools
import gc
import os
import pickle
import random
import re
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import requests
from dicomweb_client.api import DICOMwebClient

import dicomslide
from dicomslide.backends.dicomweb import connection, service
from dicomslide.backends.net import policy
from dicomslide.testing import write_slide
from tests.support import orthanc
from tests.support.faulty_server import FaultyServer, Handler
from tests.support.profiles import swapped_profile

SHORT = policy.Policy(
    deadline=1.0, attempts=4, first_wait=0.01, longest_wait=0.1, connect=0.5, silence=0.3
)
OURS = ("dicomslide request", "dicomslide hang up")
SAID = (dicomslide.FrameWarning, dicomslide.MetadataWarning)
"""Of frames that lack pixels, and of profiles that can't be had: what is shown then isn't right."""
HUNG = 60.0
"""Seconds after which a read hangs: far more than its requests may take together."""

OF_ALL = (401, 403, 404, 429, 500, 502, 503, "reset", "empty", "login_page", "endless",
          "dripping_headers", "dripping_chunk", "trickle", "bomb", "silence")  # fmt: skip
OF_FRAMES = (413, "truncated", "cut_last_part", "no_closing_delimiter", "short_part", "missing",
             "surplus", "other_frames", "wrong_part_type", "no_content", "empty_part",
             "empty_part_with_length", "damaged_frames", "no_codestreams", "cropped_frames",
             "reordered")  # fmt: skip
OF_JSON = ("deep_json", "nested_json")


class _Chaotic(Handler):
    """Answers as the server behind the proxy does, or plays a fault."""

    def do_GET(self):
        self.owner.requests.append((self.path, dict(self.headers)))
        is_of_frames = "/frames/" in self.path
        with contextlib.suppress(OSError):
            self.respond(self.owner.choose(OF_ALL + (OF_FRAMES if is_of_frames else OF_JSON)))

    def forwarded(self):
        headers = {"Accept": self.headers.get("Accept"), "Accept-Encoding": "identity"}
        return requests.get(self.owner.behind + self.path, headers=headers, timeout=60)

    def answer(self):
        answer = self.forwarded()
        kind = answer.headers.get("Content-Type", "text/plain")
        self.send(answer.status_code, kind, answer.content)

    def parts(self, located=True):
        """Parts of what the server behind gives, by a parser of Python's own."""
        answer = self.forwarded()
        head = f"Content-Type: {answer.headers.get('Content-Type')}\r\n\r\n".encode()
        message = email.message_from_bytes(head + answer.content)
        if not message.is_multipart():
            return [(f"Content-Type: {answer.headers.get('Content-Type')}", answer.content)]
        path = re.sub(r"/frames/.*", "", self.path)
        numbers = re.search(r"/frames/([\d,]+)", self.path)[1].split(",")
        return [
            (
                f"Content-Type: {part.get('Content-Type')}"
                + (f"\r\nContent-Location: {path}/frames/{number}" if located else ""),
                part.get_payload(decode=True),
            )
            for number, part in zip(numbers, message.get_payload(), strict=False)
        ]


class ChaosProxy(FaultyServer):
    """Stands before a server.

    Parameters
    ----------
    behind : str
        URL of a DICOMweb service.
    seed : int
        Of the faults.
    rate : float
        Share of requests that fail.

    """

    handler = _Chaotic

    def __init__(self, behind, seed, rate):
        super().__init__(None)
        self.behind = behind.removesuffix("/dicom-web")
        self.rate = rate
        self.played = collections.Counter()
        self._random = random.Random(seed)
        self.depth = 200

    def choose(self, faults):
        """Return a fault to play, or None."""
        with self._lock:
            if self._random.random() >= self.rate:
                return None
            fault = self._random.choice(faults)
            self.played[fault] += 1
            return fault


@dataclasses.dataclass
class Figures:
    """What came of all reads."""

    right: int = 0
    refused: int = 0
    wrong: int = 0
    raw: int = 0
    hung: int = 0
    longest: float = 0.0
    shown: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_good(self):
        return not (self.wrong or self.raw or self.hung) and self.right > 0

    def __str__(self):
        return (
            f"{self.right} right, {self.refused} refused in words, {self.wrong} wrong,"
            f" {self.raw} raw errors, {self.hung} hung; the longest read took {self.longest:.1f} s"
        )


class Reader:
    """Reads slides at random, through a client, a URL and pickles.

    Parameters
    ----------
    url : str
        Of the service.
    slides : mapping of str to dicomslide.Slide
        The files, by the path of their series at the service.

    """

    def __init__(self, url, slides, seed):
        self.url = url
        self.slides = slides
        self.random = random.Random(seed)
        self.figures = Figures()
        self.opened = {}

    def read(self):
        """Read something once, and note what came of it."""
        began = time.monotonic()
        figures = self.figures
        try:
            is_right = self.read_something()
        except (dicomslide.DicomSlideError, *SAID):
            figures.refused += 1
        except BaseException as error:
            figures.raw += 1
            figures.shown += traceback.format_exception(error)[-30:]
        else:
            figures.right += is_right
            figures.wrong += not is_right
        took = time.monotonic() - began
        figures.longest = max(figures.longest, took)
        figures.hung += took > HUNG

    def read_something(self):
        path = self.random.choice(list(self.slides))
        slide, file = self.slide(path), self.slides[path]
        level = self.random.randrange(file.num_levels)
        matrix = slide.get_volume_images()[level].get_total_pixel_matrix()
        expected = file.get_volume_images()[level].get_total_pixel_matrix()
        rows, columns, _ = expected.shape
        row, column = self.random.randrange(rows), self.random.randrange(columns)
        height, width = self.random.randint(1, 90), self.random.randint(1, 90)
        key = np.s_[row : row + height, column : column + width]
        how = self.random.randrange(5)
        if how == 0:
            key = self.random.randrange(len(expected))
        if how == 2:
            matrix = pickle.loads(pickle.dumps(matrix))
        found = matrix.to_dask()[key].compute(scheduler="threads") if how == 1 else matrix[key]
        is_right = np.array_equal(found, expected[key])
        if not is_right:
            where = np.argwhere((found != expected[key]).any(axis=-1)).tolist()
            self.figures.shown.append(f"wrong: level {level}, {key}: {where[0]} to {where[-1]}\n")
        return is_right

    def slide(self, path):
        """Open a slide, anew now and then; forget now and then what is kept in memory."""
        if self.random.random() < 0.2:
            dicomslide.clear_all("received frames")
        if self.random.random() < 0.3:
            dicomslide.clear_all("decoded frames")
        if path not in self.opened or self.random.random() < 0.1:
            self.opened.pop(path, None)
            dicomslide.clear_all("headers")
            if self.random.random() < 0.5:
                found = dicomslide.open_slide(f"dicomweb+{self.url}{path}")
            else:
                study = path.split("/")[2]
                client = DICOMwebClient(self.url)
                found = dicomslide.open_slide(client, study_instance_uid=study)
            self.opened[path] = found
        return self.opened[path]


@contextlib.contextmanager
def impatient():
    """Let nobody wait long, and a bomb fill little."""
    before = policy.POLICY, service.MOST_JSON_BYTES
    policy.POLICY, service.MOST_JSON_BYTES = SHORT, 2**24
    try:
        yield
    finally:
        policy.POLICY, service.MOST_JSON_BYTES = before


def run(behind, slides, seconds, seed, *, folder, rate=0.25, readers=4, reads=None):
    """Read while faults are played, then once more all that there is.

    Parameters
    ----------
    behind : str
        URL of a DICOMweb service.
    slides : mapping of str to dicomslide.Slide
        The files, by the path of their series at the service.
    seconds : float
        How long; or until each reader has read `reads` times.
    seed : int
        Of the faults, and of what is read.
    folder : path-like
        Where frames are kept on disk.

    Returns
    -------
    Figures, collections.Counter
        What came of it, and the faults that were played.

    """
    with (
        impatient(),
        ChaosProxy(behind, seed, rate) as proxy,
        dicomslide.set_options(
            frame_folder=str(folder), frame_folder_bytes=50_000, encoded_cache_bytes=50_000
        ),
        warnings.catch_warnings(),
    ):
        for category in SAID:
            warnings.simplefilter("error", category)
        until = time.monotonic() + seconds
        everybody = [Reader(proxy.url, slides, seed + number) for number in range(readers)]

        def work(reader):
            count = 0
            while time.monotonic() < until and count != reads:
                reader.read()
                count += 1

        threads = [threading.Thread(target=work, args=[each], daemon=True) for each in everybody]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until + 2 * HUNG - time.monotonic()))
        total = Figures(hung=sum(thread.is_alive() for thread in threads))
        for each in everybody:
            its = each.figures
            for name in ("right", "refused", "wrong", "raw", "hung"):
                setattr(total, name, getattr(total, name) + getattr(its, name))
            total.longest = max(total.longest, its.longest)
            total.shown += its.shown
        played = proxy.played.copy()
        proxy.rate = 0.0
        wait_until_quiet()
        for is_another_process in (False, True):
            if is_another_process:
                dicomslide.clear_all("received frames", "headers")
            dicomslide.clear_all("decoded frames")
            for path, file in slides.items():
                slide = dicomslide.open_slide(f"dicomweb+{proxy.url}{path}")
                for image, expected in zip(
                    slide.get_volume_images(), file.get_volume_images(), strict=True
                ):
                    found = image.get_total_pixel_matrix()[...]
                    whole = expected.get_total_pixel_matrix()[...]
                    total.wrong += not np.array_equal(found, whole)
        dicomslide.forget(proxy.url)
        del everybody, threads, thread, work
        connection._connections._of_clients.clear()
        warnings.simplefilter("ignore", ResourceWarning)  # of sessions that nobody has closed
        gc.collect()
        return total, played


def wait_until_quiet(seconds=20.0):
    """Wait until no request is under way that was begun while faults were played."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(each.name in OURS for each in threading.enumerate()):
            return
        time.sleep(0.05)


def write_slides(folder, count=2):
    """Write slides of several levels; return their paths by the path of their series."""
    written = {}
    for number in range(count):
        paths = write_slide(
            Path(folder) / str(number),
            shape=(200, 260),
            downsamples=(1, 2),
            tile_shape=(32, 32),
            associated=False,
            sparse=bool(number % 2),
            slide_number=number + 1,
            seed=number,
            icc_profile=swapped_profile(),
        )
        slide = dicomslide.open_slide(Path(folder) / str(number))
        study, series = slide.metadata.StudyInstanceUID, slide.metadata.SeriesInstanceUID
        written[f"/studies/{study}/series/{series}"] = (slide, paths)
    return written


@contextlib.contextmanager
def servers(folder):
    """Yield the URLs of the servers that there are, and the slides that they have."""
    written = write_slides(Path(folder) / "slides")
    slides = {path: slide for path, (slide, _) in written.items()}
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(FaultyServer(Path(folder) / "slides"))
        own.archive.frames = functools.cache(own.archive.frames)
        found = {"faulty_server": own.url}
        if orthanc.reason_to_skip() is None:
            (Path(folder) / "orthanc").mkdir()
            url = stack.enter_context(orthanc.running(Path(folder) / "orthanc"))
            for _, paths in written.values():
                orthanc.store(url, paths)
            found["Orthanc"] = url
        yield found, slides


def main(seconds, seed):
    """Run before each server there is, for a share of the time."""
    with tempfile.TemporaryDirectory() as folder, servers(folder) as (found, slides):
        is_good = True
        for name, url in found.items():
            kept = Path(folder) / f"kept-{seed}-{len(name)}"
            share = seconds / len(found)
            figures, played = run(url, slides, share, seed, folder=kept)
            gc.collect()
            print(f"{name}: {figures}; {sum(played.values())} faults of {len(played)} kinds")
            ours = [each for each in threading.enumerate() if each.name in OURS]
            print(f"  {len(ours)} threads of requests", end="")
            if os.path.isdir("/proc/self/fd"):
                print(f", {len(os.listdir('/proc/self/fd'))} descriptors at the end", end="")
            print()
            print("".join(figures.shown[:200]), end="")
            is_good = is_good and figures.is_good
    return is_good


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:]]
    sys.exit(not main(given[0] if given else 60.0, int(given[1]) if len(given) > 1 else 0))
