"""Other readers of DICOM slides, with their fastest settings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.polygons import polygons
from benchmarks.process import measured_beside
from benchmarks.reader import THUMBNAIL, Reader
from benchmarks.server import place_of

__all__ = [
    "Fastslide",
    "Highdicom",
    "OpenSlide",
    "OpenSlideOfDicomslide",
    "Wsidicom",
    "WsidicomByPillow",
    "WsidicomOnServer",
]


CACHE = 32 * 2**20
"""Bytes of libopenslide's cache if nothing is said."""


class OpenSlide(Reader):
    """openslide-python with openslide-bin, which returns RGBA pictures."""

    def load(self) -> None:
        import numpy as np
        import openslide

        self.module = openslide
        self.as_array = np.asarray

    def open(self) -> None:
        self.slide = self.module.OpenSlide(self.base)
        self.across = self.slide.dimensions[0]
        self.tile = int(self.slide.properties["openslide.level[0].tile-width"])

    def forget(self) -> None:
        self.slide.set_cache(self.module.OpenSlideCache(CACHE))

    def region(self, row: int, column: int, size: int) -> Any:
        return self.as_array(self.slide.read_region((column, row), 0, (size, size)))

    def pictures(self, at: list[list[int]], size: int) -> None:
        """Read a square at each (row, column) as a picture of Pillow."""
        for row, column in at:
            self.slide.read_region((column, row), 0, (size, size))

    def tiles(self, start: int, stop: int) -> None:
        """Read whole tiles one by one, in the order of the matrix."""
        across = -(-self.across // self.tile)
        for index in range(start, stop):
            row, column = divmod(index, across)
            self.region(row * self.tile, column * self.tile, self.tile)

    def thumbnail(self) -> None:
        """Make a picture of the whole slide."""
        self.slide.get_thumbnail((THUMBNAIL, THUMBNAIL))


class OpenSlideOfDicomslide(OpenSlide):
    """dicomslide with the interface of openslide-python."""

    def load(self) -> None:
        import numpy as np

        import dicomslide.openslide

        self.module = dicomslide.openslide
        self.as_array = np.asarray
        self.clear_all = dicomslide.clear_all

    def forget(self) -> None:
        self.clear_all("decoded frames")


class Fastslide(Reader):
    """fastslide, with its global cache."""

    def load(self) -> None:
        import fastslide

        self.module = fastslide

    def open(self) -> None:
        self.slide = self.module.FastSlide.from_file_path(self.folder)
        self.slide.use_global_cache()

    def forget(self) -> None:
        self.module.GlobalCacheManager.instance().clear()

    def region(self, row: int, column: int, size: int) -> Any:
        return self.slide.read_region((column, row), 0, (size, size)).numpy()


class Wsidicom(Reader):
    """wsidicom; several threads are those of its executor."""

    decoder: str | None = None

    def load(self) -> None:
        from wsidicom import WsiDicom
        from wsidicom.config import Settings

        self.open_slide = WsiDicom.open
        self.settings = Settings(preferred_decoder=self.decoder)

    def open(self) -> None:
        executor = ThreadPoolExecutor(self.threads) if self.threads else None
        self.slide = self.open_slide(self.folder, read_executor=executor, settings=self.settings)

    def forget(self) -> None:
        self.slide.clear_cache()

    def region(self, row: int, column: int, size: int) -> Any:
        return self.slide.read_region(
            (column, row), 0, (size, size), threads=self.threads, as_array=True
        )

    def tiles(self, start: int, stop: int) -> None:
        """Read whole tiles one by one, in the order of the matrix."""
        across = -(-self.slide.size.width // self.slide.tile_size.width)
        for index in range(start, stop):
            row, column = divmod(index, across)
            self.slide.read_tile(0, (column, row), as_array=True)

    def thumbnail(self) -> None:
        """Make a picture of the whole slide."""
        self.slide.read_thumbnail(THUMBNAIL, threads=self.threads, as_array=True)

    def halved_regions(self, at: list[list[int]], size: int) -> None:
        """Read squares at twice the spacing of the base level."""
        mm = self.slide.mpp.width / 1000
        for row, column in at:
            self.slide.read_region_mpp(
                (column * mm, row * mm),
                2000 * mm,
                (2 * size * mm, 2 * size * mm),
                threads=self.threads,
                as_array=True,
            )


class WsidicomByPillow(Wsidicom):
    """wsidicom with its other decoder for JPEG."""

    decoder = "pillow"


class WsidicomOnServer(Wsidicom):
    """wsidicom, reading from a DICOMweb server."""

    def load(self) -> None:
        super().load()
        from dicomweb_client.api import DICOMwebClient
        from wsidicom import WsiDicom
        from wsidicom.web import WsiDicomWebClient

        self.open_web = WsiDicom.open_web
        self.place = place_of(self.folder)
        self.client = WsiDicomWebClient(DICOMwebClient(self.place["itself"]))
        self.executor = ThreadPoolExecutor(self.threads) if self.threads else None

    def open(self) -> None:
        self.slide = self.open_web(
            self.client,
            self.place["study"],
            self.place["series"],
            read_executor=self.executor,
            settings=self.settings,
        )

    def forget(self) -> None:
        self.open()  # with the connection that is there


class Highdicom(Reader):
    """highdicom, which reads the base level lazily, and writes annotations."""

    def load(self) -> None:
        import highdicom
        import numpy as np

        self.module = highdicom
        self.dtype = np.uint8

    def open(self) -> None:
        self.image = self.module.imread(self.base, lazy_frame_retrieval=True)

    def region(self, row: int, column: int, size: int) -> Any:
        return self.image.get_total_pixel_matrix(
            row_start=row,
            row_end=row + size,
            column_start=column,
            column_end=column + size,
            as_indices=True,
            apply_icc_profile=False,
            dtype=self.dtype,
        )

    def written_mask(self) -> None:
        """Write a mask of the base level, which dicomslide computes, as a DICOM Segmentation."""
        from benchmarks.masks import written_by_highdicom
        from dicomslide import open_slide

        written_by_highdicom(open_slide(self.folder, correct_color=False), self.base)

    def load_to_write(self) -> None:
        """Import what writes annotations."""
        self.load()
        import pydicom.sr.codedict  # noqa: F401

    def open_to_write(self) -> None:
        """Read the header to which annotations refer."""
        from pydicom import dcmread

        self.source = dcmread(self.base, stop_before_pixels=True)

    def make_polygons(self, count: int, seed: int) -> None:
        """Make polygons in the form that is written: an array each."""
        self.polygons = list(polygons(count, seed))

    @measured_beside
    def write_polygons(self, path: str) -> None:
        """Write polygons as bulk annotations."""
        import highdicom as hd
        from pydicom.sr.codedict import codes

        group = hd.ann.AnnotationGroup(
            1, hd.UID(), "nucleus", codes.SCT.AnatomicalStructure, codes.SCT.Nucleus, "POLYGON",
            self.polygons, "AUTOMATIC",
            hd.AlgorithmIdentificationSequence("net", codes.DCM.ArtificialIntelligence, "1"),
        )  # fmt: skip
        hd.ann.MicroscopyBulkSimpleAnnotations(
            [self.source], "3D", [group], hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "none"
        ).save_as(path)

    def prepare_correction(self, edge: int) -> None:
        """Make the transform, and frames to apply it to."""
        from highdicom.color import ColorManager

        profile = bytes(self.image.OpticalPathSequence[0].ICCProfile)
        self.transform = ColorManager(profile)
        region = self.region(0, 0, edge)
        tile = self.image.Rows
        self.frames = [
            region[row : row + tile, column : column + tile]
            for row in range(0, edge, tile)
            for column in range(0, edge, tile)
        ]

    def correct(self) -> None:
        """Correct the colours of frames."""
        for frame in self.frames:
            self.transform.transform_frame(frame)
