"""The command line ``dicomslide``: info, thumbnail, view, export, store, index, and others."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomslide._version import __version__
from dicomslide.display.tables import cohort_table, listed, table_of
from dicomslide.errors import DicomSlideError, MetadataError, StorageRefusedError
from dicomslide.options import set_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dicomslide.slide.slide import Slide

__all__ = ["main"]

MOST_CHANNELS = 50
"""Upper bound on the first channels that are printed; the last one follows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; by default ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit code: 0; 1 after an error, which is printed; 130 after Ctrl+C.

    Raises
    ------
    SystemExit
        With code 2 after wrong usage, 0 after ``--help`` and ``--version``.

    """
    with _transliterating(sys.stdout), _transliterating(sys.stderr):
        return _run(_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]  # fewer arguments
            code: int = options.run(options)
            return code
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - takes what Python flushes at exit
        return 0
    except (DicomSlideError, OSError, MemoryError, ImportError) as error:
        _show_error(f"error: {error}", error)
        return 1
    except KeyboardInterrupt as error:
        _show_error("interrupted", error)
        return 130


TRANSLITERATE = "dicomslide.transliterate"
"""Name of the codec error handler that writes ASCII for characters outside the encoding."""
TRANSLITERATIONS = {
    "×": "x", "µ": "u", "°": " deg", "²": "2", "−": "-", "–": "-", "…": "...", "’": "'",
    "─": "-", "│": "|", "├": "|", "└": "`",
}  # fmt: skip


def _transliterate(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks by ASCII, or by a backslash escape."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    ascii_only = (
        TRANSLITERATIONS.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing
    )
    return "".join(ascii_only), error.end


codecs.register_error(TRANSLITERATE, _transliterate)


@contextlib.contextmanager
def _transliterating(stream: Any) -> Iterator[None]:
    """Set a text stream's error handler, so that no character raises a UnicodeEncodeError.

    Streams that can't be reconfigured, such as a notebook's, are left as they are.
    """
    before = getattr(stream, "errors", None)
    if before is None or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors=TRANSLITERATE)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it flushes; the pipe may be closed
            stream.reconfigure(errors=before)


def _show_error(message: str, error: BaseException) -> None:
    for line in (message, *getattr(error, "__notes__", ())):
        print(f"dicomslide: {line}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"dicomslide: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dicomslide", description="DICOM whole slide images as lazy, labelled arrays."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser(
        "info", help="list the levels and images of a slide, or one line for each of several slides"
    )
    info.add_argument("--json", action="store_true",
                      help="print JSON: a list with an object for each slide")  # fmt: skip
    info.set_defaults(run=_info)

    thumbnail = commands.add_parser("thumbnail", help="save an upright picture of the slide")
    thumbnail.add_argument("--size", type=_positive, default=1024, help="longer edge in pixels")
    thumbnail.add_argument("--channel", type=int, default=0, help="zero-based channel")
    thumbnail.add_argument("--focal-plane", type=int, default=0, help="zero-based focal plane")
    thumbnail.set_defaults(run=_thumbnail)

    view = commands.add_parser("view", help="show slides in a browser")
    view.add_argument("--port", type=_positive, default=0,
                      help="port of the server (default: any that is free)")  # fmt: skip
    view.add_argument("--address", default="127.0.0.1",
                      help="address of the server; others than the default are reachable from"
                      " elsewhere (default: %(default)s)")  # fmt: skip
    view.add_argument("--no-browser", action="store_true", help="print the URL only")
    view.set_defaults(run=_view)

    export = commands.add_parser("export", help="write the slide as OME-Zarr")
    again = export.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="complete an interrupted export")
    again.add_argument("--overwrite", action="store_true", help="replace an existing store")
    export.add_argument("--shard-size", type=_positive, default=2048, metavar="PIXELS",
                        help="edge of a shard, a file each (default: %(default)s)")  # fmt: skip
    export.add_argument("--compression", choices=("zstd", "blosc"), default="zstd",
                        help="lossless codec of chunks (default: %(default)s)")  # fmt: skip
    export.set_defaults(run=_export)

    store = commands.add_parser("store", help="send DICOM files to a DICOMweb server (STOW-RS)")
    store.add_argument("files", type=Path, nargs="+", metavar="FILE",
                       help="DICOM file, or a folder of them")  # fmt: skip
    store.add_argument("url", metavar="URL",
                       help="DICOMweb service, e.g. https://host/dicom-web")  # fmt: skip
    store.set_defaults(run=_store)

    index = commands.add_parser(
        "index", help="write an index of slides, from which they open without a search"
    )
    index.add_argument("--overwrite", action="store_true", help="replace an existing index")
    index.add_argument("slide", type=_path, nargs="+", metavar="SLIDE",
                       help="DICOM file or folder, or its URL; also of several slides")  # fmt: skip
    index.add_argument("index", type=_index_path, metavar="INDEX",
                       help="Parquet file or its URL, e.g. cohort.parquet")  # fmt: skip
    index.set_defaults(run=_index)

    virtualize = commands.add_parser(
        "virtualize",
        help="write slides to an icechunk repository, as zarr on the files as they are",
    )
    virtualize.add_argument("--overwrite", action="store_true",
                            help="replace slides of the same name")  # fmt: skip
    virtualize.add_argument("--skip-failures", action="store_true",
                            help="leave out slides that can't be opened or virtual")  # fmt: skip
    virtualize.add_argument("--as-stated", action="store_true",
                            help="place each level by the origin in its own header")  # fmt: skip
    virtualize.add_argument("--check-frames", choices=["all", "sample"],
                            help="frames whose headers are examined before a codec that doesn't"
                            " need dicomslide is chosen (default: all of files on this machine;"
                            " none of others)")  # fmt: skip
    virtualize.add_argument("slide", type=_path, nargs="+", metavar="SLIDE",
                            help="DICOM file or folder, or its URL; also of several"
                            " slides")  # fmt: skip
    virtualize.add_argument("repository", type=_path, metavar="REPO",
                            help="folder or URL (s3://) of the repository, which is created, or"
                            " extended by slides")  # fmt: skip
    virtualize.set_defaults(run=_virtualize)

    demo = commands.add_parser(
        "demo", help="open a slide with xarray, measure its tissue with dask, draw the result"
    )
    demo.add_argument("--output", type=Path, default=Path("dicomslide-demo"), metavar="FOLDER",
                      help="folder for the pictures (default: %(default)s)")  # fmt: skip
    demo.set_defaults(run=_demo)

    for command in (info, thumbnail, view, export, demo):
        optional = command is demo
        command.add_argument(
            "slide",
            type=_path,
            nargs="?" if optional else "+" if command in (info, view) else None,
            metavar="SLIDE",
            help="DICOM file or folder, or its URL"
            + (" (default: a synthetic slide)" if optional else ""),
        )
        command.add_argument("--container-id",
                             help="Container Identifier of the slide, if a folder holds"
                             " several")  # fmt: skip
        command.add_argument("--frame-of-reference-uid",
                             help="Frame of Reference UID of the scan, if a slide has"
                             " several")  # fmt: skip
        command.add_argument("--pyramid", type=_pyramid,
                             help="the pyramid, if a slide has several: its number, from 0"
                             " (the largest), its Pyramid UID, or the name of a file")  # fmt: skip
        command.add_argument("--as-stated", action="store_true",
                             help="place each level by the origin in its own header")  # fmt: skip
    thumbnail.add_argument("out", type=Path, metavar="OUT", help="picture to write, e.g. out.png")
    export.add_argument(
        "out", type=_path, metavar="OUT", help="folder or URL to write, e.g. out.zarr"
    )
    return parser


def _open(options: argparse.Namespace) -> Slide:
    from dicomslide.slide.opening import open_slide

    return open_slide(
        options.slide,
        container_id=options.container_id,
        frame_of_reference_uid=options.frame_of_reference_uid,
        pyramid=options.pyramid,
        align_levels=not options.as_stated,
    )


def _alone(slides: list[Any]) -> Any:
    """Return a single slide: the URL of a server, or an index, isn't accepted in a list."""
    return slides[0] if len(slides) == 1 else slides


