"""Orders in which tiles are read: shuffled by blocks, shared out to ranks and workers."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.header import dicom
from dicomslide.slide.tile_dataset import TileDataset
from dicomslide.slide.workers import Share, rank_of, worker_share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["BlockShuffle", "TileStream"]


LEAST_BLOCK = 1e-6
"""Lower bound on the edge of a block, in edges of a tile."""
FAR = 2.0**62
"""Upper bound on the number of a block along an axis."""


def _check_tiles(dataset: object) -> None:
    """Raise a TypeError unless the object is a data set of tiles."""
    if not isinstance(dataset, TileDataset):
        raise TypeError(f"dataset of type {type(dataset).__name__}: expected a TileDataset")


def _edge_of(block: Any) -> float:
    """Check the edge of a block."""
    if not isinstance(block, numbers.Real):
        raise TypeError(f"block {block!r}: expected a number, in edges of a tile")
    edge = float(block)
    if not LEAST_BLOCK <= edge < math.inf:
        raise ValueError(
            f"block {block}: expected a finite number above zero, {LEAST_BLOCK:g} or more, in edges"
            " of a tile"
        )
    return edge


class BlockShuffle:
    """A random order of tiles in which neighbours follow each other: a sampler for PyTorch.

    Each slide is cut into square blocks of tiles. Blocks come in random order, from all slides;
    within a block, so do its tiles. A batch then holds a few blocks, and the frames that the tiles
    of a block share are decoded once for it. Each epoch has other blocks: they begin elsewhere.

    Pass it to a ``DataLoader`` as `sampler`. It has the same order in all processes, and each rank
    of a distributed run gets a part of it, of whole blocks but for those at its ends.

    Parameters
    ----------
    dataset : TileDataset
        The tiles.
    block : float, default: 4
        Edge of a block, in edges of a tile: 4 for up to 16 tiles that lie side by side. Larger ones
        decode fewer frames for a tile, and make the tiles of a batch more alike.
    mixed : int, default: 1
        Number of blocks whose tiles are shuffled together. With more than one, the tiles of a block
        are spread over several batches, whose frames are decoded once only if the process keeps
        them: see the option `frame_cache_bytes`.
    slides_at_once : int, optional
        Number of slides from which blocks come at a time, chosen at random; by default all. With
        it, few slides are in use at a time, which suits thousands of them.
    shuffle : bool, default: True
        False for the order of the table.
    seed : int, default: 0
        Seed of the order, together with the epoch: the same in all ranks.
    rank, world_size : int, optional
        Number of this process, from 0 on, and number of processes; by default those of the
        environment variables ``RANK`` and ``WORLD_SIZE``, which torchrun sets, else 0 and 1.
    uneven : {"keep", "repeat", "drop"}, default: "keep"
        What happens where tiles can't be shared out evenly. ``"keep"``: each tile comes once, and
        some ranks have one more than others. ``"repeat"`` and ``"drop"``: all have equally many,
        since some tiles come twice, or are left out, others in each epoch.

    Raises
    ------
    TypeError
        When just one of `rank` and `world_size` is given, or an argument is of another type.
    ValueError
        When a number is out of its range.

    Examples
    --------
    >>> x, y = np.add(slide.physical_bounds[:2], 0.1)
    >>> table = {"x": [x, x + 0.1], "y": [y, y]}
    >>> tiles = dicomslide.TileDataset(table, slide, size=100, spacing="1 um")
    >>> order = dicomslide.BlockShuffle(tiles, seed=1)
    >>> order.set_epoch(1)
    >>> sorted(order)
    [0, 1]

    """

    def __init__(
        self,
        dataset: TileDataset,
        block: float = 4,
        *,
        mixed: int = 1,
        slides_at_once: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Literal["keep", "repeat", "drop"] = "keep",
    ) -> None:
        _check_tiles(dataset)
        mixed = dicom.integer(mixed, "mixed", least=1)
        if slides_at_once is not None:
            slides_at_once = dicom.integer(slides_at_once, "slides_at_once", least=1)
        seed = dicom.integer(seed, "seed", least=0, most=None)
        if uneven not in ("keep", "repeat", "drop"):
            raise ValueError(f'uneven must be "keep", "repeat" or "drop", not {uneven!r}')
        self._dataset = dataset
        self._block = _edge_of(block)
        self._mixed = mixed
        self._slides_at_once = slides_at_once
        self._shuffle = bool(shuffle)
        self._seed = seed
        self._rank = rank_of(rank, world_size)
        self._uneven = uneven
        self._epoch = 0

    @property
    def dataset(self) -> TileDataset:
        """The tiles."""
        return self._dataset

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0 on; each has an order of its own."""
        self._epoch = dicom.integer(epoch, "epoch", least=0, most=None)

    def __repr__(self) -> str:
        number, of = self._rank
        return f"<BlockShuffle of {len(self):,} tiles, rank {number} of {of}, epoch {self._epoch}>"

    def __len__(self) -> int:
        start, stop = self._part()
        return stop - start

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def indices(self, epoch: int | None = None) -> NDArray[np.int64]:
        """Return the indices of this rank's tiles in the order of an epoch, by default this one."""
        epoch = self._epoch if epoch is None else epoch
        random = np.random.default_rng((self._seed, epoch))
        order = self._shuffled(random) if self._shuffle else np.arange(len(self._dataset))
        start, stop = self._part()
        if stop > len(order):  # the first tiles once more
            order = np.resize(order, stop)
        return order[start:stop]

    def _part(self) -> tuple[int, int]:
        """Return where the tiles of this rank begin and end in the order."""
        number, of = self._rank
        tiles = len(self._dataset)
        if self._uneven == "drop":
            tiles -= tiles % of
        elif self._uneven == "repeat":
            tiles += -tiles % of if tiles else 0
        return number * tiles // of, (number + 1) * tiles // of

    def _shuffled(self, random: np.random.Generator) -> NDArray[np.int64]:
        tiles, slides = self._dataset.centers, self._dataset.slide_indices
        rows, columns = self._dataset.size
        edges = self._block * self._dataset.spacing * np.array([columns, rows])
        num_slides = len(self._dataset.slide_names)
        shift = random.random((num_slides, 2))
        with np.errstate(over="ignore"):  # infinite ones are clipped
            cells = np.floor(tiles / edges + shift[slides]).clip(-FAR, FAR).astype(np.int64)
        blocks, block = np.unique(_keys(slides, *cells.T), return_inverse=True)
        turn = random.permutation(len(blocks))
        if self._slides_at_once is not None:
            slide_of = np.empty(len(blocks), np.int64)
            slide_of[block] = slides
            together = random.permutation(num_slides) // self._slides_at_once
            turn[np.lexsort((turn, together[slide_of]))] = np.arange(len(turn))
        order = random.permutation(len(tiles))
        # as sorting is stable, tiles of blocks that are mixed stay in random order
        return order[np.argsort((turn // self._mixed)[block[order]], kind="stable")]


def _keys(slides: NDArray[Any], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for each tile that is the same for tiles of one block only."""
    keys = slides.astype(np.int64)
    for each in (y, x):
        first = each.min(initial=0)
        if int(each.max(initial=0)) - int(first) >= 2**31:  # few tiles are that far apart
            each, first = np.unique(each, return_inverse=True)[1], np.int64(0)
        count = int(each.max(initial=0)) - int(first) + 1
        if int(keys.max(initial=0)) * count >= 2**62:
            keys = np.unique(keys, return_inverse=True)[1]
        keys = keys * count + (each - first)
    return keys


class TileStream(Iterable[Any]):
    """Tiles in an order, read some at a time: an iterable data set for PyTorch.

    Each worker of a ``DataLoader`` gets its share, so that each tile comes once. ``import torch``
    has to come before a stream is made that a ``DataLoader`` reads, which then knows it as an
    ``IterableDataset``; without PyTorch, iterate over it.

    Parameters
    ----------
    dataset : TileDataset
        The tiles.
    order : BlockShuffle, optional
        The order, and the part of this rank; by default the order of the table, shared out to the
        ranks of the environment.
    at_once : int, default: 64
        Tiles that are read together, whose shared frames are decoded once.

    Raises
    ------
    TypeError
        When an argument is of another type.
    ValueError
        When the order is one of another data set, or `at_once` is less than one.

    Notes
    -----
    Workers that outlive an epoch (``persistent_workers=True``) don't see :meth:`set_epoch`: they go
    on to the next epoch by themselves.

    Examples
    --------
    >>> x, y = np.add(slide.physical_bounds[:2], 0.1)
    >>> table = {"x": [x, x + 0.1], "y": [y, y]}
    >>> tiles = dicomslide.TileDataset(table, slide, size=100, spacing="1 um")
    >>> stream = dicomslide.TileStream(tiles, dicomslide.BlockShuffle(tiles), at_once=32)
    >>> next(iter(stream)).shape
    (100, 100, 3)

    """

    def __init__(
        self, dataset: TileDataset, order: BlockShuffle | None = None, *, at_once: int = 64
    ) -> None:
        _check_tiles(dataset)
        if not (order is None or isinstance(order, BlockShuffle)):
            raise TypeError(
                f"order of type {type(order).__name__}: expected a BlockShuffle of the data set"
            )
        if order is not None and order.dataset is not dataset:
            raise ValueError("the order is one of another data set")
        at_once = dicom.integer(at_once, "at_once", least=1)
        self._order = BlockShuffle(dataset, shuffle=False) if order is None else order
        self._at_once = at_once
        self._passes = 0
        """How often this worker has begun an epoch."""
        module = sys.modules.get("torch.utils.data")
        if module is not None:
            module.IterableDataset.register(TileStream)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0 on: see :meth:`BlockShuffle.set_epoch`."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of tiles of this rank, of all workers together."""
        return len(self._order)

    def __getitem__(self, index: object) -> Any:
        """Raise a TypeError: a stream is read in its order, and has no tiles by number.

        A ``DataLoader`` asks for them where it doesn't know the stream as an ``IterableDataset``.
        """
        raise TypeError(
            "a TileStream has no tiles by number. For a DataLoader: import torch.utils.data before"
            " the stream is made, or give the DataLoader the TileDataset, with the order as sampler"
        )

    def __iter__(self) -> Iterator[Any]:
        epoch = self._order.epoch
        share = worker_share()
        if share is not None:
            epoch += self._passes
            self._passes += 1
        return self._tiles(self._order.indices(epoch), *(share or Share(0, 1)))

    def _tiles(self, indices: NDArray[np.int64], number: int, of: int) -> Iterator[Any]:
        for start in range(number * self._at_once, len(indices), of * self._at_once):
            yield from self._order.dataset.__getitems__(indices[start : start + self._at_once])
