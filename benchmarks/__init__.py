"""Speed of dicomslide compared with other readers and the decoder: ``python -m benchmarks``."""
