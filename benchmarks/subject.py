"""dicomslide, called as by its users."""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import time
from typing import Any

from benchmarks import process
from benchmarks.polygons import polygons
from benchmarks.process import measured_beside
from benchmarks.reader import BLOCK, THUMBNAIL, Reader, blocks, summary
from benchmarks.server import place_of

__all__ = [
    "CorrectedDicomslide",
    "Dicomslide",
    "DicomslideByMatrix",
    "DicomslideFarAway",
    "DicomslideNearby",
    "DicomslideOnServer",
    "DicomslideWithoutCache",
    "DicomslideWithoutDecoder",
]

LATE = (
    "dicomslide.backends.part10.file",
    "dicomslide.xarray_plugin",
    "dicomslide.labelled.tree",
    "dicomslide.slide",
    "dicomslide.slide.collecting",
    "imagecodecs",
    "pydicom.filereader",
    "simplejpeg",
)
"""Modules that are imported when they are needed."""


HALO = 32
"""Pixels around a tile."""
MALLOC = {"MALLOC_MMAP_THRESHOLD_": 2**26, "MALLOC_TRIM_THRESHOLD_": 2**28}
"""Environment of workers by README.md: they keep freed memory, which is otherwise zeroed again."""


class Dicomslide(Reader):
    """dicomslide."""

    corrected = False

    def load(self) -> None:
        import dicomslide

        if self.threads:
            dicomslide.set_options(num_threads=self.threads)
        self.open_slide = dicomslide.open_slide
        self.clear_all = dicomslide.clear_all

    def load_more(self) -> None:
        """Import packages that are imported late, so that this isn't measured."""
        self.load()
        for module in LATE:
            importlib.import_module(module)
        import dask.array
        import numpy as np
        import xarray as xr

        xr.DataArray(dask.array.from_array(np.zeros((8, 8)))).compute(scheduler="sync")

    def load_to_write(self) -> None:
        """Import what writes annotations."""
        self.load()
        import pydicom.sr.codedict  # noqa: F401

        import dicomslide

        self.write_annotations = dicomslide.write_annotations

    def open_to_write(self) -> None:
        """Open the slide, and what is read of it for annotations."""
        self.open()

    def make_polygons(self, count: int, seed: int) -> None:
        """Make polygons in the form that is written: one array."""
        self.polygons = polygons(count, seed)

    @measured_beside
    def write_polygons(self, path: str) -> None:
        """Write polygons as bulk annotations."""
        self.write_annotations(self.polygons, self.slide, path, label="nucleus", algorithm="net 1")

    def forget(self) -> None:
        self.clear_all("decoded frames")

    def open(self) -> None:
        self.slide = self.open_slide(self.folder, correct_color=self.corrected)

    @functools.cached_property
    def matrix(self) -> Any:
        return self.slide.get_volume_images()[0].get_total_pixel_matrix()

    def region(self, row: int, column: int, size: int) -> Any:
        return self.slide.get_image_region((row, column), 0, (size, size))

    def tiles(self, start: int, stop: int) -> None:
        """Read whole tiles one by one, in the order of the matrix."""
        matrix = self.matrix
        for index in range(start, stop):
            matrix[index]

    def all_tiles(self) -> None:
        """Read all tiles one by one."""
        for _ in self.matrix:
            pass

    def thumbnail(self) -> None:
        """Make a picture of the whole slide."""
        self.slide.thumbnail(THUMBNAIL)

    @functools.cached_property
    def spacing(self) -> float:
        """Twice the spacing of the base level in mm."""
        return 2 * self.slide.pixel_spacings[0][0]

    def halved_regions(self, at: list[list[int]], size: int) -> None:
        """Read squares at twice the spacing of the base level."""
        from dicomslide import SlideSampler

        middles = [(row + size - 0.5, column + size - 0.5) for row, column in at]
        centers = [self.slide.get_slide_offset(middle, 0) for middle in middles]
        sampler = SlideSampler(self.slide, (size, size), spacing=self.spacing, centers=centers)
        for index in range(len(sampler)):
            sampler[index]

    def patches(self, at: list[list[int]], size: int) -> None:
        """Read squares of the base level as one array."""
        middles = [(row + size / 2 - 0.5, column + size / 2 - 0.5) for row, column in at]
        centers = [self.slide.get_slide_offset(middle, 0) for middle in middles]
        self.slide.patches(centers, (size, size), level=0).compute()

    def tiles_of_dataset(self, at: list[list[int]], size: int, together: bool) -> None:
        """Read tiles of the base level by a data set, as a batch or one by one, once."""
        from dicomslide import TileDataset, clear_all

        clear_all("decoded frames")
        table = self._table(self.slide, at, size)
        tiles = TileDataset(table, self.slide, size=size, spacing=self.spacing / 2)
        if together:
            tiles.__getitems__(range(len(at)))
            return
        for index in range(len(at)):
            tiles[index]

    def loaded_tiles(
        self, at: list[list[int]], size: int, workers: int, start: str | None
    ) -> dict[str, float]:
        """Read squares of the base level through PyTorch's DataLoader, by a data set."""
        from benchmarks.loaders import loaded
        from dicomslide import TileDataset

        table = self._table(self.slide, at, size)
        options = {"size": size, "spacing": self.spacing / 2}
        return loaded(TileDataset(table, self.slide, **options), workers, start)

    def open_each(self) -> None:
        """Open each slide of a folder."""
        import dicomslide

        self.cohort = dicomslide.open_slides(self.folder, correct_color=self.corrected)

    def tiles_of_each(self, at: list[list[int]], size: int) -> None:
        """Read a square at each (slide, row, column), by a data set of all."""
        from dicomslide import TileDataset

        names = sorted(self.cohort)
        first = self.cohort[names[0]]  # they lie alike
        table = self._table(first, [place for _, *place in at], size)
        table["slide"] = [names[number] for number, *_ in at]
        spacing = first.pixel_spacings[0][0]
        tiles = TileDataset(table, self.cohort, size=size, spacing=spacing)
        for index in range(len(at)):
            tiles[index]

    @staticmethod
    def _table(slide: Any, at: list[list[int]], size: int) -> dict[str, Any]:
        """Return the middles of squares in mm."""
        middles = [(row + size / 2 - 0.5, column + size / 2 - 0.5) for row, column in at]
        x, y = zip(*(slide.get_slide_offset(middle, 0) for middle in middles), strict=True)
        return {"x": x, "y": y}

    def mean(self, halved: bool) -> None:
        """Compute the mean of the base level, or of pixels of twice its spacing, through dask."""
        spacing = self.spacing if halved else None
        self.slide.to_dataset(chunks="auto", spacing=spacing).image.mean().compute()

    # -- dask and xarray --

    @functools.cache  # noqa: B019 - the reader lives as long as its process
    def array(self, chunks: str | int) -> Any:
        """Return the base level as a dask array."""
        return self.matrix.to_dask(chunks=chunks)

    def build_array(self) -> None:
        """Make a dask array of the base level."""
        self.array("frames")

    def build_tree(self) -> None:
        """Make the tree of all levels."""
        self.slide.to_datatree()

    def dask_regions(
        self, at: list[list[int]], size: int, chunks: str | int, scheduler: str
    ) -> None:
        """Read regions through ``to_dask()``."""
        array = self.array(chunks)
        for row, column in at:
            array[row : row + size, column : column + size].compute(scheduler=scheduler)

    @functools.cache  # noqa: B019
    def engine(self, chunked: bool, inlined: bool = False) -> Any:
        """Return the image of the base level by xarray's engine."""
        import xarray as xr

        dataset = xr.open_dataset(
            self.folder,
            engine="dicomslide",
            chunks={} if chunked else None,
            inline_array=inlined,
            correct_color=self.corrected,
        )
        return dataset.image

    def engine_regions(
        self, at: list[list[int]], size: int, scheduler: str, inlined: bool = False
    ) -> None:
        """Read regions through xarray's engine with ``chunks={}``."""
        image = self.engine(True, inlined)
        for row, column in at:
            part = image.isel(y=slice(row, row + size), x=slice(column, column + size))
            part.compute(scheduler=scheduler)

    def inlined_regions(self, at: list[list[int]], size: int, scheduler: str) -> None:
        """The same with ``inline_array=True``: dask then stores the array in its tasks."""
        self.engine_regions(at, size, scheduler, inlined=True)

    def boxes(self, at: list[list[int]], size: int) -> dict[str, float]:
        """Read boxes of millimetres through xarray's engine with ``chunks=None``."""
        image = self.engine(False)
        wanted = [self._box(row, column, size) for row, column in at]
        start = time.perf_counter()
        found = [image.sel(box).values.shape for box in wanted]
        elapsed = time.perf_counter() - start
        if any(shape[:2] != (size, size) for shape in found):
            raise ValueError(f"boxes of {size}² pixels came as {found}")
        return {"ms": elapsed * 1000}

    def _box(self, row: int, column: int, size: int) -> dict[str, slice]:
        """Return the millimetres of a square of pixels, slightly enlarged because of rounding."""
        first = self.slide.get_slide_offset((row, column), 0)
        last = self.slide.get_slide_offset((row + size - 1, column + size - 1), 0)
        margin = 0.3 * abs(last[0] - first[0]) / (size - 1)
        x, y = (sorted(ends) for ends in zip(first, last, strict=True))
        return {
            "x": slice(x[0] - margin, x[1] + margin),
            "y": slice(y[0] - margin, y[1] + margin),
        }

    # -- a whole level --

    def level(self) -> None:
        """Find tissue and the mean colour of the base level, block by block."""
        for row, column in blocks(self.matrix.shape[0]):
            summary(self.matrix[row : row + BLOCK, column : column + BLOCK])

    def level_dask(self, scheduler: str) -> dict[str, float] | None:
        """Do the same through dask."""
        import dask

        if scheduler != "cluster":
            dask.compute(*summary(self.array("auto")), scheduler=scheduler)
            return None
        dask.compute(*summary(self.array("auto")), scheduler=self.cluster)
        return {"MiB": max(self.cluster.run(process.peak_memory).values())}  # of a worker

    def level_blocks(self) -> None:
        """Do the same on the cluster, in one task per block."""
        import numpy as np

        def sums(block: Any) -> Any:
            return np.array(summary(block), np.int64).reshape(1, 1, 2)

        found = self.array("auto").map_blocks(sums, chunks=(1, 1, 2), dtype=np.int64)
        found.sum(axis=(0, 1)).compute(scheduler=self.cluster)

    def mapped_tiles(self, size: int) -> None:
        """Take a number of each tile of the base level."""
        from dicomslide.recipes import map_tiles

        found = map_tiles(self.slide, _mean, level=0, tile=size, halo=HALO, factor=None)
        found.compute(scheduler=self.cluster)

    def submitted_tiles(self, size: int) -> None:
        """Do the same by a task that is submitted for each tile."""
        slide = self.cluster.scatter(self.slide, broadcast=True)
        starts = [range(-HALO, edge - HALO, size) for edge in self.slide.size]
        futures = [
            self.cluster.submit(_mean_of, slide, at, size + 2 * HALO, pure=False)
            for at in itertools.product(*starts)
        ]
        self.cluster.gather(futures)

    @functools.cached_property
    def cluster(self) -> Any:
        import dask
        from distributed import Client, LocalCluster

        dask.config.set({f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in MALLOC.items()})
        return Client(
            LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0")
        )

    def start_cluster(self) -> None:
        """Start two workers that each read a few pixels."""
        array = self.array("auto")[: 2 * BLOCK, : 2 * BLOCK]
        array.sum().compute(scheduler=self.cluster)

    def start_workers(self) -> None:
        """Start two workers with all imports but no slide."""
        self.cluster.run(_load_more)

    def first_bytes(self, at: list[list[int]], size: int) -> None:
        """Open a slide for the first time, and get its first pixels from a worker."""
        self.open()
        ((row, column),) = at
        region = self.array("auto")[row : row + size, column : column + size]
        region.compute(scheduler=self.cluster)

    def build_graph(self) -> dict[str, float]:
        """Make the graph of an analysis of the base level."""
        import pickle

        import dask

        tissue = summary(self.matrix.to_dask("auto"))[0]
        sent = len(pickle.dumps(tissue)) / 1000
        (fused,) = dask.optimize(tissue)
        return {"kB": sent, "tasks": len(fused.__dask_graph__())}

    # -- masks --

    def packed_mask(self) -> None:
        """Compute a mask of the base level and pack its bits."""
        from benchmarks.masks import packed

        packed(self.slide)

    def written_mask(self) -> None:
        """Write a mask of the base level as a DICOM Segmentation."""
        from benchmarks.masks import written

        written(self.slide)

    # -- a cohort --

    def open_cohort(self) -> dict[str, float]:
        """Open all slides below a folder."""
        import dicomslide

        before = process.open_descriptors()
        slides = dicomslide.open_slides(self.folder)
        if slides.failures:
            raise next(iter(slides.failures.values()))
        return {"descriptors": process.open_descriptors() - before, "slides": len(slides)}

    def open_bucket(self) -> dict[str, float]:
        """Open all slides of a bucket, and read a tile of each."""
        import dicomslide

        where = {"endpoint_url": place_of(self.folder)["bucket"], "region_name": "us-east-1"}
        options = {"key": "someone", "secret": "secret", "client_kwargs": where}
        slides = dicomslide.open_slides("s3://slides/", storage_options=options)
        tiles = slides.map(_first_tile, on="threads")
        for error in (*slides.failures.values(), *tiles.failures.values()):
            raise error
        return {"slides": len(tiles)}

    def open_index(self) -> dict[str, float]:
        """Open the index of a cohort."""
        from benchmarks.indexed import open_index

        return open_index(self)

    def select(self) -> dict[str, float]:
        """Choose slides of the index."""
        from benchmarks.indexed import select

        return select(self)

    def first_of_index(self, numbers: list[int]) -> dict[str, float]:
        """Open some slides of the index, and read a tile of each."""
        from benchmarks.indexed import first_tiles

        return first_tiles(self, numbers)

    def open_many(self, budget: int) -> dict[str, float]:
        """Open slides one after the other within a memory budget, and read a tile of each."""
        import dicomslide
        from dicomslide.process.budget import cached_bytes

        dicomslide.set_options(memory_budget=budget)
        peak = 0
        for entry in os.scandir(self.folder):
            matrix = self.open_slide(entry.path).get_volume_images()[0].get_total_pixel_matrix()
            matrix[0]
            peak = max(peak, sum(cached_bytes().values()))
        return {"budget_share": peak / budget}


