"""Slides of the benchmarks: each is written once, and never held in memory as a whole.

A field of tissue with the grain of a camera is repeated over the base level; so only its own
frames are encoded, which then lie all over the slide.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import shutil
import struct
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydicom
import xarray as xr

import dicomslide
from benchmarks.indexed import write_index
from benchmarks.server import ROUND_TRIP, served, served_as_objects
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing import (
    SyntheticImage,
    averaged,
    draw_tissue,
    encode_frame,
    uid_of,
    write_image,
    write_slide,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["JPEG", "SLIDES", "Slide"]

JPEG, JPEG_LS, JPEG_2000, HTJ2K_LOSSLESS, HTJ2K = (
    f"1.2.840.10008.1.2.4.{end}" for end in ("50", "80", "91", "201", "203")
)
JPEG_QUALITY = 80
GRAIN = 8
"""Standard deviation of the noise, by which JPEG frames of 256² have the 12–20 kB of real ones."""
FIELD = 4_096
"""Rows and columns of the repeated tissue."""
FRAMES_OF_LARGE = 16**2
"""Number of distinct frames of a large image, which are repeated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slide:
    """Properties of a slide."""

    name: str
    about: str
    edge: int = 20_480
    """Rows and columns of the base level."""
    tile: int = 256
    """Rows and columns of a frame."""
    factors: tuple[int, ...] = (1, 4, 16, 64)
    """Downsampling of each level."""
    transfer_syntax_uid: str = JPEG
    samples: Literal[1, 3] = 3
    bits: Literal[8, 16] = 8
    corrected: bool = False
    """Whether it has the ICC profile of a camera instead of sRGB."""
    layout: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Kind of offset table: see :class:`SyntheticImage`."""

    @property
    def pixel_format(self) -> PixelFormat:
        """Of a frame."""
        return PixelFormat(
            rows=self.tile,
            columns=self.tile,
            samples=self.samples,
            bits_allocated=self.bits,
            bits_stored=self.bits,
        )

    @property
    def in_turn(self) -> int | None:
        """Number of distinct frames of a base level that is alone, which are repeated."""
        return FRAMES_OF_LARGE if len(self.factors) == 1 else None

    def quick(self) -> Slide:
        """Return a small slide with the same properties."""
        return dataclasses.replace(self, edge=4_096, factors=self.factors[:3])

    def write(self, folder: Path) -> Path:
        """Write the slide if it doesn't exist, and return its folder."""
        path = folder / f"{self.name} {self.edge}"
        if path.exists():
            return path
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        self._write_files(unfinished)
        return unfinished.rename(path)

    def _write_files(self, folder: Path) -> None:
        for number, factor in enumerate(self.factors):
            self._write_file(folder / f"level-{number}.dcm", factor, number + 1)

    def _write_file(self, path: Path, factor: int, instance_number: int, **more: Any) -> None:
        base = SlideGeometry(
            (20.0, 50.0), (0.0, -1.0), (-1.0, 0.0), (0.00025, 0.00025), (self.edge, self.edge)
        )
        picture = _field(factor, self.samples, self.bits)
        image = SyntheticImage(
            geometry=averaged(base, factor),
            drawing=PeriodicDrawing(picture),
            pixel_format=self.pixel_format,
            transfer_syntax_uid=self.transfer_syntax_uid,
            resampled=factor > 1,
            instance_number=instance_number,
            icc_profile=camera_profile() if self.corrected else None,
            container_id=self.name,
            **self.layout | more,
        )
        frames = Frames(image, len(picture), self.in_turn)
        write_image(path, dataclasses.replace(image, encoded=frames))

    def served(self, path: Path) -> AbstractContextManager[str]:
        """Make the slide available to readers; yield the reason if that fails, else nothing."""
        return contextlib.nullcontext("")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separate(Slide):
    """A slide with a file for each of its channels."""

    channels: tuple[str, ...]

    @property
    def in_turn(self) -> int:
        """Few, because files don't share frames."""
        return 4

    def _write_files(self, folder: Path) -> None:
        for number, channel in enumerate(self.channels):
            self._write_file(
                folder / f"level-{number}.dcm", 1, number + 1, optical_paths=(channel,)
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Slide):
    """A slide with a label map, each of whose segments is a square."""

    segments: int

    def _write_files(self, folder: Path) -> None:
        super()._write_files(folder)
        slide = dicomslide.open_slide(folder, correct_color=False)
        image = slide.to_dataset().image
        across = math.isqrt(self.segments - 1) + 1
        row, column = np.indices((self.edge, self.edge)) * across // self.edge
        labels = np.minimum(row * across + column, self.segments - 1) + 1
        coords = {"y": image.y, "x": image.x}
        dicomslide.write_segmentation(
            xr.DataArray(labels.astype(np.uint16), coords, ("y", "x")),
            slide,
            folder,
            kind="LABELMAP",
            segments=[f"cell {number}" for number in range(1, self.segments + 1)],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served(Slide):
    """A slide that is also on a DICOMweb server."""

    edge: int = 4_096
    factors: tuple[int, ...] = (1, 4)

    def served(self, path: Path) -> AbstractContextManager[str]:
        """Run a server with the slide."""
        return served(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohort(Slide):
    """Many small slides, one per folder, with ordinary headers."""

    edge: int = 64
    tile: int = 32
    factors: tuple[int, ...] = (1, 2)
    count: int = 1_000

    def quick(self) -> Cohort:
        """Return a few slides with the same properties."""
        return dataclasses.replace(self, count=20)

    def write(self, folder: Path) -> Path:
        """Write the slides if they don't exist, and return their folder."""
        path = folder / f"{self.name} {self.count}"
        if path.exists():
            return path
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        files = write_slide(
            unfinished / "0001",
            shape=(self.edge, self.edge),
            tile_shape=(self.tile, self.tile),
            downsamples=self.factors,
        )
        instances = {file.name: pydicom.dcmread(file) for file in files}
        for number in range(2, self.count + 1):
            part = unfinished / f"{number:04}"
            part.mkdir()
            for name, instance in instances.items():  # label and overview take long to draw
                instance.ContainerIdentifier = f"C-{number:04}"
                instance.StudyInstanceUID = uid_of("study", number)
                instance.SeriesInstanceUID = uid_of("series", number)
                instance.FrameOfReferenceUID = uid_of("frame of reference", number)
                instance.SOPInstanceUID = uid_of("instance", number, instance.InstanceNumber)
                instance.save_as(part / name)
        return unfinished.rename(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket(Cohort):
    """Slides of three levels, a label and an overview, in a bucket some milliseconds away."""

    edge: int = 512
    tile: int = 256
    factors: tuple[int, ...] = (1, 2, 4)
    count: int = 300

    def served(self, path: Path) -> AbstractContextManager[str]:
        """Run a server with the slides."""
        return served_as_objects(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Indexed(Cohort):
    """A few slides in a bucket, with an index of many that have their frames."""

    edge: int = 2_048
    tile: int = 128
    factors: tuple[int, ...] = (1, 4)
    count: int = 4
    rows: int = 100_000

    def quick(self) -> Indexed:
        """Return slides with a short index."""
        return dataclasses.replace(self, edge=512, count=2, rows=200)

    def write(self, folder: Path) -> Path:
        """Write the slides and the index if they don't exist, and return their folder."""
        path = super().write(folder)
        with contextlib.suppress(ImportError), served_as_objects(path, 0) as reason:
            if not (reason or (path / "index.parquet").exists()):
                write_index(path, self.rows)
        return path

    def served(self, path: Path) -> AbstractContextManager[str]:
        """Run a server with the slides."""
        return served_as_objects(path, ROUND_TRIP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many(Slide):
    """One image with many names, each of which is a different slide for a process."""

    edge: int = 1_600
    tile: int = 32
    factors: tuple[int, ...] = (1,)
    count: int = 2_000

    def quick(self) -> Many:
        """Return the same image with a few names."""
        return dataclasses.replace(self, count=20)

    def write(self, folder: Path) -> Path:
        """Write the image and its links if they don't exist, and return their folder."""
        path = folder / f"{self.name} {self.count}"
        if path.exists():
            return path
        (level,) = super().write(folder).iterdir()
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for number in range(self.count):
            os.link(level, unfinished / f"{number:04}.dcm")
        return unfinished.rename(path)


@dataclasses.dataclass(frozen=True)
class PeriodicDrawing:
    """Picture that is repeated in both directions."""

    picture: NDArray[Any]

    def tile(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], channel: int, plane: int
    ) -> NDArray[Any]:
        """Return the pixels at (row, column) of the matrix."""
        return self.picture[np.ix_(rows % len(self.picture), columns % len(self.picture))]


class Frames:
    """Encoder of the distinct frames of an image.

    Parameters
    ----------
    image : SyntheticImage
        With a periodic drawing.
    period : int
        Rows and columns after which the drawing repeats.
    in_turn : int, optional
        Number of frames that come in turn, wherever they lie.

    """

    def __init__(self, image: SyntheticImage, period: int, in_turn: int | None) -> None:
        self.image = image
        self.period = period
        self.in_turn = in_turn
        self.known: dict[tuple[int, ...], bytes] = {}

    def __call__(self, channel: int, plane: int, tile: int) -> bytes:
        """Return the encoded frame of a tile, of even length."""
        grid = self.image.grid
        if self.in_turn:  # those of a square
            edge = math.isqrt(self.in_turn)
            row, column = divmod(tile % self.in_turn, edge)
            tile = row * grid.shape[1] + column
        row, column = grid.position(tile)
        top, left = row * grid.tile_rows, column * grid.tile_columns
        # cropped at the edge of the matrix, or whole
        inside = (
            min(grid.tile_rows, grid.rows - top),
            min(grid.tile_columns, grid.columns - left),
        )
        key = (top % self.period, left % self.period, *inside)
        if key not in self.known:
            frame = _encode(self.image.tile(channel, plane, tile), self.image)
            self.known[key] = frame + bytes(len(frame) % 2)
        return self.known[key]


def _encode(tile: NDArray[Any], image: SyntheticImage) -> bytes:
    if image.transfer_syntax_uid != JPEG:
        return encode_frame(tile, image.pixel_format, image.transfer_syntax_uid)
    import simplejpeg

    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(tile), JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
        )
    )


@functools.cache
def _colour_field(factor: int) -> NDArray[np.uint8]:
    """Draw 4,096² pixels of tissue, averaged over boxes of `factor` pixels squared."""
    if factor > 1:
        fine = _colour_field(1)
        edge = len(fine) // factor
        boxes = fine.reshape(edge, factor, edge, factor, 3)
        return boxes.mean(axis=(1, 3), dtype=np.float32).astype(np.uint8)
    picture = draw_tissue((FIELD, FIELD))
    rng = np.random.default_rng(0)
    for top in range(0, FIELD, 256):
        band = picture[top : top + 256]
        grain = rng.normal(0, GRAIN, (*band.shape[:2], 1)).astype(np.float32)
        band[...] = np.clip(band + grain, 0, 255)
    return picture


def _field(factor: int, samples: int, bits: int) -> NDArray[Any]:
    picture = _colour_field(factor)
    if samples == 3:
        return picture
    grey = 255 - picture[:, :, 1:2]  # light on dark, as of fluorescence
    if bits == 8:
        return grey
    noise = np.random.default_rng(1).integers(0, 64, grey.shape, np.uint16)
    return grey * np.uint16(64) + noise  # 14 bits of a camera


def camera_profile() -> bytes:
    """Return an ICC profile with the primaries and tone curve of a camera."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = (65535 * np.linspace(0, 1, 256) ** 1.8).astype(">u2").tobytes()
    name = b"benchmark camera\0"
    tags = {
        b"desc": b"desc" + struct.pack(">2I", 0, len(name)) + name + bytes(79),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249),
        b"rXYZ": b"XYZ " + bytes(4) + fixed(0.4851, 0.2529, 0.0213),
        b"gXYZ": b"XYZ " + bytes(4) + fixed(0.3360, 0.6584, 0.1175),
        b"bXYZ": b"XYZ " + bytes(4) + fixed(0.1431, 0.0887, 0.6861),
        b"rTRC": b"curv" + struct.pack(">2I", 0, 256) + curve,
    }
    places: dict[bytes, tuple[int, int]] = {}
    body = io.BytesIO()
    start = 128 + 4 + 12 * (len(tags) + 2)
    for tag, content in tags.items():
        places[tag] = start + body.tell(), len(content)
        body.write(content + bytes(-len(content) % 4))
    places[b"gTRC"] = places[b"bTRC"] = places[b"rTRC"]
    table = struct.pack(">I", len(places)) + b"".join(
        tag + struct.pack(">2I", *place) for tag, place in places.items()
    )
    header = struct.pack(
        ">I4xI4s4s4s6H4s28x12s48x",
        start + body.tell(),
        0x02400000,  # version 2.4
        b"scnr",
        b"RGB ",
        b"XYZ ",
        *(2026, 1, 2, 12, 0, 0),
        b"acsp",
        fixed(0.9642, 1.0, 0.8249),  # illuminant D50
    )
    return header + table + body.getvalue()


# equal frames are stored once, so that files stay small; readers don't know that they are equal
_SHARED: dict[str, Any] = dict(offset_table="extended", share_frames=True)
MARKERS = tuple(f"marker {number:02}" for number in range(1, 41))
"""Channels of multiplexed fluorescence."""


def _fluorescence(name: str, about: str, **more: Any) -> Slide:
    options: dict[str, Any] = dict(
        transfer_syntax_uid=JPEG_LS, samples=1, bits=16, factors=(1,), layout=_SHARED
    )
    kind = more.pop("kind", Slide)
    return kind(name=name, about=f"{about}, JPEG-LS, 16 bit", **options | more)


SLIDES = {
    slide.name: slide
    for slide in (
        Slide(name="jpeg-256", about="JPEG 4:2:0, quality 80, frames of 256²"),
        Slide(name="jpeg-base", about="JPEG, frames of 256², a base level only", factors=(1,)),
        Slide(name="jpeg-512", about="the same, frames of 512²", tile=512),
        Slide(name="jpeg-1024", about="the same, frames of 1,024²", tile=1024),
        Slide(
            name="jpeg-2000",
            about="JPEG 2000, lossy",
            transfer_syntax_uid=JPEG_2000,
        ),
        Slide(
            name="jpeg-ls-8",
            about="JPEG-LS, colour",
            transfer_syntax_uid=JPEG_LS,
            layout=_SHARED,
        ),
        Slide(
            name="jpeg-ls-16",
            about="JPEG-LS, grey, 16 bit",
            transfer_syntax_uid=JPEG_LS,
            layout=_SHARED,
            samples=1,
            bits=16,
        ),
        Slide(
            name="htj2k-lossless",
            about="HTJ2K, lossless",
            transfer_syntax_uid=HTJ2K_LOSSLESS,
            layout=_SHARED,
        ),
        Slide(
            name="htj2k",
            about="HTJ2K, lossy",
            transfer_syntax_uid=HTJ2K,
            layout=_SHARED,
        ),
        Slide(
            name="colour",
            about="JPEG with the ICC profile of a camera",
            edge=10_240,
            factors=(1, 4),
            corrected=True,
        ),
        *(
            Slide(name=name, about=about, edge=100_000, factors=(1,), layout=layout)
            for name, about, layout in (
                ("large-extended", "extended offset table", _SHARED),
                ("large-empty", "empty basic offset table", dict(offset_table="empty")),
                ("large-sparse", "TILED_SPARSE, explicit lengths", dict(_SHARED, sparse=True)),
                (
                    "large-undefined",
                    "TILED_SPARSE, undefined lengths",
                    dict(_SHARED, sparse=True, undefined_lengths=True),
                ),
            )
        ),
        _fluorescence(
            "forty",
            "40 channels, frames of 256²",
            edge=5_120,
            layout=dict(_SHARED, optical_paths=MARKERS),
        ),
        _fluorescence(
            "planes",
            "15 focal planes, frames of 256²",
            edge=5_120,
            layout=dict(_SHARED, planes=tuple(range(15))),
        ),
        _fluorescence(
            "four",
            "4 channels, frames of 512²",
            tile=512,
            layout=dict(_SHARED, optical_paths=MARKERS[:4]),
        ),
        _fluorescence(
            "forty-in-one",
            "40 channels in one file, frames of 512²",
            tile=512,
            layout=dict(_SHARED, optical_paths=MARKERS),
        ),
        _fluorescence(
            "forty-files",
            "40 channels in as many files, frames of 512²",
            kind=Separate,
            tile=512,
            channels=MARKERS,
        ),
        _fluorescence(
            "cells",
            "with a label map of 20,000 segments, frames of 256²",
            kind=Labelled,
            edge=4_096,
            segments=20_000,
        ),
        Served(name="orthanc", about="like jpeg-256, on an Orthanc server on this machine"),
        Cohort(name="cohort", about="1,000 slides of four files, of which each is small"),
        Bucket(name="bucket", about="300 slides of five objects in S3, 50 ms away"),
        Indexed(name="index", about="100,000 slides of four files in S3, 20 ms away, by an index"),
        Cohort(
            name="hundred",
            about="100 slides of five files, JPEG, frames of 256²",
            edge=2_048,
            tile=256,
            factors=(1, 4, 16),
            count=100,
        ),
        Many(
            name="many-sparse",
            about="2,000 slides of 2,500 frames of 32², TILED_SPARSE",
            layout=dict(_SHARED, sparse=True),
        ),
    )
}
