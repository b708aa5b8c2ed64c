"""Lazy reading of pixels by index.

``matrix_reader``
    Pixels of one channel and focal plane of an image: `MatrixReader`.
``stacked_reader``
    Channels and focal planes as one upright array: `StackedReader`.
``resampled_reader``, ``windows``, ``reductions``
    Pixels of another size: `ResampledReader`, the windows of stored pixels, and their means or
    labels.
``patch_reader``, ``regions``
    Boxes of one size at any positions: `PatchReader`; and the regions of a matrix.
``frame_reader``, ``pools``
    Decoded frames of an image: cached, or fetched and decoded by threads of the pools.
``indexing``
    Keys of NumPy, resolved for an array that is stored in tiles.
``arrays``, ``chunks``
    The adapter by which xarray and dask read: `ReaderArray`; and the lengths of chunks.
"""
