"""A store that knows of the package no more than its documentation says: files in a dict."""

from __future__ import annotations

import dataclasses
import io

import pydicom
from pydicom.encaps import generate_frames

from dicomslide.backends import positions_of_dataset
from dicomslide.errors import FrameReadError, MetadataError

FILES = {}
"""Bytes of DICOM files by shelf and SOP Instance UID."""
PER_FRAME_GROUPS, PIXEL_DATA = 0x52009230, 0x7FE00010
read = []
"""Shelf, UID and frames of each call that read frames."""


@dataclasses.dataclass(frozen=True)
class Book:
    """A source: one instance of a shelf."""

    shelf: str
    uid: str

    @property
    def identity(self):
        return "books", self.shelf, self.uid

    @property
    def name(self):
        return f"{self.shelf}/{self.uid}"

    @property
    def metadata(self):
        header = self.read_instance()
        for tag in (PER_FRAME_GROUPS, PIXEL_DATA):
            header.pop(tag, None)
        return header

    @property
    def transfer_syntax_uid(self):
        return str(self.read_instance().file_meta.TransferSyntaxUID)

    @property
    def frames_per_request(self):
        return None

    def frame_positions(self):
        return positions_of_dataset(self.read_instance())

    def frame_groups(self, indices):
        groups = self.read_instance().get(PER_FRAME_GROUPS)
        return [groups.value[index] for index in indices] if groups else []

    def icc_profile(self, item):
        return item.get("ICCProfile")

    def read_instance(self):
        return pydicom.dcmread(io.BytesIO(FILES[self.shelf][self.uid]))

    def read_frames(self, indices):
        read.append((self.shelf, self.uid, list(indices)))
        image = self.read_instance()
        count = int(image.get("NumberOfFrames", 1))
        if image.file_meta.TransferSyntaxUID.is_encapsulated:
            frames = list(generate_frames(image.PixelData, number_of_frames=count))
        else:
            size = image.Rows * image.Columns * image.SamplesPerPixel * image.BitsAllocated // 8
            frames = [image.PixelData[i * size : (i + 1) * size] for i in range(count)]
        for index in indices:
            if not 0 <= index < count:
                raise FrameReadError(f"the image has {count} frames", self.name, index)
        return [frames[index] for index in indices]


@dataclasses.dataclass
class Shelf:
    """A store."""

    shelf: str

    @property
    def metadata(self):
        return [Book(self.shelf, uid).metadata for uid in FILES[self.shelf]]

    def source(self, metadata):
        uid = str(metadata.SOPInstanceUID)
        if uid not in FILES[self.shelf]:
            raise MetadataError(f"{self.shelf}: no instance {uid}")
        return Book(self.shelf, uid)


def shelf_of(folder):
    """Return a store that holds copies of the files of a folder."""
    files = {}
    for path in sorted(folder.rglob("*.dcm")):
        data = path.read_bytes()
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        files[str(header.SOPInstanceUID)] = data
    FILES[str(folder)] = files
    return Shelf(str(folder))
