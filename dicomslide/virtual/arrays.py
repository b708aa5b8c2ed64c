"""Variables of a slide as virtual arrays: zarr metadata, and a manifest of byte ranges."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import NotVirtualError
from dicomslide.header.geometry import AS_STORED
from dicomslide.readers.matrix_reader import MatrixReader
from dicomslide.virtual.encoding import codecs_of
from dicomslide.virtual.references import CheckFrames, References, references_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicomslide.readers.stacked_reader import Data, StackedReader

__all__ = ["virtual_data"]

MOST_CHUNKS = 10**8
"""Upper bound on the chunks of an array: a manifest takes some 40 bytes of memory for each."""


def virtual_data(urls: Mapping[str, str] | None = None, check_frames: CheckFrames = None) -> Data:
    """Return a function that makes a ManifestArray of a reader.

    Parameters
    ----------
    urls, check_frames
        See :func:`~dicomslide.virtual.references.references_of`.

    """
    known: dict[Any, References] = {}

    def of_source(reader: MatrixReader) -> References:
        key = reader.source.identity
        if key not in known:
            known[key] = references_of(reader.source, urls, check_frames)
        return known[key]

    def data(reader: StackedReader, dims: Sequence[str]) -> Any:
        return _Builder(reader, of_source).array()

    return data


@dataclasses.dataclass
class _Builder:
    """One array in the making."""

    reader: StackedReader
    of_source: Any

    def array(self) -> Any:
        """Return the ManifestArray; raise a NotVirtualError if there is none."""
        from virtualizarr.manifests import ChunkManifest, ManifestArray
        from virtualizarr.manifests.utils import create_v3_array_metadata

        reader = self.reader
        (channels, planes), (rows, columns, samples) = reader.stack_shape, reader.matrix_shape
        tile_rows, tile_columns = reader.tile_shape
        grid = -(-rows // tile_rows), -(-columns // tile_columns)
        num_tiles = grid[0] * grid[1]
        if channels * planes * num_tiles > MOST_CHUNKS:
            raise NotVirtualError(
                f"{self._name}: {channels} channels × {planes} focal planes × {num_tiles} tiles are"
                f" more than {MOST_CHUNKS:,} chunks"
            )
        stack = channels, planes, num_tiles
        paths = np.full(stack, "", np.dtypes.StringDType())
        offsets, lengths = np.zeros((2, *stack), np.uint64)
        codecs: list[dict[str, Any]] | None = None
        tiles = np.arange(num_tiles)
        for channel, plane in np.ndindex(channels, planes):
            matrix = reader.reader(channel, plane)
            if matrix is None:
                continue
            assert isinstance(matrix, MatrixReader)
            own = self._codecs(matrix)
            codecs = self._same(codecs, own, matrix)
            found = self.of_source(matrix)
            frames = matrix.frames_of(tiles)
            is_here = frames >= 0
            is_here[is_here] = found.files[frames[is_here]] >= 0
            frames = frames[is_here]
            names = np.array(found.urls, np.dtypes.StringDType())
            paths[channel, plane, is_here] = names[found.files[frames]]
            offsets[channel, plane, is_here] = found.offsets[frames]
            lengths[channel, plane, is_here] = found.lengths[frames]
        kept = reader.kept
        lead = tuple(n for n, is_kept in zip((channels, planes), kept, strict=False) if is_kept)
        last = (samples,) if kept[2] else ()
        chunk_grid = (*lead, *grid, *((1,) if kept[2] else ()))
        metadata = create_v3_array_metadata(
            shape=reader.shape,
            data_type=reader.dtype,
            chunk_shape=(*(1 for _ in lead), tile_rows, tile_columns, *last),
            chunk_key_encoding={"name": "default", "configuration": {"separator": "."}},
            fill_value=self._fill_value(bool((lengths == 0).any())),
            codecs=codecs,
        )
        manifest = ChunkManifest.from_arrays(
            paths=paths.reshape(chunk_grid),
            offsets=offsets.reshape(chunk_grid),
            lengths=lengths.reshape(chunk_grid),
            validate_paths=False,
        )
        return ManifestArray(metadata=metadata, chunkmanifest=manifest)

    @property
    def _name(self) -> str:
        readers = (reader for row, _ in self.reader.runs for reader in row if reader is not None)
        first = next(readers)
        assert isinstance(first, MatrixReader)
        return first.source.name

    def _codecs(self, matrix: MatrixReader) -> list[dict[str, Any]]:
        """Return the codecs of a channel and focal plane, after checks of its form."""
        layout, name = matrix.layout, matrix.source.name
        if self.reader.orientation != AS_STORED:
            raise NotVirtualError(
                f"{name}: it is stored turned or mirrored against the other images of its level;"
                " chunks are as stored"
            )
        if matrix.tile_shape != self.reader.tile_shape:
            raise NotVirtualError(
                f"{name}: tiles of {matrix.tile_shape} pixels (rows, columns) beside tiles of"
                f" {self.reader.tile_shape} in one array; chunks have one size"
            )
        if matrix.dtype != self.reader.dtype or matrix.scaling is not None:
            raise NotVirtualError(
                f"{name}: pixels of {matrix.dtype} beside pixels of {self.reader.dtype} in one"
                " array"
            )
        lead = sum(self.reader.kept[:2])
        uid = layout.transfer_syntax_uid
        found = self.of_source(matrix).foreign
        return codecs_of(layout.pixel_format, str(uid), found and dict(found), lead)

    def _same(
        self, codecs: list[dict[str, Any]] | None, own: list[dict[str, Any]], matrix: MatrixReader
    ) -> list[dict[str, Any]]:
        if codecs not in (None, own):
            raise NotVirtualError(
                f"{matrix.source.name}: its frames need the codec {own}, those of other channels in"
                f" the array {codecs}"
            )
        return own

    def _fill_value(self, is_needed: bool) -> Any:
        """Return the value of absent chunks: a scalar, of all samples."""
        background = self.reader.background
        if len(set(background)) > 1 and is_needed:
            raise NotVirtualError(
                f"{self._name}: absent tiles have the colour {tuple(background)} (Recommended"
                " Absent Pixel CIELab Value); the fill value of an array is one number"
            )
        return self.reader.dtype.type(background[0])