def _pyramid(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't an integer above zero")
    return int(text)


def _path(text: str) -> Path | str:
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return text if "://" in text else Path(text)


def _index_path(text: str) -> Path | str:
    from dicomslide.slide.cohort_index import is_index

    path = _path(text)
    if not is_index(path):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a path that ends with .parquet")
    return path


# -- info ------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    from dicomslide.slide.collecting import open_slides

    options.slide = _alone(options.slide)
    chosen = (options.container_id, options.frame_of_reference_uid, options.pyramid)
    if any(each is not None for each in chosen):
        slide = _open(options)
        _show([(slide.container_identifier or slide.name, slide)], options.json)
        return 0
    slides = open_slides(options.slide, align_levels=not options.as_stated)
    if options.json or len(slides) == 1:
        _show(slides.opened(), options.json)
    else:
        _print_rows(cohort_table(slides.summaries()))
    _show_failures(slides.failures)
    return 1 if slides.failures else 0


def _show_failures(failures: Mapping[str, Exception]) -> None:
    for name, error in failures.items():
        text = str(error)
        print(f"dicomslide: error: {text if name in text else f'{name}: {text}'}", file=sys.stderr)


def _show(slides: Iterable[tuple[str, Slide]], as_json: bool) -> None:
    """Print the description of each slide: as text, or as a JSON list of objects."""
    described = [{"name": name} | slide.describe() for name, slide in slides]
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=not _stdout_is_unicode()))
        return
    for each in described:
        _show_slide(each)


