"""Parser of DICOM files for VirtualiZarr."""

from __future__ import annotations

import dataclasses
import inspect
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.backends.part10.streams import StreamSource
from dicomslide.contents.contents import SlideContents
from dicomslide.contents.options import SlideOptions
from dicomslide.virtual.documents import array_document, chunk_of, group_document
from dicomslide.virtual.references import checked
from dicomslide.virtual.tree import check_installed, virtual_parts

if TYPE_CHECKING:
    import xarray as xr
    from obspec_utils.registry import ObjectStoreRegistry
    from virtualizarr.manifests import ChunkManifest, ManifestArray, ManifestGroup, ManifestStore

    from dicomslide.labelled.parts import Parts
    from dicomslide.virtual.references import CheckFrames

__all__ = ["DicomParser"]

READ_AHEAD = 2**17
"""Bytes of each read of a header: most headers are shorter."""


@dataclasses.dataclass(frozen=True, slots=True)
class DicomParser:
    """Parser of one DICOM file for VirtualiZarr, after its protocol ``Parser``.

    The groups are those of :meth:`dicomslide.Slide.to_virtual`: a level, or a segmentation or
    parametric map. A slide of several files is best opened with dicomslide, which registers its
    levels.

    Parameters
    ----------
    include_patient : bool, default: False
        Whether the attributes include those that identify the patient.
    check_frames : {"all", "sample"}, optional
        See :func:`dicomslide.virtual.to_icechunk`; files are others, wherever they are.

    Examples
    --------
    >>> registry = ObjectStoreRegistry({"s3://bucket": obstore.store.S3Store("bucket")})
    >>> store = DicomParser()("s3://bucket/slide/level-0.dcm", registry)
    >>> xr.open_datatree(store, engine="zarr", consolidated=False)

    """

    include_patient: bool = False
    check_frames: CheckFrames = None

    def __call__(self, url: str, registry: ObjectStoreRegistry[Any]) -> ManifestStore:
        """Parse a file.

        Parameters
        ----------
        url : str
            URL of the file, with its scheme.
        registry : obspec_utils.registry.ObjectStoreRegistry
            Stores by URL, one of which holds the file. With VirtualiZarr before 2.6, a store in
            memory is added, for the coordinates.

        Returns
        -------
        virtualizarr.manifests.ManifestStore
            The groups of the tree, with the coordinates in memory.

        Raises
        ------
        NotSlideError
            When the file isn't an image of a slide, or one derived from it.
        NotVirtualError
            When its frames can't be chunks of a zarr array.

        """
        check_installed("virtualizarr")
        from virtualizarr.manifests import ManifestStore

        store, path = registry.resolve(url)
        source = StreamSource.open(_StoreFile(store, str(path)))
        slide = SlideContents([source], SlideOptions())
        groups = virtual_parts(
            slide,
            include_patient=self.include_patient,
            urls={source.name: url},
            check_frames=checked(self.check_frames),
        )
        return ManifestStore(group=_manifest_group(groups, registry), registry=registry)


class _StoreFile:
    """A seekable file object over an object of a store, which reads ahead."""

    def __init__(self, store: Any, path: str) -> None:
        self._store, self._path = store, path
        self._size = int(store.head(path)["size"])
        self._at = 0
        self._window, self._start = b"", 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def read(self, length: int) -> bytes:
        stop = min(self._at + length, self._size)
        if stop <= self._at:
            return b""
        if not self._start <= self._at <= stop <= self._start + len(self._window):
            end = min(max(stop, self._at + READ_AHEAD), self._size)
            data = self._store.get_range(self._path, start=self._at, end=end)
            self._window, self._start = bytes(data), self._at
        found = self._window[self._at - self._start : stop - self._start]
        self._at = stop
        return found


def _manifest_group(groups: dict[str, Parts], registry: ObjectStoreRegistry[Any]) -> ManifestGroup:
    """Return the root of manifest groups: below it, others by path."""
    from virtualizarr.manifests import ManifestGroup

    below = {
        path[1:]: ManifestGroup(
            arrays={str(name): _array(each, registry) for name, each in parts.all().items()},
            attributes=group_document(parts)["attributes"],
        )
        for path, parts in groups.items()
        if path != "/"
    }
    return ManifestGroup(groups=below, attributes=group_document(groups["/"])["attributes"])


def _array(variable: xr.Variable, registry: ObjectStoreRegistry[Any]) -> ManifestArray:
    """Return a variable as a manifest array; the values of coordinates are in memory."""
    from virtualizarr.manifests import ManifestArray
    from zarr.core.metadata.v3 import ArrayV3Metadata

    is_virtual = isinstance(variable.data, ManifestArray)
    manifest = variable.data.manifest if is_virtual else _in_memory(variable, registry)
    metadata = ArrayV3Metadata.from_dict(array_document(variable, "."))
    return ManifestArray(metadata, manifest)


def _in_memory(variable: xr.Variable, registry: ObjectStoreRegistry[Any]) -> ChunkManifest:
    """Return the manifest of an array that is one chunk in memory."""
    from virtualizarr.manifests import ChunkManifest

    chunk, index = chunk_of(variable), (0,) * variable.ndim
    given: dict[str, Any]
    if "inlined" in inspect.signature(ChunkManifest.from_arrays).parameters:
        path, given = "__inlined__", {"inlined": {index: chunk}}
    else:
        import obstore

        store, name = obstore.store.MemoryStore(), uuid.uuid4().hex
        obstore.put(store, "chunk", chunk)
        registry.register(f"memory://{name}", store)
        path, given = f"memory://{name}/chunk", {}
    shape = (1,) * variable.ndim
    return ChunkManifest.from_arrays(
        paths=np.full(shape, path, np.dtypes.StringDType()),
        offsets=np.zeros(shape, np.uint64),
        lengths=np.full(shape, len(chunk), np.uint64),
        validate_paths=False,
        **given,
    )
