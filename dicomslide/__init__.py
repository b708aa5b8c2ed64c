"""DICOM whole slide images as lazy, labelled arrays."""

__version__ = "0.1.0"
