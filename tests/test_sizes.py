"""What a header claims costs neither memory nor time: each in a child that may take little."""

from __future__ import annotations

import struct
import sys
import zlib

import pytest

from dicomslide.testing import write_slide
from tests.support.bounded import tried
from tests.support.quirky import NATIVE, RLE, changed, setting, write

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are Linux's")

DEFLATED, BASELINE = f"{NATIVE}.99", "1.2.840.10008.1.2.4.50"
GIB = 2**30
SECONDS = 60
"""Of a child, on a machine that does other things, too."""
MOST = 700 * 2**20
"""Bytes in memory, of which packages are 150 MiB."""
TRIES = {
    "open": "dicomslide.open_slide(path)",
    "region": "dicomslide.open_slide(path).get_image_region((0, 0), 0, (10, 10))",
    "thumbnail": "dicomslide.open_slide(path, on_error='fill').thumbnail(64)",
}


def checked(path, tries=TRIES, *, refused=True, names=True):
    """Try, within limits; nothing raises but what this package says."""
    found, peak = tried(tries, seconds=SECONDS, path=str(path))
    assert peak < MOST
    for kind, said in found.values():
        assert not kind.startswith("BARE"), (kind, said)
        assert kind == "given" or not names or path.name in said
    if refused:
        assert found["region"][0] != "given"
    return found


def element(tag, vr, value, length=None):
    length = len(value) if length is None else length
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length) + value


def inserted(path, tag, raw):
    """Put the bytes of an element where it belongs, instead of the one that is there."""
    import io

    from pydicom.filereader import read_partial

    data = path.read_bytes()
    bounds = []
    for stop in (lambda t, vr, length: t >= tag, lambda t, vr, length: t > tag):
        file = io.BytesIO(data)
        read_partial(file, stop_when=stop)
        bounds.append(file.tell())
    path.write_bytes(data[: bounds[0]] + raw + data[bounds[1] :])


def deflated(path, *, before=b"", claimed=GIB, zeros=3 * GIB):
    """A data set that inflates to gigabytes of zeros, in some megabytes."""
    data = write(path, DEFLATED).read_bytes()
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    plain = zlib.decompress(data[start:], wbits=-15)
    head = before or plain[: plain.rindex(b"\xe0\x7f\x10\0")] + element(
        0x7FE00010, b"OW", b"", claimed
    )
    engine = zlib.compressobj(1, wbits=-15)
    packed = engine.compress(head) + engine.flush(zlib.Z_FULL_FLUSH)
    # after which nothing refers to what was before: the same bytes are the same zeros again
    block = engine.compress(bytes(2**24)) + engine.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(data[:start] + packed + block * (zeros // 2**24) + engine.flush())
    return path


@pytest.mark.parametrize("before", [b"", element(0x00070010, b"OW", b"", 3 * GIB)])
def test_a_deflated_bomb_grows_no_further_than_its_header_says(tmp_path, before):
    checked(deflated(tmp_path / "bomb.dcm", before=before), {"region": TRIES["region"]})


ITEMS = b"\xfe\xff\x00\xe0\0\0\0\0" * 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("tag", [0x00081115, 0x00480105, 0x52009229, 0x52009230])
def test_millions_of_empty_items_are_not_made_data_sets(tmp_path, tag, undefined):
    path = write(tmp_path / "image.dcm", sparse=True)
    end = b"\xfe\xff\xdd\xe0\0\0\0\0" if undefined else b""
    inserted(path, tag, element(tag, b"SQ", ITEMS + end, 0xFFFFFFFF if undefined else None))
    is_unneeded = tag == 0x00081115 and not undefined
    checked(path, {"region": TRIES["region"]}, refused=not is_unneeded)


@pytest.mark.parametrize("table", ["extended", "basic"])
def test_an_offset_table_of_gigabytes_is_no_table(tmp_path, table):
    path = write(tmp_path / "image.dcm", RLE, offset_table="empty")
    data = path.read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\0OB")
    heads = {
        "extended": element(0x7FE00001, b"OV", b"", 2**31),
        "basic": data[at : at + 16] + struct.pack("<I", 2**31),
    }
    with path.open("wb") as file:  # of which the disk holds the ends only
        file.write(data[:at] + heads[table])
        file.seek(2**31, 1)
        file.write(data[at + (20 if table == "basic" else 0) :])
    found = checked(path, refused=False)
    assert found["region"] == ("given", "(10, 10, 3)")


@pytest.mark.parametrize("uid", [NATIVE, RLE, BASELINE, f"{NATIVE[:-2]}.4.90", f"{NATIVE}.98"])
def test_a_tile_that_is_claimed_to_be_huge_costs_what_its_bytes_hold(tmp_path, uid):
    path = write(
        tmp_path / "image.dcm", uid, shape=(16, 32), change=setting(Rows=65535, Columns=65535)
    )
    found = checked(path, refused=False)
    if uid in (BASELINE, f"{NATIVE[:-2]}.4.90"):  # whose codestreams say how large they are
        assert found["region"] == ("given", "(10, 10, 3)")


def test_a_label_that_is_claimed_to_be_huge_is_read_as_it_is(tmp_path):
    folder = tmp_path / "slide"
    paths = write_slide(folder, shape=(64, 64), downsamples=(1,))
    label = next(path for path in paths if "label" in path.name)
    changed(
        label,
        setting(Rows=65535, Columns=65535, TotalPixelMatrixRows=10, TotalPixelMatrixColumns=10),
    )
    matrix = "dicomslide.open_slide(path).label_images[0].get_total_pixel_matrix()"
    found = checked(
        folder,
        {
            "region": f"{matrix}[...]",
            "dask": f"{matrix}.to_dask().compute()",
            "tile": f"{matrix}[0]",
        },
        refused=False,
        names=False,
    )
    assert found["region"] == found["dask"] == ("given", "(10, 10, 3)")
    assert found["tile"][0] == "MemoryLimitError"


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("edge", [10**6, 2 * 10**9])
@pytest.mark.parametrize("all_frames", [False, True])
def test_frames_that_can_not_exist_are_not_looked_for(tmp_path, sparse, edge, all_frames):
    size = dict(TotalPixelMatrixRows=edge, TotalPixelMatrixColumns=edge)
    if all_frames:
        size["NumberOfFrames"] = min(2**31 - 1, -(-edge // 16) * -(-edge // 32))
    path = write(tmp_path / "image.dcm", RLE, sparse=sparse, change=setting(**size))
    tries = {"region": TRIES["thumbnail"]}
    few = sparse and not all_frames  # of which a picture is made, however large the matrix is
    checked(path, tries, names=not few, refused=not few)


@pytest.mark.parametrize("tag", [0x00081115, 0x00091001, 0x00282000])
def test_a_length_of_gigabytes_is_read_as_far_as_the_file_goes(tmp_path, tag):
    path = write(tmp_path / "image.dcm")
    inserted(path, tag, element(tag, b"OB" if tag != 0x00081115 else b"SQ", b"", 3 * GIB))
    checked(path)
