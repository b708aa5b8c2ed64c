"""A slide as xarray objects: datasets and trees, labelled in millimetres."""
