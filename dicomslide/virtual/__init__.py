"""Slides as virtual Zarr: arrays whose chunks are the frames of DICOM files, as they are.

Needs the extra ``virtual``: ``pip install 'dicomslide[virtual]'``.
"""

from dicomslide.virtual.parser import DicomParser
from dicomslide.virtual.repository import to_icechunk

__all__ = ["DicomParser", "to_icechunk"]
