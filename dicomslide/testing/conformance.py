"""Test suites for pytest that check sources and stores against the contract of the backends.

A test module subclasses a suite and provides a fixture. The tests call only the methods of the
contract (``dicomslide.backends``), and compare results with those of pydicom.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pytest

from dicomslide.errors import FrameReadError, MetadataError
from dicomslide.header import dicom
from dicomslide.header.layout import pixel_format_of
from dicomslide.pixels import decode_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = ["FrameSourceConformance", "FrameStoreConformance"]

PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PER_FRAME_GROUPS = "PerFrameFunctionalGroupsSequence"
THREADS = 8
SECONDS = 60
"""Timeout in seconds of another process."""


class FrameSourceConformance:
    """Test suite of a ``FrameSource``.

    The name of a subclass begins with ``Test``. It provides the fixture `source`, an image with
    several frames. It can override the fixture `instance`, the expected data set, which by default
    is that of ``source.read_instance()``; and the fixture `frames`, the expected pixels, if they
    aren't those of `instance`, as for a concatenation. It can have further fixtures and be
    parametrised.

    """

    most_pickled_bytes: ClassVar[int] = 4096
    """Upper bound on the pickle of a source, which has no header and no offset table."""
    pickles: ClassVar[bool] = True
    """Whether the source is picklable; if not, pickling raises a TypeError."""
    processes: ClassVar[tuple[Literal["spawn", "fork"], ...]] = ("spawn", "fork")
    """Start methods of processes in which the source can read."""

    @pytest.fixture
    def source(self) -> Any:
        """Return the source to test; a subclass overrides this."""
        raise NotImplementedError("the subclass has no fixture `source`")

    @pytest.fixture
    def instance(self, source: Any) -> Dataset:
        """Return the expected data set, with file meta information and pixel data."""
        dataset: Dataset = source.read_instance()
        return dataset

    @pytest.fixture
    def frames(self, source: Any, instance: Dataset) -> list[NDArray[Any]]:
        """Return the expected pixels of each frame, shape (rows, columns, samples)."""
        return frames_of(instance)

    # -- names --

    def test_its_identity_is_hashable_and_stays_the_same(self, source: Any) -> None:
        assert isinstance(source.identity, tuple)
        assert hash(source.identity) == hash(source.identity)
        assert source.identity == source.identity
        assert source.identity == pickle.loads(pickle.dumps(source.identity))

    def test_copies_have_its_identity_and_read_its_frames(
        self, source: Any, frames: list[NDArray[Any]]
    ) -> None:
        for other in (copy.copy(source), copy.deepcopy(source)):
            assert other.identity == source.identity
            assert_frames(other, [0], frames)

    def test_its_name_is_text(self, source: Any) -> None:
        assert isinstance(source.name, str)
        assert source.name

    def test_its_pickle_is_thin(self, source: Any, frames: list[NDArray[Any]]) -> None:
        if not self.pickles:
            with pytest.raises((TypeError, pickle.PicklingError)):
                pickle.dumps(source)
            return
        assert_frames(source, range(len(frames)), frames)  # fills lazy attributes before pickling
        data = pickle.dumps(source)
        assert len(data) <= self.most_pickled_bytes
        other = pickle.loads(data)
        assert other.identity == source.identity
        assert other.name == source.name
        assert_frames(other, range(len(frames)), frames)

    # -- headers --

    def test_its_metadata_are_a_header_without_pixels(
        self, source: Any, instance: Dataset, frames: list[NDArray[Any]]
    ) -> None:
        header = source.metadata
        assert_header(header)
        for keyword in ("SOPInstanceUID", "SOPClassUID", "Rows", "Columns", "BitsAllocated"):
            assert header.get(keyword) == instance.get(keyword)
        assert int(dicom.number(header, "NumberOfFrames") or 1) == len(frames)
        assert pixel_format_of(header) == pixel_format_of(instance)

    def test_its_metadata_are_the_same_after_frames_are_read(
        self, source: Any, frames: list[NDArray[Any]]
    ) -> None:
        before = source.metadata.to_json_dict()
        assert_frames(source, [0], frames)
        assert source.metadata.to_json_dict() == before

    def test_its_header_is_kept_once_metadata_and_positions_were_asked_for(
        self, source: Any
    ) -> None:
        if not hasattr(source, "unread_headers"):
            return  # optional
        assert all(hasattr(each, "metadata") for each in source.unread_headers())
        assert source.metadata is not None
        source.frame_positions()
        assert len(source.unread_headers()) == 0

    def test_its_transfer_syntax_is_that_of_the_instance_or_of_each_frame(
        self, source: Any, instance: Dataset
    ) -> None:
        uid = source.transfer_syntax_uid
        assert uid is None or uid == str(instance.file_meta.TransferSyntaxUID)

    def test_its_frames_per_request_are_a_count_or_none(self, source: Any) -> None:
        most = source.frames_per_request
        assert most is None or (isinstance(most, int) and most > 0)

    def test_its_positions_are_those_of_the_per_frame_groups(
        self, source: Any, instance: Dataset
    ) -> None:
        positions = source.frame_positions()
        placed = [
            item
            for group in dicom.items(instance, PER_FRAME_GROUPS)
            for item in dicom.items(group, "PlanePositionSlideSequence")
        ]
        if not placed:
            assert positions is None
            return
        assert list(positions.rows) == [
            item.RowPositionInTotalImagePixelMatrix - 1 for item in placed
        ]
        assert list(positions.columns) == [
            item.ColumnPositionInTotalImagePixelMatrix - 1 for item in placed
        ]
        if positions.z is not None:
            z = [float(item.ZOffsetInSlideCoordinateSystem) for item in placed]
            np.testing.assert_allclose(positions.z, z)

    def test_its_per_frame_groups_come_in_the_order_asked_for(
        self, source: Any, instance: Dataset, frames: list[NDArray[Any]]
    ) -> None:
        expected = dicom.items(instance, PER_FRAME_GROUPS)
        indices = [len(frames) - 1, 0]
        found = source.frame_groups(indices)
        assert source.frame_groups([]) == []
        assert len(found) == (len(indices) if expected else 0)
        for group, index in zip(found, indices, strict=False):
            assert group.to_json_dict() == expected[index].to_json_dict()

    def test_its_icc_profiles_are_those_of_the_optical_paths(
        self, source: Any, instance: Dataset
    ) -> None:
        def items_of(header: Dataset) -> list[Dataset]:
            return [header, *dicom.items(header, "OpticalPathSequence")]

        pairs = zip(items_of(source.metadata), items_of(instance), strict=True)
        for item, expected in pairs:
            assert source.icc_profile(item) == (expected.get("ICCProfile") or None)

    def test_the_whole_instance_has_what_the_header_has_and_pixels(self, source: Any) -> None:
        whole, header = source.read_instance(), source.metadata
        assert whole.SOPInstanceUID == header.SOPInstanceUID
        assert any(keyword in whole for keyword in PIXEL_DATA)

    # -- frames --

    def test_all_frames_are_those_of_the_instance(
        self, source: Any, frames: list[NDArray[Any]]
    ) -> None:
        assert_frames(source, range(len(frames)), frames)

    def test_frames_come_in_the_order_asked_for(
        self, source: Any, frames: list[NDArray[Any]]
    ) -> None:
        assert_frames(source, list(reversed(range(len(frames)))), frames)
        assert_frames(source, np.random.default_rng(0).permutation(len(frames)).tolist(), frames)

    def test_a_frame_may_be_asked_for_more_than_once(
        self, source: Any, frames: list[NDArray[Any]]
    ) -> None:
        last = len(frames) - 1
        assert_frames(source, [last, 0, last, last, 0], frames)

    def test_no_frames_are_an_empty_list(self, source: Any) -> None:
        assert list(source.read_frames([])) == []

    def test_a_frame_is_bytes(self, source: Any) -> None:
        (frame,) = source.read_frames([0])
        assert memoryview(frame).nbytes > 0

    @pytest.mark.parametrize("beyond", [-1, 0, 10**9])
    def test_a_frame_that_is_not_there_is_an_error_that_names_it(
        self, source: Any, frames: list[NDArray[Any]], beyond: int
    ) -> None:
        index = beyond if beyond < 0 else len(frames) + beyond
        for indices in ([index], [0, index]):
            with pytest.raises(FrameReadError) as caught:
                source.read_frames(indices)
            assert caught.value.frame == index
            assert caught.value.source == source.name
        assert_frames(source, [0], frames)

    # -- threads and processes --

    def test_threads_read_at_once(self, source: Any, frames: list[NDArray[Any]]) -> None:
        rng = np.random.default_rng(1)
        batches = [rng.integers(0, len(frames), 3).tolist() for _ in range(4 * THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda batch: assert_frames(source, batch, frames), batches):
                pass

    @pytest.mark.parametrize("method", ["spawn", "fork"])
    def test_another_process_reads_the_same(
        self, source: Any, frames: list[NDArray[Any]], method: Literal["spawn", "fork"]
    ) -> None:
        if method not in multiprocessing.get_all_start_methods():
            pytest.skip(f"this system has no {method}")
        if method not in self.processes:
            pytest.skip(f"the source can't read in a process started by {method}")
        indices = [len(frames) - 1, 0]
        assert_frames(source, indices, frames)
        identity, read = read_in_process(source, indices, method)
        assert identity == source.identity
        assert read == list(map(bytes, source.read_frames(indices)))


class FrameStoreConformance:
    """Test suite of a ``FrameStore``.

    The name of a subclass begins with ``Test``. It provides the fixture `store`, with one or more
    instances.
    """

    @pytest.fixture
    def store(self) -> Any:
        """Return the store to test; a subclass overrides this."""
        raise NotImplementedError("the subclass has no fixture `store`")

    def test_its_metadata_are_headers_without_pixels(self, store: Any) -> None:
        assert len(store.metadata) > 0
        for header in store.metadata:
            assert header.SOPInstanceUID
            assert_header(header)

    def test_it_gives_the_source_of_each_instance(self, store: Any) -> None:
        identities = set()
        for header in store.metadata:
            source = store.source(header)
            assert source.metadata.SOPInstanceUID == header.SOPInstanceUID
            assert store.source(header).identity == source.identity
            identities.add(source.identity)
        assert len(identities) == len(store.metadata)

    def test_its_sources_read_frames(self, store: Any) -> None:
        for header in store.metadata:
            if "Rows" in header:
                (frame,) = store.source(header).read_frames([0])
                assert decode_frame(
                    frame, pixel_format_of(header), store.source(header).transfer_syntax_uid
                ).size

    def test_an_instance_that_is_not_there_is_an_error(self, store: Any) -> None:
        header = copy.deepcopy(store.metadata[0])
        header.SOPInstanceUID = "2.25.1"
        with pytest.raises(MetadataError):
            store.source(header)

    def test_its_series_hold_what_it_holds(self, store: Any) -> None:
        if not (hasattr(store, "series") and hasattr(store, "metadata_of")):
            pytest.skip("the store has no methods series and metadata_of")
        every = {header.SOPInstanceUID for header in store.metadata}
        found = [each for series in store.series() for each in store.metadata_of(series)]
        assert {header.SOPInstanceUID for header in found} == every
        assert len(found) == len(every)
        for study in {header.StudyInstanceUID for header in found}:
            for series in store.series(study):
                assert {each.StudyInstanceUID for each in store.metadata_of(series)} == {study}


# -- helpers -----------------------------------------------------------------------------------


def frames_of(instance: Dataset) -> list[NDArray[Any]]:
    """Return the pixels of each frame of a data set, split into frames by pydicom and NumPy.

    Parameters
    ----------
    instance : pydicom.dataset.Dataset
        Data set with pixel data and file meta information.

    Returns
    -------
    list of numpy.ndarray
        Shape (rows, columns, samples) each.

    """
    from pydicom.encaps import generate_frames

    pixel_format = pixel_format_of(instance)
    count = int(dicom.number(instance, "NumberOfFrames") or 1)
    uid = instance.file_meta.TransferSyntaxUID
    data = next(bytes(instance[keyword].value) for keyword in PIXEL_DATA if keyword in instance)
    bits = pixel_format.native_bits
    encoded: Iterator[bytes]
    if uid.is_encapsulated:
        encoded = generate_frames(data, number_of_frames=count)
    elif bits % 8:
        unpacked = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        cut = unpacked[: count * bits].reshape(count, bits)
        encoded = (np.packbits(frame, bitorder="little").tobytes() for frame in cut)
    else:
        encoded = (data[i * bits // 8 : (i + 1) * bits // 8] for i in range(count))
    return [decode_frame(frame, pixel_format, str(uid)) for frame in encoded]


def assert_header(header: Dataset) -> None:
    """Raise an AssertionError if a header has pixel data or per-frame functional groups."""
    for keyword in (*PIXEL_DATA, PER_FRAME_GROUPS):
        assert keyword not in header


def assert_frames(source: Any, indices: Sequence[int], frames: list[NDArray[Any]]) -> None:
    """Raise an AssertionError unless a source reads these frames, in this order."""
    read = source.read_frames(indices)
    assert len(read) == len(indices)
    pixel_format = pixel_format_of(source.metadata)
    for index, frame in zip(indices, read, strict=True):
        found = decode_frame(frame, pixel_format, source.transfer_syntax_uid)
        np.testing.assert_array_equal(found, frames[index], f"frame {index}")


def read_in_process(
    source: Any, indices: Sequence[int], method: Literal["spawn", "fork"]
) -> tuple[tuple[Any, ...], list[bytes]]:
    """Read frames in another process; return the source's identity there, and the frames.

    Raises
    ------
    AssertionError
        With the error of the process, or when it sent nothing.

    """
    context: Any = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send_frames, args=(source, list(indices), there))
    with warnings.catch_warnings():
        # Python 3.12 and later warn of each fork of a process with threads
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        process.start()
    there.close()
    try:
        assert here.poll(SECONDS), f"the process sent nothing for {SECONDS} s"
        found = here.recv()
    except EOFError:
        raise AssertionError("the process ended without an answer") from None
    finally:
        if process.is_alive():
            process.join(1)
            process.terminate()
        process.join()
        here.close()
    assert not isinstance(found, str), found
    identity, frames = found
    return identity, frames


def _send_frames(source: Any, indices: list[int], answer: Connection) -> None:
    with contextlib.closing(answer):
        try:
            answer.send((source.identity, list(map(bytes, source.read_frames(indices)))))
        except Exception as error:
            answer.send(f"{type(error).__name__} in the process: {error}")
