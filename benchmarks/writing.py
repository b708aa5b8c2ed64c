"""A mask of the base level that is written as a DICOM Segmentation while it is computed."""

from __future__ import annotations

from benchmarks.targets import Target
from benchmarks.tasks import Warm

__all__ = ["WRITING_TARGETS", "WRITING_TASKS"]

COMPUTED, WRITTEN = "mask computed and packed", "mask written as a segmentation"
LARGE, SMALL = "large-extended", "jpeg-256"
MOST_MIB = 256

WRITING_TASKS = (
    Warm(COMPUTED, LARGE, "packed_mask", ("dicomslide",), slow=True),
    Warm(WRITTEN, LARGE, "written_mask", ("dicomslide",), slow=True),
    Warm(WRITTEN, SMALL, "written_mask", ("dicomslide", "highdicom"), slow=True),
)
WRITING_TARGETS = (
    Target(
        f"{WRITTEN}, 100,000²",
        "computed and packed only",
        1.15,
        lambda found: (
            found.values(f"{LARGE}: {WRITTEN}", "dicomslide")
            / found.values(f"{LARGE}: {COMPUTED}", "dicomslide")
        ),
    ),
    Target(
        f"{WRITTEN}, 100,000², more memory",
        "",
        MOST_MIB,
        lambda found: found.values(f"{LARGE}: {WRITTEN}", "dicomslide", "more_MiB"),
        "MiB",
    ),
    *(
        Target(
            f"{WRITTEN}, 20,480², {what}",
            "highdicom",
            limit,
            lambda found, quantity=quantity: (
                found.values(f"{SMALL}: {WRITTEN}", "dicomslide", quantity)
                / found.values(f"{SMALL}: {WRITTEN}", "highdicom", quantity)
            ),
        )
        for what, limit, quantity in (("time", 1.0, "ms"), ("more memory", 0.2, "more_MiB"))
    ),
)
