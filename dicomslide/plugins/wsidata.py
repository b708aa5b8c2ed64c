"""DICOM slides in `wsidata` and LazySlide: importing this module registers the reader.

Afterwards, ``wsidata.open_wsi("slide/", reader="dicomslide")`` reads a file, folder or URL, and so
does ``open_wsi`` of a DICOM file without naming a reader.
"""

from __future__ import annotations

from typing import Any

from wsidata.reader import READERS, OpenSlideReader

from dicomslide.openslide import OpenSlide

__all__ = ["DicomSlideReader"]


class DicomSlideReader(OpenSlideReader):  # type: ignore[misc]
    """Reader of DICOM slides, by the names of OpenSlide.

    Parameters
    ----------
    file : path-like or str
        A file of the slide, its folder, or a URL: see :func:`dicomslide.open_slide`.

    """

    name = "dicomslide"
    pkg_namespaces = "dicomslide"
    pkgs = "dicomslide"
    extensions = (".dcm", ".dicom")
    _chunk_px = None

    def create_reader(self) -> None:
        """Open the slide."""
        self.set_reader(OpenSlide(self.file))

    def get_region(
        self, x: float, y: float, width: float, height: float, level: int = 0, **kwargs: Any
    ) -> Any:
        """Read a region.

        Parameters
        ----------
        x, y : float
            Its top left pixel, in pixels of level 0.
        width, height : float
            Its size, in pixels of `level`.
        level : int, default: 0
            Index of the level; negative ones count from the smallest.

        Returns
        -------
        numpy.ndarray
            Shape (height, width, 3) of numpy.uint8, black outside of the slide.

        """
        location, size = (int(x), int(y)), (int(width), int(height))
        level = int(self.translate_level(level))
        pixels = self.reader.read_region(location, level, size, as_array=True)
        if pixels.dtype == "uint8" and pixels.shape[2] == 3:
            return pixels
        return super().get_region(*location, *size, level=level, **kwargs)


if DicomSlideReader.name not in READERS:  # once, however often this module is loaded
    READERS[DicomSlideReader.name] = DicomSlideReader
    READERS.priority.insert(0, DicomSlideReader.name)