def _stdout_is_unicode() -> bool:
    """Whether standard output encodes all characters; else JSON escapes those beyond ASCII."""
    return codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")


def _show_slide(described: dict[str, Any]) -> None:
    for name in ("container_identifier", "manufacturer", "manufacturer_model_name", "stains",
                 "objective_lens_power"):  # fmt: skip
        value = described.get(name)
        if value is not None:
            text = ", ".join(value) if isinstance(value, list) else value
            print(f"{name.replace('_', ' '):24}{text}")
    if len(described["pyramids"]) > 1:
        for number, pyramid in enumerate(described["pyramids"]):
            shown = " (shown)" if number == described["pyramid_index"] else ""
            print(f"{f'pyramid {number}':24}{pyramid['in_words']}{shown}")
    base = described["levels"][0]
    if base["rotation"] is not None:
        mirrored = ", mirrored" if base["mirrored"] else ""
        cosines = "\\".join(f"{value:g}" for value in base["image_orientation_slide"])
        print(f"{'orientation':24}{cosines} ({base['rotation']:g}°{mirrored})")
    channels = described["channels"]
    for number, channel in enumerate(channels):
        if MOST_CHANNELS <= number < len(channels) - 1:
            if number == MOST_CHANNELS:
                print(f"{'':24}and {len(channels) - MOST_CHANNELS - 1:,} more")
            continue
        nm = f", {channel['wavelength_nm']:g} nm" if channel["wavelength_nm"] else ""
        kind = channel["type"].replace("_", " ").lower()
        print(f"{kind:24}{channel['identifier']}: {channel['description'] or '-'}{nm}")
    planes = described["focal_planes_um"]
    print(f"{'focal planes':24}{len(planes)} at {', '.join(f'{z:g}' for z in planes)} µm")
    if described["annotations"]:
        print(f"{'annotations':24}{listed(described['annotations'])}")
    print()
    derived = [image for series in described["derived_series"] for image in series["images"]]
    _print_rows(table_of(described["levels"] + described["associated_images"] + derived))


