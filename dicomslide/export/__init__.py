"""Export of slides to other formats: OME-Zarr and SpatialData."""
