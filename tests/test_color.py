"""Colours as stored to colours as seen, against highdicom and LittleCMS."""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
import pytest
from highdicom.color import ColorManager
from PIL import Image, ImageCms

from dicomslide.color import ColorTransform, cielab_to_srgb, color_transform
from dicomslide.errors import MetadataWarning
from dicomslide.testing import srgb_profile

RANDOM = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def swapped_profile():
    """An RGB profile that isn't sRGB: the colorants of red and blue change places."""
    profile = bytearray(srgb_profile())
    (count,) = struct.unpack_from(">I", profile, 128)
    at = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = at[b"rXYZ"] + 4, at[b"bXYZ"] + 4
    profile[red : red + 8], profile[blue : blue + 8] = (
        profile[blue : blue + 8],
        profile[red : red + 8],
    )
    return bytes(profile)


def dimmed_profile():
    """An RGB profile that isn't sRGB: its three curves are a plain gamma of 1.2."""
    profile = bytearray(srgb_profile())
    (count,) = struct.unpack_from(">I", profile, 128)
    for i in range(count):
        signature, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if signature in (b"rTRC", b"gTRC", b"bTRC"):
            curve = struct.pack(">4sIIH", b"curv", 0, 1, round(1.2 * 256))
            profile[offset : offset + min(size, len(curve))] = curve[:size]
    return bytes(profile)


@pytest.mark.parametrize("make", [srgb_profile, swapped_profile, dimmed_profile])
def test_transform_equals_that_of_highdicom(make):
    profile = make()
    transformed = color_transform(profile, "slide.dcm")(RANDOM)
    assert transformed.dtype == np.uint8
    np.testing.assert_array_equal(transformed, ColorManager(profile).transform_frame(RANDOM))


@pytest.mark.parametrize("make", [swapped_profile, dimmed_profile])
def test_profiles_other_than_srgb_change_colours(make):
    changed = np.abs(color_transform(make(), "slide.dcm")(RANDOM).astype(int) - RANDOM)
    assert changed.mean() > 10


def test_swapped_colorants_swap_red_and_blue():
    transformed = color_transform(swapped_profile(), "slide.dcm")(RANDOM).astype(int)
    assert np.abs(transformed - RANDOM[:, :, ::-1]).max() <= 2