def _first_tile(slide: Any) -> Any:
    return slide.get_volume_images()[0].get_total_pixel_matrix()[0]


def _load_more() -> None:
    Dicomslide("").load_more()


class DicomslideByMatrix(Dicomslide):
    """dicomslide, whose regions are slices of a matrix."""

    def region(self, row: int, column: int, size: int) -> Any:
        return self.matrix[row : row + size, column : column + size]

    def pictures(self, at: list[list[int]], size: int) -> None:
        """Read a square at each (row, column), to compare pictures of Pillow with."""
        self.regions(at, size)


class DicomslideWithoutCache(Dicomslide):
    """dicomslide without a cache of decoded frames."""

    def load(self) -> None:
        super().load()
        import dicomslide

        dicomslide.set_options(frame_cache_bytes=0)


class CorrectedDicomslide(DicomslideWithoutCache):
    """dicomslide without a cache, with colours mapped to sRGB."""

    corrected = True


class DicomslideOnServer(DicomslideWithoutCache):
    """dicomslide that reads from a DICOMweb server, without a cache."""

    where = "itself"

    def load(self) -> None:
        super().load()
        import dicomslide

        dicomslide.set_options(encoded_cache_bytes=0)

    def open(self) -> None:
        place = place_of(self.folder)
        url = f"dicomweb+{place[self.where]}/studies/{place['study']}/series/{place['series']}"
        self.slide = self.open_slide(url, correct_color=False)

    def forget(self) -> None:
        self.open()  # with the connection that is there


class DicomslideNearby(DicomslideOnServer):
    """The same, through the proxy but without latency."""

    where = "near"


class DicomslideFarAway(DicomslideOnServer):
    """The same, with latency."""

    where = "far"


class DicomslideWithoutDecoder(Dicomslide):
    """dicomslide with decoders that return constant pixels: the time without decoding."""

    def load(self) -> None:
        super().load()
        import dataclasses

        import numpy as np

        from dicomslide import pixels as codec

        for uid, decoder in codec.DECODERS.items():
            frame = functools.cache(lambda pixel_format: np.full(pixel_format.shape, 77, np.uint8))
            codec.DECODERS[uid] = dataclasses.replace(
                decoder,
                decode=lambda buffer, pixel_format, frame=frame: frame(pixel_format),
                takes_scratch=False,
            )

    def open(self) -> None:
        super().open()
        if (self.region(0, 0, 8) != 77).any():
            raise RuntimeError("frames are decoded after all: the table isn't what is used")


def _mean(tile: Any) -> Any:
    return tile[::4, ::4].mean()


def _mean_of(slide: Any, at: tuple[int, int], size: int) -> Any:
    return _mean(slide.get_image_region(at, 0, (size, size)))
