"""Files damaged at random, from a seed: what opens them may say what is wrong, and nothing else.

Run as a program it tries any number: ``python -m tests.support.mutations FOLDER FIRST COUNT``.
"""

from __future__ import annotations

import io
import random
import struct
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW = 20.0
"""Seconds of a processor that a file of a few thousand bytes may take."""
VRS = (b"OB", b"OW", b"UN", b"SQ", b"US", b"UL", b"DS", b"IS", b"UI", b"CS", b"PN", b"FD", b"AT",
       b"UT", b"XX", b"\0\0", b"LO", b"DA")  # fmt: skip
NUMBERS = (0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**32 - 2, 2**32 - 1)


def element_places(data: bytes) -> list[int]:
    """Where explicit elements begin, at any depth, as far as bytes look like it."""
    known = set(VRS[:13]) | {b"LO", b"SH", b"DA", b"TM", b"DT", b"FL", b"SL", b"ST", b"AE"}
    return [at for at in range(132, len(data) - 8, 2) if data[at + 4 : at + 6] in known]


def mutated(data: bytes, seed: int) -> bytes:
    """Return a file with one to three faults."""
    rng = random.Random(seed)
    out = bytearray(data)
    places = element_places(data[: 2**16])
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(10)
        at = rng.choice(places)
        is_long = bytes(out[at + 4 : at + 6]) in (b"OB", b"OW", b"UN", b"SQ", b"UT")
        width, where = (4, at + 8) if is_long else (2, at + 6)
        (length,) = struct.unpack_from("<I" if is_long else "<H", out, where)
        value = where + width
        length = min(length, len(out) - value)
        if kind == 0:  # bytes of the header
            for _ in range(rng.randrange(1, 6)):
                out[rng.randrange(128, min(len(out), 6000))] = rng.randrange(256)
        elif kind == 1:
            out[at + 4 : at + 6] = rng.choice(VRS)
        elif kind == 2:
            number = rng.choice(NUMBERS) & (2 ** (8 * width) - 1)
            out[where : where + width] = number.to_bytes(width, "little")
        elif kind == 3:  # several values, or a value that is none
            text = rng.choice((b"\\", b"1.2\\3.4", b"abc", b"", b"-1", b"9" * 12, b"\xff\xfe"))
            text = (text * (length // max(1, len(text)) + 1))[:length]
            out[value : value + length] = text.ljust(min(length, 64), b"\\")[:length]
        elif kind == 4 and length < 5000:  # deleted
            del out[at : value + length]
        elif kind == 5 and length < 5000:  # twice
            out[at:at] = out[at : value + length]
        elif kind == 6:  # a number
            for i in range(0, min(length, 8) - 3, 4):
                out[value + i : value + i + 4] = struct.pack("<I", rng.choice(NUMBERS))
            if length == 2:
                out[value : value + 2] = struct.pack("<H", rng.choice(NUMBERS) & 0xFFFF)
        elif kind == 7:  # cut off
            del out[rng.randrange(132, len(out)) :]
        elif kind == 8:  # bytes of the pixels, and what says where they are
            for _ in range(rng.randrange(1, 9)):
                out[rng.randrange(len(out) // 2, len(out))] = rng.randrange(256)
        else:  # something in between
            out[at:at] = rng.randbytes(rng.randrange(1, 20))
        places = [place for place in places if place < len(out) - 16]
        if not places:
            break
    return bytes(out)


def seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files that are damaged."""
    for path in sorted(folder.rglob("*.dcm")):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def escapes(folder: Path, first: int, count: int) -> Iterator[str]:
    """Yield what was raised that isn't documented, or took too long, with its seed."""
    import dicomslide

    files = list(seeds(folder))
    path = folder / "mutated"
    for seed in range(first, first + count):
        name, data = files[seed % len(files)]
        changed = mutated(data, seed)
        path.write_bytes(changed)
        began = time.process_time()
        for what, source in (("path", path), ("bytes", io.BytesIO(changed))):
            try:
                slide = dicomslide.open_slide(source, on_error="fill" if seed % 3 else "raise")
                slide.get_image_region((0, 0), 0, (40, 40))
                slide.thumbnail(32)
                slide.to_datatree(associated=True)
                repr(slide)
            except dicomslide.DicomSlideError as error:
                if what == "path" and str(path) not in str(error):
                    yield f"{seed} {name}: it names no file: {type(error).__name__}: {error}"
            except OSError as error:
                if not error.filename:
                    yield f"{seed} {name}: {type(error).__name__}: {error}"
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                yield f"{seed} {name} by {what}: {type(error).__name__}: {error} ({where})"
            if seed % 5:
                break  # by path is enough
        elapsed = time.process_time() - began
        if elapsed > SLOW:
            yield f"{seed} {name}: it took {elapsed:.0f} s of a processor"


if __name__ == "__main__":
    import resource

    memory = 3 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    warnings.simplefilter("ignore")
    for line in escapes(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stderr.write(f"at most {peak} MiB\n")