def test_transform_of_a_scanner_profile_equals_that_of_highdicom(shared_data):
    profiles = set()
    for path in sorted((shared_data / "cmu-1-small-region").glob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for item in header.get("OpticalPathSequence", []):
            if "ICCProfile" in item:
                profiles.add(bytes(item.ICCProfile))
    assert profiles
    for profile in profiles:
        np.testing.assert_array_equal(
            color_transform(profile, "slide.dcm")(RANDOM),
            ColorManager(profile).transform_frame(RANDOM),
        )


@pytest.mark.parametrize(
    "view",
    [RANDOM[::-1], RANDOM[:, ::-2], RANDOM.swapaxes(0, 1), RANDOM[:1, :1]],
    ids=["flipped", "strided", "transposed", "one pixel"],
)
def test_transform_takes_any_layout_and_leaves_its_input(view):
    before = view.copy()
    profile = swapped_profile()
    transformed = color_transform(profile, "slide.dcm")(view)
    np.testing.assert_array_equal(view, before)
    np.testing.assert_array_equal(transformed, ColorManager(profile).transform_frame(before))


def test_transform_of_no_pixels_is_no_pixels():
    assert color_transform(srgb_profile(), "slide.dcm")(RANDOM[:0]).shape == (0, 50, 3)


def test_a_profile_is_made_into_a_transform_once():
    profile = srgb_profile() + bytes(16)
    assert color_transform(profile, "one.dcm") is color_transform(profile, "other.dcm")


def grey_profile():
    lab = bytearray(srgb_profile())
    lab[16:20] = b"GRAY"
    return bytes(lab)


def lab_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


UNUSABLE = {
    "garbage": b"this is no profile",
    "cut": srgb_profile()[:200],
    "grey": grey_profile(),
    "LAB": lab_profile(),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_profiles_raise(kind):
    with pytest.raises(ValueError, match="isn't usable"):
        ColorTransform(UNUSABLE[kind])


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_profiles_warn_and_give_no_transform(kind):
    profile = UNUSABLE[kind] + f" of {kind}".encode()  # not the one that another test warned of
    with pytest.warns(MetadataWarning, match=r"slide\.dcm.*colours stay as stored"):
        assert color_transform(profile, "slide.dcm") is None
    assert color_transform(profile, "slide.dcm") is None  # and no second warning


def test_pixels_stay_as_stored_under_an_unusable_profile(tmp_path):
    import dicomslide
    from dicomslide.testing import position_values, write_slide

    write_slide(
        tmp_path,
        shape=(20, 30),
        downsamples=(1,),
        tile_shape=(16, 16),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        icc_profile=b"neither is this a profile!",
        associated=False,
    )
    matrix = dicomslide.open_slide(tmp_path).get_volume_images()[0].get_total_pixel_matrix()
    with pytest.warns(MetadataWarning, match="colours stay as stored"):
        pixels = matrix[...]
    np.testing.assert_array_equal(pixels, position_values(np.arange(20), np.arange(30)))


def test_slides_are_seen_through_their_profile(tmp_path):
    import dicomslide
    from dicomslide.testing import position_values, write_slide

    profile = swapped_profile()
    write_slide(
        tmp_path,
        shape=(20, 30),
        downsamples=(1,),
        tile_shape=(16, 16),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        icc_profile=profile,
        associated=False,
    )
    stored = position_values(np.arange(20), np.arange(30))
    seen = ColorManager(profile).transform_frame(stored)
    for correct, expected in ((True, seen), (False, stored)):
        image = dicomslide.open_slide(tmp_path, correct_color=correct).get_volume_images()[0]
        np.testing.assert_array_equal(image.get_total_pixel_matrix()[...], expected)


# -- CIELab ----------------------------------------------------------------------------------


def encoded(lightness, a, b):
    """PS3.3 C.10.7.1.1"""
    scaled = (lightness / 100, (a + 128) / 255, (b + 128) / 255)
    return [round(value * 65535) for value in scaled]


def by_littlecms(lightness, a, b):
    """8-bit Lab of Pillow is L* 0 … 255 and a*, b* as signed bytes."""
    pixel = np.array([[[round(lightness * 2.55), a % 256, b % 256]]], np.uint8)
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.NOOPTIMIZE,  # else it interpolates where red leaves sRGB
    )  # fmt: skip
    image = Image.frombytes("LAB", (1, 1), pixel.tobytes())
    return np.asarray(ImageCms.applyTransform(image, transform))[0, 0].tolist()


def test_black_and_white():
    assert cielab_to_srgb(encoded(0, 0, 0)) == (0, 0, 0)
    assert cielab_to_srgb(encoded(100, 0, 0)) == (255, 255, 255)
    assert cielab_to_srgb([65535, 32896, 32896]) == (255, 255, 255)


@pytest.mark.parametrize(("lightness", "grey"), [(20, 48), (50, 119), (53.585, 128), (80, 198)])
def test_neutral_greys(lightness, grey):
    assert cielab_to_srgb(encoded(lightness, 0, 0)) == pytest.approx((grey,) * 3, abs=1)


@pytest.mark.parametrize("lightness", [20, 40, 60, 80, 100])
@pytest.mark.parametrize("a", [-20, 0, 30])
@pytest.mark.parametrize("b", [-30, 0, 20])
def test_colours_equal_those_of_littlecms(lightness, a, b):
    found = cielab_to_srgb(encoded(lightness, a, b))
    assert all(isinstance(value, int) for value in found)
    assert found == pytest.approx(by_littlecms(lightness, a, b), abs=2)


@pytest.mark.parametrize("extreme", [(0, 0, 0), (65535, 65535, 65535), (65535, 0, 65535)])
def test_colours_outside_of_srgb_are_clipped(extreme):
    assert all(0 <= value <= 255 for value in cielab_to_srgb(extreme))


def test_srgb_profile_is_readable_and_reproducible():
    assert srgb_profile() == srgb_profile()
    assert "sRGB" in ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())))
