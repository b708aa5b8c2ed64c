"""Colours as stored to colours as seen, against highdicom and LittleCMS."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dicomslide.errors import MetadataWarning
from dicomslide.pixels import color
from dicomslide.pixels.color import ColorTransform, cielab_to_srgb, color_transform
from dicomslide.testing import draw_tissue, srgb_profile
from tests.support.profiles import dimmed_profile, swapped_profile

RANDOM = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def table_profile():
    """A profile of tables (A2B), which have a look of their own."""
    import highdicom

    return (files(highdicom) / "_icc_profiles" / "sRGB_v4_ICC_preference.icc").read_bytes()


def tags_of(profile):
    (count,) = struct.unpack_from(">I", profile, 128)
    for at in range(132, 132 + 12 * count, 12):
        signature, offset, size = struct.unpack_from(">4sII", profile, at)
        yield signature, profile[offset : offset + size]


def double_profile():
    """Curves and matrix of sRGB, and tables that say otherwise and go before them."""
    tags = dict(tags_of(table_profile()))
    tags |= {name: data for name, data in tags_of(srgb_profile()) if name not in tags}
    index, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        index += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    profile = table_profile()[:128] + index + body
    return struct.pack(">I", len(profile)) + profile[4:]


PROFILES = [srgb_profile, swapped_profile, dimmed_profile, table_profile, double_profile]


def by_pillow(profile, pixels):
    """Let LittleCMS see all pixels."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), "RGB", "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(ImageCms.applyTransform(image, transform))


def remembering(profile):
    """Return a transform that has seen enough pixels to remember their colours."""
    transform = ColorTransform(profile)
    transform(np.zeros((1024, 1024, 3), np.uint8))
    return transform


def every_color():
    red, green, blue = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 3, indexing="ij")
    return np.stack([red, green, blue], axis=-1).reshape(4096, 4096, 3)


