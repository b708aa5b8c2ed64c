"""A slide as xarray objects: datasets and trees, labelled in millimetres.

``tree``, ``parts``
    Datasets of levels, spacings, and associated and derived images; what they are made of.
``variables``, ``attributes``
    Channels and focal planes as one variable on a grid, and its attributes.
``coordinates``, ``index``, ``channel_index``
    Coordinates, and selection by millimetres and by names of channels.
``resolution``
    Grids of any spacing, and variables on them.
``patches``
    Patches around many points.
``accessor``, ``match``
    The accessor ``slide``, and arrays on the grid of another array.
"""
