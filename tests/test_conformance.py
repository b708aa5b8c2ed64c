"""The sources and stores of the package, and one of somebody else's, keep the contract."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys

import pydicom
import pytest

import dicomslide
from dicomslide.backends import FrameSource, FrameStore
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.dicomweb.client import frame_source, store_at
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.backends.open import open_store
from dicomslide.backends.part10.file import FileSource, FileStore
from dicomslide.backends.part10.streams import StreamSource
from dicomslide.testing import write_slide
from tests.support import own_store
from tests.support.fake_client import FakeClient
from tests.support.faulty_server import FaultyServer, Handler
from tests.support.optional import need
from tests.support.range_server import serving

pytest.register_assert_rewrite("dicomslide.testing.conformance")

from dicomslide.testing.conformance import (  # noqa: E402
    FrameSourceConformance,
    FrameStoreConformance,
    frames_of,
)

NATIVE, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An image of nine frames, native and TILED_FULL, or JPEG and TILED_SPARSE."""
    found = {}
    for name, syntax in [("full", NATIVE), ("sparse", JPEG)]:
        found[name] = tmp_path_factory.mktemp(name)
        write_slide(found[name], shape=(70, 90), tile_shape=(32, 32), downsamples=(1,),
                    transfer_syntax_uid=syntax, sparse=name == "sparse")  # fmt: skip
    return found


@pytest.fixture
def folder(request, folders):
    return folders[getattr(request, "param", "sparse")]


@pytest.fixture
def path(folder):
    return folder / "level-0.dcm"


@pytest.fixture
def header(path):
    return pydicom.dcmread(path, stop_before_pixels=True)


@pytest.fixture(scope="module")
def object_server(folders):
    need("fsspec", "aiohttp")
    with serving(folders["sparse"]) as server:
        yield server.url


class Whole(Handler):
    """Gives whole instances, too."""

    def answer(self):
        uid = re.search(r"/instances/([^/]+)$", self.path)
        if uid is None:
            return super().answer()
        file = io.BytesIO()
        self.owner.archive.datasets[uid[1]].save_as(file)
        part = b"--x\r\nContent-Type: application/dicom\r\n\r\n%s\r\n--x--" % file.getvalue()
        kind = 'multipart/related; type="application/dicom"; boundary="x"'
        return self.send(200, kind, part)


class WholeServer(FaultyServer):
    handler = Whole


@pytest.fixture(scope="module")
def web_server(folders):
    need("requests")
    with WholeServer(folders["sparse"]) as server:
        yield server.url


class OfOneFile(FrameSourceConformance):
    @pytest.fixture
    def instance(self, path):
        return pydicom.dcmread(path)


@pytest.mark.parametrize("folder", ["sparse", "full"], indirect=True)
class TestFile(OfOneFile):
    @pytest.fixture
    def source(self, path):
        return FileSource.open(path)


class TestBytes(OfOneFile):
    pickles = False
    processes = ("fork",)

    @pytest.fixture
    def source(self, path):
        return StreamSource.open(path.read_bytes())


class TestFileObject(OfOneFile):
    pickles = False
    processes = ()

    @pytest.fixture
    def source(self, path):
        with open(path, "rb") as file:
            yield StreamSource.open(file)


class TestObjectOverHttp(OfOneFile):
    @pytest.fixture
    def source(self, object_server, path):
        return RemoteSource.open(f"{object_server}/{path.name}")


class TestObjectInMemory(OfOneFile):
    processes = ("fork",)

    @pytest.fixture
    def source(self, path):
        need("fsspec")
        import fsspec

        fsspec.filesystem("memory").pipe_file("/conformance.dcm", path.read_bytes())
        yield RemoteSource.open("memory://conformance.dcm")
        fsspec.filesystem("memory").rm("/conformance.dcm")


class TestDicomWebUrl(OfOneFile):
    @pytest.fixture
    def source(self, web_server, header):
        series = f"studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
        store = store_at(f"dicomweb+{web_server}/{series}")
        (found,) = (each for each in store.metadata if each.SOPInstanceUID == header.SOPInstanceUID)
        return store.source(found)


class TestDicomWebClient(OfOneFile):
    pickles = False
    processes = ("fork",)

    @pytest.fixture
    def source(self, folder, header):
        client = FakeClient(folder)
        return frame_source(client, client.metadata(header.SOPInstanceUID))