@pytest.mark.parametrize("make", [srgb_profile, swapped_profile, dimmed_profile])
def test_transform_equals_that_of_highdicom(make):
    from highdicom.color import ColorManager

    profile = make()
    transformed = ColorTransform(profile)(RANDOM)
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
    from highdicom.color import ColorManager

    profiles = set()
    for path in sorted(shared_data.glob("*/*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for item in header.get("OpticalPathSequence", []):
            if "ICCProfile" in item:
                profiles.add(bytes(item.ICCProfile))
    assert profiles
    for profile in profiles:
        np.testing.assert_array_equal(
            ColorTransform(profile)(RANDOM), ColorManager(profile).transform_frame(RANDOM)
        )


@pytest.mark.parametrize("make", [swapped_profile, table_profile])
def test_every_colour_is_computed_and_remembered_as_littlecms_has_it(make):
    colors, profile = every_color(), make()
    expected, transform = by_pillow(profile, colors), remembering(profile)
    for _ in ("computed", "remembered"):
        assert np.array_equal(transform(colors), expected)


@pytest.mark.parametrize("make", PROFILES)
def test_remembered_colours_of_tissue_are_those_of_littlecms(make):
    profile, tissue = make(), draw_tissue((300, 400))
    expected, transform = by_pillow(profile, tissue), remembering(profile)
    for _ in range(3):
        np.testing.assert_array_equal(transform(tissue), expected)


@pytest.mark.parametrize("make", PROFILES)
def test_transform_is_left_out_just_where_it_keeps_every_colour(make):
    colors, profile = every_color(), make()
    keeps = np.array_equal(by_pillow(profile, colors), colors)
    assert ColorTransform(profile).is_identity == keeps
    assert (color_transform(profile, "slide.dcm") is None) == keeps
    assert keeps == (make is srgb_profile)


def test_profile_that_is_hardly_not_srgb_is_not_left_out(shared_data):
    header = pydicom.dcmread(shared_data / "highdicom/sm_image.dcm", stop_before_pixels=True)
    profile = bytes(header.OpticalPathSequence[0].ICCProfile)
    changed = np.abs(by_pillow(profile, every_color()).astype(np.int16) - every_color())
    assert changed.max() == 1
    assert not ColorTransform(profile).is_identity


def test_tables_are_not_judged_by_their_extremes(monkeypatch):
    monkeypatch.setattr(ColorTransform, "_keeps_extremes", lambda self: True)
    assert ColorTransform(dimmed_profile()).is_identity
    assert not ColorTransform(table_profile()).is_identity
    assert not ColorTransform(double_profile()).is_identity


@st.composite
def views(draw):
    """Return a picture of few colours or of noise, and how to look at it."""
    rows, columns, seed = draw(st.tuples(*[st.integers(1, 90)] * 2, st.integers(0, 99)))
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (draw(st.sampled_from([1, 7, 5000])), 3), np.uint8)
    picture = palette[rng.integers(0, len(palette), (2 * rows, 3 * columns))]
    down, across = draw(st.sampled_from([1, 2, -1])), draw(st.sampled_from([1, 3, -2]))
    view = picture[::down, ::across]
    return view.swapaxes(0, 1) if draw(st.booleans()) else view


@given(views(), st.sampled_from(["new", "strided", "transposed", "in place"]), st.booleans())
def test_transform_takes_and_fills_any_layout(view, kind, is_new):
    profile = dimmed_profile()
    transform = ColorTransform(profile) if is_new else WARM
    before, expected = view.copy(), by_pillow(profile, view)
    rows, columns = view.shape[:2]
    out = {
        "new": None,
        "strided": np.full((rows + 2, 2 * columns, 4), 99, np.uint8)[1:-1, ::2, :3],
        "transposed": np.full((columns, rows, 3), 99, np.uint8).swapaxes(0, 1),
        "in place": view,
    }[kind]
    transformed = transform(view, out)
    np.testing.assert_array_equal(transformed, expected)
    if out is not None:
        assert transformed is out
    if kind == "strided":
        assert (out.base[[0, -1]] == 99).all()
        assert (out.base[:, 1::2] == 99).all()
        assert (out.base[..., 3] == 99).all()
    if kind != "in place":
        np.testing.assert_array_equal(view, before)


WARM = remembering(dimmed_profile())


def test_threads_share_what_they_learn():
    profile, tissue = table_profile(), draw_tissue((512, 512), seed=3)
    expected, transform = by_pillow(profile, tissue), remembering(profile)
    out = np.zeros_like(tissue)
    tiles = [np.s_[i : i + 64, j : j + 64] for i in range(0, 512, 64) for j in range(0, 512, 64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tile: transform(tissue[tile], out[tile]), 3 * tiles))
    np.testing.assert_array_equal(out, expected)


def test_profiles_that_take_turns_keep_their_colours_apart():
    tissue = draw_tissue((200, 300))
    profiles = [table_profile() + bytes(i) for i in range(3)]
    profiles += [dimmed_profile(), swapped_profile(), double_profile()]
    assert len(profiles) > color.TABLES
    transforms = [remembering(profile) for profile in profiles]
    for _ in range(2):
        for profile, transform in zip(profiles, transforms, strict=True):
            np.testing.assert_array_equal(transform(tissue), by_pillow(profile, tissue))


def test_colours_are_not_remembered_for_a_first_region_nor_for_noise(monkeypatch):
    def make_table():
        raise AssertionError("room for colours")

    monkeypatch.setattr(color, "_make_table", make_table)
    tissue = draw_tissue((512, 512))
    ColorTransform(dimmed_profile())(tissue)
    transform = remembering(dimmed_profile())
    transform(np.random.default_rng(1).integers(0, 256, (512, 512, 3), np.uint8))
    with pytest.raises(AssertionError, match="room for colours"):
        transform(tissue)


def test_transform_of_no_pixels_is_no_pixels():
    for shape in ((0, 50, 3), (50, 0, 3)):
        assert ColorTransform(dimmed_profile())(np.empty(shape, np.uint8)).shape == shape
        assert WARM(np.empty(shape, np.uint8)).shape == shape


def test_a_profile_is_made_into_a_transform_once():
    profile = dimmed_profile() + bytes(16)
    again = bytes(bytearray(profile))
    assert color_transform(profile, "one.dcm") is color_transform(again, "other.dcm")


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
    from highdicom.color import ColorManager

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
