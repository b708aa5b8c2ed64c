"""How fast dicomslide is beside its peers and beside the bare decoder: ``python -m benchmarks``."""
