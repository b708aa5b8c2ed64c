"""What programs of computational pathology ask of openslide, in few lines each.

The calls are those of their reading code, by position or by keyword as they make them; what they do
with the pixels is left out. Run as a script, it prints what each gets of a slide, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
from openslide import OpenSlide, open_slide
from PIL import Image


def digest(pixels):
    """Shape, type and a hash of an array or a picture."""
    array = np.array(pixels)
    return [list(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]


# -- CLAM --

_bag = None


def _patch_of_bag(coord):
    return digest(_bag.read_region(coord, 1, (64, 64)).convert("RGB"))


def clam(path):
    """Segmentation at a low level; patches by processes that inherit an open slide."""
    global _bag
    wsi = _bag = open_slide(path)
    dimensions = wsi.level_dimensions
    factors = [
        (dimensions[0][0] / float(width), dimensions[0][1] / float(height))
        for width, height in dimensions
    ]
    level = wsi.get_best_level_for_downsample(64)
    low = np.array(wsi.read_region((0, 0), level, dimensions[level]))
    tissue = (low[:, :, 1] < 220) & (low[:, :, 3] == 255)
    coords = [
        (x, y) for y in range(0, dimensions[0][1], 128) for x in range(0, dimensions[0][0], 128)
    ]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        patches = pool.map(_patch_of_bag, coords)
    return [factors, wsi.level_downsamples, level, digest(tissue), patches]


# -- TRIDENT --


def trident(path):
    """Sizes and microns per pixel of a list of names; a grid of patches, as pictures and arrays."""
    img = OpenSlide(path)
    mpp = None
    for key in (openslide.PROPERTY_NAME_MPP_X, "openslide.mirax.MPP", "aperio.MPP",
                "hamamatsu.XResolution", "openslide.comment"):  # fmt: skip
        if key in img.properties:
            mpp = round(float(img.properties[key]), 4)
            break
    power = img.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    thumbnail = img.get_thumbnail((100, 80)).convert("RGB")
    downsample = 3.0
    level = img.get_best_level_for_downsample(downsample)
    custom = downsample / img.level_downsamples[level]
    edge = round(32 * custom)
    grid = [
        digest(np.array(img.read_region((x, y), level, (edge, edge)).convert("RGB")))
        for x in range(0, img.dimensions[0], 96)
        for y in range(0, img.dimensions[1], 96)
    ]
    found = [mpp, float(power), img.level_count, img.dimensions, digest(thumbnail), grid]
    img.close()
    return found


# -- STAMP --


def stamp(path):
    """Tiles of a size in microns by threads; a thumbnail by which they are chosen."""
    slide = open_slide(path)
    mpp = float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
    edge = round(64.0 / mpp)
    across, down = (math.ceil(side / edge) for side in slide.dimensions)
    thumbnail = slide.get_thumbnail((across, down)).convert("I")

    def tile(place):
        x, y = place
        region = slide.read_region((x, y), 0, (edge, edge)).convert("RGB")
        return digest(region.resize((32, 32)))

    places = [(column * edge, row * edge) for row in range(down) for column in range(across)]
    with ThreadPoolExecutor(4) as pool:
        return [edge, digest(thumbnail), list(pool.map(tile, places))]


# -- tiatoolbox --


def tiatoolbox(path):
    """Everything by keyword; metadata as numbers; boxes of the base level at a coarser one."""
    assert OpenSlide.detect_format(path) is not None
    wsi = openslide.OpenSlide(filename=str(path))
    props = wsi.properties
    info = [
        props.get(openslide.PROPERTY_NAME_VENDOR),
        float(props[openslide.PROPERTY_NAME_MPP_X]), float(props[openslide.PROPERTY_NAME_MPP_Y]),
        float(props[openslide.PROPERTY_NAME_OBJECTIVE_POWER]),
        wsi.level_dimensions[0], wsi.level_count, wsi.level_downsamples,
        sorted(dict(**props)),
    ]  # fmt: skip
    rects = [
        digest(np.array(wsi.read_region(location=at, level=level, size=size))[..., :3])
        for at, level, size in (
            ([8, 12], 0, [50, 40]),
            ((-20, 0), 1, (64, 64)),
            ((400, 300), 0, (64, 64)),
        )
    ]
    bounds = np.array([0, 0, 128, 96])
    at, size = bounds[:2], (bounds[2:] - bounds[:2]) // 2
    rects.append(digest(wsi.read_region(location=tuple(at), level=1, size=tuple(size))))
    try:
        openslide.OpenSlide(__file__)
    except openslide.OpenSlideUnsupportedFormatError:
        refused = True
    return [info, rects, refused]


# -- MONAI --


def monai(path):
    """Sizes as (height, width); a level as a whole, channels first; the name of the file."""
    wsi = OpenSlide(path, **{})
    size = wsi.level_dimensions[1][1], wsi.level_dimensions[1][0]
    location = (16, 24)  # row and column
    patch = wsi.read_region(location=location[::-1], level=1, size=size[::-1])
    array = np.moveaxis(np.asarray(patch.convert("RGB"), dtype=np.uint8), -1, 0)
    whole = wsi.read_region((0, 0), level=2, size=wsi.level_dimensions[2]).convert("RGBA")
    found = [
        os.path.abspath(wsi._filename), wsi.level_downsamples[1], size, digest(array),
        digest(whole.resize((50, 40), Image.BILINEAR)),
        wsi.properties.get("openslide.objective-power"), "tiff.XResolution" in wsi.properties,
    ]  # fmt: skip
    wsi.close()
    return found


# -- wsidata --


def wsidata(path):
    """Properties as a dictionary; a reader that is closed and opened anew; associated images."""
    reader = OpenSlide(str(path))
    raw = {key: value.rstrip() for key, value in dict(reader.properties).items()}
    shapes = [(height, width) for width, height in reader.level_dimensions]
    reader.close()
    reader = OpenSlide(str(path))
    factor = reader.level_downsamples[1]
    out = np.empty((96, 128, 3), np.uint8)
    for row in range(0, 96, 64):  # a large region, piece by piece
        for column in range(0, 128, 64):
            size = min(64, 128 - column), min(64, 96 - row)
            piece = reader.read_region((int(column * factor), int(row * factor)), 1, size)
            out[row : row + 64, column : column + 64] = np.array(piece.convert("RGB"))
    images = reader.associated_images
    associated = sorted(digest(picture.convert("RGB")) for _, picture in images.items())
    named = [name for name in ("label", "macro", "thumbnail") if name in images]
    return [raw, shapes, digest(out), digest(reader.get_thumbnail((90, 70))), associated, named]


PROGRAMS = (clam, trident, stamp, tiatoolbox, monai, wsidata)

if __name__ == "__main__":
    print(json.dumps({program.__name__: program(sys.argv[1]) for program in PROGRAMS}))
