"""The index of a cohort of 100,000 slides in a bucket: opening it, and a first tile of some."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.server import place_of
from benchmarks.targets import Target
from benchmarks.tasks import Draw, Fresh

if TYPE_CHECKING:
    from dicomslide.slide.cohort_writer import Row

__all__ = ["INDEX_TARGETS", "INDEX_TASKS", "first_tiles", "open_index", "select",
           "write_index"]  # fmt: skip

INDEX = "index.parquet"
ROWS, TILES = 100_000, 20
"""Slides of the index, and slides of which a tile is read."""
OPEN, FIRST = "open 100,000 slides", "open a slide and read its first tile"
DIGITS = 6
"""Last digits of a UID that are the number of a slide."""


def write_index(folder: Path, rows: int = ROWS) -> None:
    """Write an index, by the writer of `Cohort.save`, of the slides of a bucket with other UIDs."""
    import dicomslide
    from dicomslide.slide.cohort_writer import packed_slides, writing

    _register(str(folder))
    slides = dicomslide.open_slides("s3://slides/")
    batch = packed_slides(slides._options, "", list(slides._members.items()))
    originals = list(batch.found.values())
    with writing(folder / INDEX, overwrite=False) as (writer, _):
        for number in range(rows):
            name = f"S-{number:0{DIGITS}}"
            writer.add(name, _renamed(originals[number % len(originals)], name))
    dicomslide.forget("s3://slides")


def _renamed(row: Row, name: str) -> Row:
    """Return a row with other UIDs of the same lengths, in its headers and beside them."""
    import dataclasses
    import json

    records = [json.loads(each["source"]) for each in row.instances]
    uids = {each["sop_instance_uid"] for each in records}
    uids |= {value for key, value in row.summary.items() if key.endswith("_uid")}
    other = {uid: uid[:-DIGITS] + name[-DIGITS:] for uid in uids}
    summary = {key: other.get(value, value) if isinstance(value, str) else value
               for key, value in row.summary.items()}  # fmt: skip
    instances = []
    for record, each in zip(records, row.instances, strict=True):
        header = each["header"]
        for uid, value in other.items():
            header = header.replace(uid.encode(), value.encode())
        source = json.dumps(record | {"sop_instance_uid": other[record["sop_instance_uid"]]})
        instances.append(each | {"source": source, "header": header})
    summary["container_identifier"] = name
    return dataclasses.replace(row, summary=summary, instances=instances)


def _register(folder: str) -> None:
    import dicomslide

    where = {"endpoint_url": place_of(folder)["bucket"], "region_name": "us-east-1"}
    options = {"key": "someone", "secret": "secret", "client_kwargs": where}
    dicomslide.register_storage_options("s3://slides", options)


def open_index(reader: Any) -> dict[str, float]:
    """Open the index and list the names of slides."""
    import dicomslide

    reader.slides = dicomslide.open_slides(Path(reader.folder) / INDEX)
    return {"slides": len(list(reader.slides))}


def select(reader: Any) -> dict[str, float]:
    """Choose slides by two columns."""
    found = reader.slides.select(stain="*eosin*", um_per_pixel=(0.2, 0.6))
    return {"slides": len(found)}


def first_tiles(reader: Any, numbers: list[int]) -> dict[str, float]:
    """Open some slides of the index and read a tile of each."""
    _register(reader.folder)
    before = _requests(reader.folder)
    for number in numbers:
        slide = reader.slides[f"S-{number % len(reader.slides):0{DIGITS}}"]
        slide.get_volume_images()[0].get_total_pixel_matrix()[0]
    return {"requests": (_requests(reader.folder) - before) / len(numbers)}


def _requests(folder: str) -> int:
    with urllib.request.urlopen(f"{place_of(folder)['bucket']}/requests") as answer:
        return int(answer.read())


def _numbers(draw: Draw) -> dict[str, Any]:
    return {"numbers": draw.rng.integers(0, ROWS, TILES).tolist()}


INDEX_TASKS = (
    Fresh(
        "index",
        (
            ("", "load_more", lambda draw: {}),
            (OPEN, "open_index", lambda draw: {}),
            ("select among 100,000 slides by stain and µm per pixel", "select", lambda draw: {}),
            (FIRST, "first_of_index", _numbers),
        ),
        ("dicomslide",),
        slow=True,
    ),
)


def _target(name: str, limit: float, unit: str, step: str) -> Target:
    return Target(
        name, "", limit, lambda found: found.values(f"index: {step}", "dicomslide", unit), unit
    )


INDEX_TARGETS = (
    _target(f"{OPEN} by their index", 2_000, "ms", OPEN),
    _target(f"{OPEN} by their index, peak memory", 500, "MiB", OPEN),
    _target(f"{FIRST}, from S3, 20 ms away", 2, "requests", FIRST),
)