@pytest.mark.parametrize("folder", ["sparse", "full"], indirect=True)
class TestConcatenation(FrameSourceConformance):
    """The image in two parts, of five and of four frames."""

    @pytest.fixture
    def parts(self, path, tmp_path):
        whole, parts = pydicom.dcmread(path), []
        encapsulated = whole.file_meta.TransferSyntaxUID.is_encapsulated
        size = whole.Rows * whole.Columns * whole.SamplesPerPixel
        cut = (
            list(pydicom.encaps.generate_frames(whole.PixelData, number_of_frames=9))
            if encapsulated
            else [whole.PixelData[i * size : (i + 1) * size] for i in range(9)]
        )
        for number, (start, stop) in enumerate([(0, 5), (5, 9)], 1):
            part = pydicom.dcmread(path)
            part.ConcatenationUID = "2.25.7"
            part.InConcatenationNumber, part.InConcatenationTotalNumber = number, 2
            part.ConcatenationFrameOffsetNumber = start
            part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = f"2.25.7{number}"
            part.NumberOfFrames = stop - start
            part.PixelData = (
                pydicom.encaps.encapsulate(cut[start:stop])
                if encapsulated
                else b"".join(cut[start:stop])
            )
            if "PerFrameFunctionalGroupsSequence" in part:
                groups = list(part.PerFrameFunctionalGroupsSequence)
                part.PerFrameFunctionalGroupsSequence = groups[start:stop]
            parts.append(tmp_path / f"part-{number}.dcm")
            part.save_as(parts[-1])
        return parts

    @pytest.fixture
    def source(self, parts):
        return ConcatenatedSource.of([FileSource.open(part) for part in reversed(parts)])

    @pytest.fixture
    def instance(self, parts, path):
        whole = pydicom.dcmread(path)
        whole.SOPInstanceUID = "2.25.71"
        return whole

    @pytest.fixture
    def frames(self, path):
        return frames_of(pydicom.dcmread(path))


class TestOwnSource(OfOneFile):
    processes = ("fork",)

    @pytest.fixture
    def source(self, folder, header):
        return own_store.Book(own_store.shelf_of(folder).shelf, str(header.SOPInstanceUID))


# -- stores ----------------------------------------------------------------------------------


class TestFileStore(FrameStoreConformance):
    @pytest.fixture
    def store(self, folder):
        return FileStore.open(folder)


class TestObjects(FrameStoreConformance):
    @pytest.fixture
    def store(self, object_server, folder):
        return open_store([f"{object_server}/{path.name}" for path in folder.glob("*.dcm")])


class TestOwnStore(FrameStoreConformance):
    @pytest.fixture
    def store(self, folder):
        return own_store.shelf_of(folder)


# -- the suite itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("identity = property(lambda self: ('a', object()))", "identity_is_hashable"),
        ("read_frames = lambda self, i: FileSource.read_frames(self, sorted(i))", "order_asked"),
        ("read_frames = lambda self, i: FileSource.read_frames(self, sorted(set(i)))",
         "more_than_once"),
        ("metadata = property(lambda self: self.read_instance())", "without_pixels"),
        ("frame_positions = lambda self: None", "positions"),
        ("frame_groups = lambda self, i: []", "per_frame_groups"),
        ("icc_profile = lambda self, item: b'x'", "icc_profile"),
        ("__reduce__ = lambda self: (type(self).open, (self.path,), (None, bytes(10000)))",
         "pickle_is_thin"),
        ("transfer_syntax_uid = '1.2.3'", "transfer_syntax"),
        ("frames_per_request = 0", "frames_per_request"),
        ("read_frames = lambda self, i: FileSource.read_frames(self, [k % 9 for k in i])",
         "is_not_there"),
    ],
)  # fmt: skip
def test_a_source_with_a_fault_does_not_pass(folders, fault, test):
    """Each test fails for what it is about."""
    namespace = {"FileSource": FileSource}
    name, _, value = fault.partition(" = ")
    kind = type("Faulty", (FileSource,), {"__slots__": (), name: eval(value, namespace)})
    path = folders["sparse"] / "level-0.dcm"
    source, instance = kind.open(path), pydicom.dcmread(path)
    given = {"source": source, "instance": instance, "frames": frames_of(instance), "beyond": 0}
    failed = set()
    suite = OfOneFile()
    for each, method in inspect.getmembers(suite, inspect.ismethod):
        if each.startswith("test_") and "process" not in each and "threads" not in each:
            wanted = inspect.signature(method).parameters
            try:
                method(**{key: given[key] for key in wanted})
            except (Exception, pytest.fail.Exception):
                failed.add(each)
    assert any(test in each for each in failed)


@pytest.mark.parametrize(
    ("contract", "suite"),
    [(FrameSource, FrameSourceConformance), (FrameStore, FrameStoreConformance)],
)
def test_the_suite_asks_for_all_that_the_contract_has(contract, suite):
    text = inspect.getsource(suite) + inspect.getsource(inspect.getmodule(suite).assert_frames)
    members = {name for name in vars(contract) if not name.startswith("_")}
    assert len(members) == {FrameSource: 10, FrameStore: 2}[contract]
    assert not {name for name in members if f".{name}" not in text}


def test_what_writes_slides_needs_no_pytest(tmp_path):
    code = (
        "import sys; sys.modules['pytest'] = None; import dicomslide.testing as t;"
        f"t.write_slide({str(tmp_path)!r}, shape=(32, 32), downsamples=(1,))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert dicomslide.open_slide(tmp_path).num_levels == 1