def _print_rows(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


# -- thumbnail -------------------------------------------------------------------------------


def _thumbnail(options: argparse.Namespace) -> int:
    from PIL import Image

    slide = _open(options)
    try:
        pixels = slide.thumbnail(
            options.size,
            channel_index=options.channel,
            focal_plane_index=options.focal_plane,
            progress=sys.stderr.isatty(),
        )
    except ValueError as error:
        raise MetadataError(str(error)) from error
    try:
        Image.fromarray(pixels).save(options.out)
    except (ValueError, KeyError) as error:  # a file extension that Pillow doesn't write
        raise OSError(f"{options.out}: can't be written: {error}") from error
    print(f"{options.out}: {pixels.shape[1]} × {pixels.shape[0]} pixels")
    return 0


# -- view ------------------------------------------------------------------------------------


def _view(options: argparse.Namespace) -> int:
    from dicomslide.slide.collecting import open_slides
    from dicomslide.view import check_installed

    check_installed()
    options.slide = _alone(options.slide)
    chosen = (options.container_id, options.frame_of_reference_uid, options.pyramid)
    slides: Mapping[str, Slide]
    if any(each is not None for each in chosen):
        slide = _open(options)
        slides = {slide.container_identifier or slide.name: slide}
    else:
        slides = open_slides(options.slide, align_levels=not options.as_stated)
        for name, error in slides.failures.items():
            _show_error(f"warning: {name}: {error}", error)
    from dicomslide.view.server import SlideServer

    server = SlideServer(slides, port=options.port, address=options.address)
    print(server.url, flush=True)
    if not options.no_browser:
        import webbrowser

        if not webbrowser.open(server.url):
            print("dicomslide: no browser was found: open the URL in one", file=sys.stderr)
    with set_options(frame_cache_bytes=0):  # views keep what they show
        server.run()
    return 0


# -- export ----------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from dask.diagnostics.progress import ProgressBar

    from dicomslide.export.ome_zarr import to_ome_zarr

    bar: Any = nullcontext()
    if sys.stderr.isatty():
        bar = ProgressBar(out=sys.stderr)  # type: ignore[no-untyped-call]
    with bar:
        to_ome_zarr(
            _open(options),
            options.out,
            overwrite=options.overwrite,
            resume=options.resume,
            shard_size=options.shard_size,
            compression=options.compression,
        )
    print(f"{options.out}: complete")
    return 0


# -- store -----------------------------------------------------------------------------------


def _store(options: argparse.Namespace) -> int:
    from dicomslide.backends.dicomweb.storing import connection_for, instances_in, store_files
    from dicomslide.backends.net.addresses import URL_SCHEME

    url = options.url if options.url.startswith(URL_SCHEME) else f"{URL_SCHEME}{options.url}"
    connection, paths = connection_for(url), instances_in(options.files)
    failures: dict[str, str] = {}
    try:
        store_files(connection, paths)
    except StorageRefusedError as error:
        failures = error.failures
    for uid, reason in failures.items():
        print(f"dicomslide: error: {paths[uid]}: {uid}: {reason}", file=sys.stderr)
    print(f"{options.url}: stored {len(paths) - len(failures)} of {len(paths)} instances")
    return 1 if failures else 0


# -- index -----------------------------------------------------------------------------------


def _index(options: argparse.Namespace) -> int:
    from dicomslide.slide.cohort_writer import check_writable
    from dicomslide.slide.collecting import open_slides

    check_writable(options.index, overwrite=options.overwrite)  # the search may take hours
    slides = open_slides(_alone(options.slide))
    slides.save(options.index, overwrite=options.overwrite)
    _show_failures(slides.failures)
    saved = sum(name not in slides.failures for name in slides)
    print(f"{options.index}: has {saved} of {len(slides)} slides")
    return 1 if slides.failures else 0


# -- virtualize ------------------------------------------------------------------------------


def _virtualize(options: argparse.Namespace) -> int:
    from dicomslide.slide.collecting import open_slides
    from dicomslide.virtual import to_icechunk
    from dicomslide.virtual.tree import check_installed

    check_installed("icechunk", "virtualizarr")  # the search may take hours
    slides = open_slides(_alone(options.slide), align_levels=not options.as_stated)
    to_icechunk(
        slides,
        options.repository,
        overwrite=options.overwrite,
        on_error="skip" if options.skip_failures else "raise",
        check_frames=options.check_frames,
    )
    print(f"{options.repository}: committed")
    return 0


# -- demo ------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    from dicomslide.demo import run

    run(None if options.slide is None else _open(options), options.output)
    return 0
