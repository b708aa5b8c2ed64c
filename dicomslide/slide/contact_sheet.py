"""A contact sheet of slides: a picture of each, with its name."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from dicomslide.slide.slide import Slide

__all__ = ["ContactSheet"]

INCHES = 2.2
"""Edge of a picture in a plot."""
MOST = 200
"""Slides of a plot by default."""


class ContactSheet:
    """Slides by name, and a plot of them: base class of :class:`dicomslide.Cohort`."""

    def plot(self, *, size: int = 256, columns: int = 5, most: int = MOST) -> Figure:
        """Plot a contact sheet: a picture of each slide with its name, all of the same scale.

        Slides of fluorescence are blended in the colours of their channels.

        Parameters
        ----------
        size : int, default: 256
            Pixels along the longer edge of each picture.
        columns : int, default: 5
            Pictures in a row.
        most : int, default: 200
            Number of the first slides that are shown; the title says how many there are.

        Returns
        -------
        matplotlib.figure.Figure
            Figure with axes in mm. A slide that doesn't open, or has no picture, has its error
            in its place.

        Raises
        ------
        ImportError
            When matplotlib isn't installed.
        ValueError
            When `size`, `columns` or `most` is less than one.

        """
        if min(size, columns, most) < 1:
            raise ValueError(
                f"a sheet of {most} slides, {columns} in a row, of {size} pixels isn't possible"
            )
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "plot needs matplotlib, which isn't installed: pip install 'dicomslide[plot]'"
            ) from None
        from dicomslide.display.plots import add_scale_bar

        slides: Mapping[str, Slide] = self  # type: ignore[assignment]
        count = min(len(slides), most)
        across = min(columns, max(count, 1))
        down = max(1, math.ceil(count / across))
        figure = Figure(figsize=(INCHES * across, INCHES * 1.15 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False)
        for panel in panels.flat:
            panel.axis("off")
        shown = []
        for panel, (name, picture, millimeters) in zip(
            panels.flat, pictures_of(slides, size, most), strict=False
        ):
            panel.set_title(name, fontsize="small")
            if isinstance(picture, str):
                panel.text(0.5, 0.5, picture, ha="center", va="center", wrap=True, fontsize="small")
                continue
            width, height = millimeters or picture.shape[1::-1]
            grey = {"cmap": "gray"} if picture.ndim == 2 else {}
            panel.imshow(picture, extent=(0, width, 0, height), **grey)
            if millimeters:
                shown.append((panel, max(millimeters)))
        longest = max((edge for _, edge in shown), default=1.0)
        for panel, _ in shown:
            panel.set(xlim=(0, longest), ylim=(0, longest), aspect="equal")
        if shown:
            add_scale_bar(shown[0][0])
        if count < len(slides):
            figure.suptitle(f"{count:,} of {len(slides):,} slides")
        return figure


def pictures_of(
    slides: Mapping[str, Slide], size: int, most: int
) -> Iterator[tuple[str, NDArray[Any] | str, tuple[float, float] | None]]:
    """Yield name, picture, and width and height in mm, of slides; an error in place of a picture.

    Parameters
    ----------
    slides : mapping of str to Slide
        Slides, opened on lookup.
    size : int
        Pixels along the longer edge.
    most : int
        Upper bound on slides.

    """
    from dicomslide.errors import DicomSlideError, MetadataError

    for name in itertools.islice(slides, most):
        try:
            slide = slides[name]
            picture = slide._picture_for_sheet(size)
        except (DicomSlideError, OSError, MemoryError) as error:
            yield name, f"{type(error).__name__}: {error}", None
            continue
        try:
            millimeters = slide.physical_size
        except MetadataError:
            millimeters = None
        yield name, picture, millimeters
