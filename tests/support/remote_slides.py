"""A slide on a server of ranges, and a process that knows nothing of it: for tests of URLs."""

from __future__ import annotations

import dicomslide
from dicomslide.backends.part10 import file as file_backend

SECRET = "hush-0123456789"
SHAPE = (1024, 1024)
REGION = dict(offset=(10, 20), level=0, size=(700, 600))


def forget_everything():
    """Be another process."""
    dicomslide.clear_all()


def forget_bytes():
    """Ask again for all that is read of an object."""
    dicomslide.clear_all("heads of objects", "bytes of objects read ahead", "received frames")


def frames_on_disk(folder, indices):
    source = file_backend.FileSource.open(folder / "slide" / "level-0.dcm")
    return [bytes(frame) for frame in source.read_frames(indices)]


def region(url, **options):
    return dicomslide.open_slide(url, **options).get_image_region(**REGION)


def frame_of(source, index):
    return bytes(source.read_frames([index])[0])
