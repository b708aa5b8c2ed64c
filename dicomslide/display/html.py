"""HTML representations of slides, cohorts, images and matrices for notebooks."""

from __future__ import annotations

import base64
import io
import itertools
import math
from html import escape
from typing import TYPE_CHECKING, Any

from dicomslide.display.tables import cohort_table, listed, table_of
from dicomslide.header.dicom import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Picture = Callable[[int], NDArray[np.uint8]]
    """Function of a number of pixels that returns a picture with that longer edge."""

__all__ = ["cohort_html", "image_html", "matrix_html", "slide_html"]

PICTURE_SIZE = 224
"""Pixels along the longer edge of a picture."""
MOST_PIXELS = 2**24
"""Upper bound on the pixels of an image that is read for a picture: a repr must be cheap."""
MOST_CHANNELS = 50
"""Upper bound on the channels of a type in a list: a segmentation may have thousands."""
FEW_CHANNELS = 5
"""Of more than these, the first that are in the list; the last one follows."""
_NOUNS = {"optical path": "channel"}
MOST_SLIDES = 20
"""Upper bound on the slides of a cohort in a table, and on the failures."""
MOST_LINES = 48
"""Upper bound on the lines of a drawn grid along an edge."""


def slide_html(
    described: dict[str, Any], shown: dict[str, Any], picture: Picture, caption: str
) -> str:
    """Return the HTML of a slide: its picture, images, channels, focal planes and attributes.

    Parameters
    ----------
    described : dict
        Description of the slide: see ``Slide.describe()``.
    shown : dict
        Description of the image of the picture.
    picture : callable
        Function of a size in pixels that returns the picture.
    caption : str
        Channel and focal plane of the picture; empty where there is one of each.

    """
    derived = [image for series in described["derived_series"] for image in series["images"]]
    images = [*described["levels"], *described["associated_images"], *derived]
    facts = [
        ("Container", described.get("container_identifier")),
        ("Scanner", " ".join(filter(None, map(described.get, _SCANNER)))),
        ("Stains", ", ".join(described.get("stains", []))),
        ("Field of view", _field_of_view(described["levels"][0]["field_of_view_mm"])),
        ("Focal planes", ", ".join(f"{z:g}" for z in described["focal_planes_um"]) + " µm"),
        ("Segments", listed(described["segments"])),
        ("Annotations", listed(described["annotations"])),
    ]
    channels = [("", "type", "identifier", "description")]
    counts = []
    of_kind = itertools.groupby(enumerate(described["channels"]), lambda each: each[1]["type"])
    for kind, group in of_kind:
        noun = kind.replace("_", " ").lower()
        rows = [
            (str(index), noun, channel["identifier"], channel["description"] or "")
            for index, channel in group
        ]
        counts.append(counted(len(rows), _NOUNS.get(noun, noun)))
        if len(rows) > MOST_CHANNELS:  # the first ones and the last
            left = len(rows) - FEW_CHANNELS - 1
            rows[FEW_CHANNELS:-1] = [("", "", "", f"and {left:,} more")]
        channels += rows
    levels, planes = (len(described[name]) for name in ("levels", "focal_planes_um"))
    return _page(
        f"Slide: {counted(levels, 'level')}, {', '.join(counts)}, {counted(planes, 'focal plane')}",
        _picture(shown, picture) + _caption(caption),
        _facts(facts) + _table(table_of(images)) + _folded("Channels", _table(channels)),
    )


def cohort_html(
    summaries: Mapping[str, dict[str, Any]], count: int, failures: Mapping[str, Exception]
) -> str:
    """Return the HTML of a cohort: a table of its first slides, and the slides that failed.

    Parameters
    ----------
    summaries : mapping of str to dict
        Summaries of the first slides, by name.
    count : int
        Number of slides of the cohort.
    failures : mapping of str to Exception
        Error of each slide that couldn't be opened, by name.

    """
    failed = [(name, str(error)) for name, error in itertools.islice(failures.items(), MOST_SLIDES)]
    body = _table(cohort_table(summaries)) + _more(count)
    if failures:
        table = _table([("", "why"), *failed]) + _more(len(failures))
        body += _folded(counted(len(failures), "failure"), table)
    title = f"dicomslide.Cohort: {counted(count, 'slide')}"
    return f"<div><div><strong>{title}</strong></div>{body}</div>"


def _more(count: int) -> str:
    return f"<div>and {count - MOST_SLIDES:,} more</div>" if count > MOST_SLIDES else ""


_SCANNER = ("manufacturer", "manufacturer_model_name")


def image_html(
    described: dict[str, Any],
    identifiers: Sequence[str],
    focal_plane_offsets: Sequence[float],
    picture: Picture,
    caption: str,
) -> str:
    """Return the HTML of an image: its picture, size and encoding; see :func:`slide_html`."""
    channels = list(identifiers[:MOST_CHANNELS])
    if len(identifiers) > MOST_CHANNELS:
        channels.append(f"and {len(identifiers) - MOST_CHANNELS:,} more")
    facts = [
        ("File", described["file"]),
        ("Field of view", _field_of_view(described["field_of_view_mm"])),
        ("Channels", ", ".join(channels)),
        ("Focal planes", ", ".join(f"{z:g}" for z in focal_plane_offsets) + " µm"),
    ]
    return _page(
        f"TiledImage: {described['flavor'].replace('_', ' ')}",
        _picture(described, picture) + _caption(caption),
        _facts(facts) + _table(table_of([described])),
    )


def matrix_html(
    shape: tuple[int, int, int],
    tile_shape: tuple[int, int, int],
    tile_grid_shape: tuple[int, int],
    dtype: np.dtype[Any],
) -> str:
    """Return the HTML of a matrix: its shape, dtype and tiles, with a drawing of the grid."""
    rows, columns, samples = shape
    down, across = tile_grid_shape
    tile_rows, tile_columns, _ = tile_shape
    whole, tile = (math.prod(each) * dtype.itemsize for each in (shape, tile_shape))
    table = [
        ("", "matrix", "tile"),
        ("shape", f"{rows:,} × {columns:,} × {samples}", f"{tile_rows} × {tile_columns}"),
        ("bytes", f"{whole:,}", f"{tile:,}"),
        ("count", f"{down:,} × {across:,} tiles", f"{down * across:,} in all"),
        ("type", str(dtype), ""),
    ]
    scale = PICTURE_SIZE / max(rows, columns)
    drawing = _grid(columns * scale, rows * scale, tile_columns * scale, tile_rows * scale)
    return _page("TotalPixelMatrix", drawing, _table(table))


def _field_of_view(size: Sequence[float] | None) -> str | None:
    return None if size is None else f"{size[0]:.4g} × {size[1]:.4g} mm (x × y)"


def _caption(text: str) -> str:
    return f"<div><small>{escape(text)}</small></div>" if text else ""


def _picture(shown: dict[str, Any], picture: Picture) -> str:
    """Return a picture as an HTML element; where it fails, the reason instead of an error."""
    from PIL import Image

    rows, columns = shown["rows"], shown["columns"]
    if rows * columns > MOST_PIXELS:
        return f"<em>no picture: {rows:,} × {columns:,} pixels<br>would have to be read</em>"
    try:
        drawn = Image.fromarray(picture(PICTURE_SIZE))
    except Exception as error:  # the table is shown without a picture
        return f"<em>no picture: {escape(str(error))}</em>"
    file = io.BytesIO()
    drawn.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(shown["flavor"].lower())}">'


def _grid(width: float, height: float, step_x: float, step_y: float) -> str:
    """Draw a matrix with its tiles as SVG; every n-th line where there are too many."""
    paths = [f"M0 0H{width:.2f}V{height:.2f}H0Z"]
    paths += [f"M{x:.2f} 0V{height:.2f}" for x in _lines(width, step_x)]
    paths += [f"M0 {y:.2f}H{width:.2f}" for y in _lines(height, step_y)]
    return (
        f'<svg width="{width + 2:.0f}" height="{height + 2:.0f}" viewBox="-1 -1'
        f' {width + 2:.2f} {height + 2:.2f}" fill="currentColor" fill-opacity="0.08"'
        f' stroke="currentColor" stroke-width="0.7"><path d="{"".join(paths)}"/></svg>'
    )


def _lines(length: float, step: float) -> Iterable[float]:
    count = int(length / step)
    every = -(-count // MOST_LINES) or 1
    return (i * step for i in range(every, count + 1, every) if i * step < length)


def _page(title: str, picture: str, body: str) -> str:
    return (
        f"<div><div><strong>dicomslide.{escape(title)}</strong></div>"
        '<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start;margin-top:.5em">'
        f'<div style="max-width:{PICTURE_SIZE + 8}px">{picture}</div><div>{body}</div></div></div>'
    )


def _facts(facts: Iterable[tuple[str, str | None]]) -> str:
    lines = (f"<div>{name}: {escape(value)}</div>" for name, value in facts if value)
    return f'<div style="margin-bottom:.5em">{"".join(lines)}</div>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    style = "text-align:left;padding:.1em .9em .1em 0"
    cells = "".join(f'<th style="{style}">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{style}">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rest
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
