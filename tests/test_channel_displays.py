"""Optical set-up of channels, and the colours and windows in which they are displayed."""

from __future__ import annotations

import numpy as np
import pytest

import dicomslide
from dicomslide.display.false_color import ChannelHint, color_of_name, false_colors
from dicomslide.errors import MetadataWarning
from tests.support.markers import code, item, palette, write_markers

CYAN = np.linspace(0, 1, 256)[:, None] * [0, 255, 255]
BLUE, GREEN, RED, MAGENTA = "#0000FF", "#00FF00", "#FF0000", "#FF00FF"


def displays_of(path):
    return dicomslide.open_slide(path).to_dataset().image.slide.channel_displays()


@pytest.mark.parametrize(
    ("name", "color"),
    [
        ("DAPI", BLUE), ("cycle 3 DAPI (DNA)", BLUE), ("Hoechst33342", BLUE), ("DNA_2", BLUE),
        ("FITC", GREEN), ("CD3-AF488", GREEN), ("Alexa Fluor 488", GREEN), ("GFP", GREEN),
        ("CD8 (Alexa Fluor 647)", MAGENTA), ("Cy 5", MAGENTA), ("Texas Red", RED),
        ("PE-Cy7", MAGENTA), ("Opal570-CD20", "#FFFF00"), ("BV421", BLUE), ("Blue", BLUE),
        ("CD3", None), ("Ki67", None), ("Infrared", None), ("PD-L1 570", None), ("", None),
        ("H3K27me3", None), ("DNAJB1", None),
    ],
)  # fmt: skip
def test_a_fluorochrome_in_a_name_tells_the_color(name, color):
    assert color_of_name(name) == color


def test_channels_of_which_nothing_is_known_have_colors_that_others_do_not_have():
    hints = [ChannelHint(names=[name]) for name in ("CD3", "CD8", "DAPI", "CD20", "FITC")]
    colors = false_colors(hints)
    assert colors[2] == BLUE
    assert colors[4] == GREEN
    assert len(set(colors)) == 5
    assert false_colors([ChannelHint(names=["CD3"])]) == ["#FFFFFF"]
    many = false_colors([ChannelHint(names=["DAPI"]), *[ChannelHint()] * 39])
    assert many[0] == BLUE
    assert len(many) == 40
    assert BLUE not in many[1:6]


def test_the_position_of_a_channel_decides_nothing(tmp_path):
    path = write_markers(
        tmp_path / "a.dcm",
        [
            {"OpticalPathDescription": "CD3", "ImagePathFilterPassThroughWavelength": 670},
            {"OpticalPathDescription": "CD8", "IlluminationWaveLength": 488.0},
            {"OpticalPathDescription": "DAPI", "IlluminationWaveLength": 561.0},
            {"OpticalPathDescription": "CD20"},
        ],
    )
    shown = displays_of(path)
    assert [each.name for each in shown] == ["CD3", "CD8", "DAPI", "CD20"]
    assert [each.color for each in shown[:3]] == [MAGENTA, GREEN, BLUE]
    assert shown[3].color not in [each.color for each in shown[:3]]
    image = dicomslide.open_slide(path).to_dataset().image
    assert image.isel(channel=[2]).slide.channel_displays()[0].color == BLUE
    assert image.isel(channel=2).slide.channel_displays()[0].name == "DAPI"
    renamed = image[::-1].rename(channel="c")
    assert [each.color for each in renamed.slide.channel_displays()[1:]] == [BLUE, GREEN, MAGENTA]
    with pytest.raises(TypeError, match="takes an array"):
        image.to_dataset().slide.channel_displays()


def test_the_optical_set_up_is_among_the_coordinates(tmp_path):
    path = write_markers(
        tmp_path / "a.dcm",
        [
            {
                "OpticalPathDescription": "CD3",
                "IlluminationWaveLength": 488.0,
                "IlluminationTypeCodeSequence": [code("111743", "DCM", "Epifluorescence")],
                "IlluminationColorCodeSequence": [code("405738005", "SCT", "Blue")],
                "LightPathFilterPassThroughWavelength": 480,
                "LightPathFilterPassBand": [470, 490],
                "ImagePathFilterPassBand": [505, 535],
                "ObjectiveLensPower": "20",
                "ObjectiveLensNumericalAperture": "0.8",
                "ExposureTimeInms": 12.5,
                "ChannelDescriptionCodeSequence": [
                    code("1", "99X", "Alexa Fluor 488"), code("2", "99X", "CD3 antigen"),
                ],
            },
            {"ExposureTime": "7"},
        ],
        change=lambda header: setattr(header, "ExposureTimeInuS", "300"),
    )  # fmt: skip
    first, second = (dicomslide.open_slide(path).to_dataset().isel(channel=i) for i in range(2))
    expected = {
        "channel_description": "CD3", "wavelength": 488.0, "channel_illumination":
        "Epifluorescence", "channel_illumination_color": "Blue", "excitation": 480.0,
        "excitation_low": 470.0, "excitation_high": 490.0, "emission": 520.0, "emission_low": 505.0,
        "emission_high": 535.0, "channel_objective_power": 20.0, "channel_objective_na": 0.8,
        "channel_exposure_time": 12.5, "channel_codes": "Alexa Fluor 488, CD3 antigen",
    }  # fmt: skip
    assert {name: first[name].item() for name in expected} == expected
    assert first.emission.attrs["units"] == "nm"
    assert first.channel_exposure_time.units == "ms"
    assert second.channel_exposure_time == 7
    assert np.isnan(second.emission)
    assert second.channel_codes == ""


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2",
                                    "1.2.840.10008.1.2.2"])  # fmt: skip
def test_a_palette_of_an_optical_path_is_the_recommended_color(tmp_path, bits, segmented, syntax):
    order = ">" if syntax.endswith("2.2") else "<"
    table = palette(CYAN, bits=bits, segmented=segmented, order=order)
    path = write_markers(
        tmp_path / "a.dcm",
        [
            {"OpticalPathDescription": "DAPI", "PaletteColorLookupTableSequence": table},
            {"OpticalPathDescription": "FITC"},
        ],
        transfer_syntax_uid=syntax,
    )
    image = dicomslide.open_slide(path).to_dataset().image
    assert image.channel_color.values.tolist() == ["#00FFFF", ""]
    assert [each.color for each in image.slide.channel_displays()] == ["#00FFFF", GREEN]


def test_a_palette_that_cannot_be_read_warns_and_is_not_used(tmp_path):
    table = palette(CYAN)
    table[0].GreenPaletteColorLookupTableData = b"\0\0"
    path = write_markers(
        tmp_path / "a.dcm",
        [{"OpticalPathDescription": "DAPI", "PaletteColorLookupTableSequence": table}, {}],
    )
    slide = dicomslide.open_slide(path)
    with pytest.warns(MetadataWarning, match=r"optical path 1: .*1 entries for green; .*256"):
        image = slide.to_dataset().image
    assert "channel_color" not in image.coords
    assert image.slide.channel_displays()[0].color == BLUE


def test_windows_are_those_of_the_header_and_lie_in_the_range_of_bits_stored(tmp_path):
    def window(header):
        header.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence = [
            item(WindowCenter=["2048", "5"], WindowWidth=["4095", "9"])
        ]

    path = write_markers(tmp_path / "a.dcm", [{}, {}], bits=12, change=window)
    image = dicomslide.open_slide(path).to_dataset().image
    assert image.attrs["valid_range"] == [0, 4095]
    # LINEAR (PS3.3 C.11.2.1.2.1): c - 0.5 -/+ (w - 1) / 2
    assert image.channel_window_low.values.tolist() == [0.5, 0.5]
    assert image.channel_window_high.values.tolist() == [4094.5, 4094.5]
    (shown, _) = image.slide.channel_displays()
    assert shown.valid_range == (0, 4095)
    assert shown.window == (0.5, 4094.5)
    (shown, _) = image.astype("float32").slide.channel_displays()
    assert shown.valid_range is None
    assert shown.window == (0.5, 4094.5)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"WindowCenter": "100", "WindowWidth": "50", "VOILUTFunction": "LINEAR_EXACT"}, (75, 125)),
        ({"WindowCenter": "100", "WindowWidth": "70000", "VOILUTFunction": "SIGMOID"}, (0, 4095)),
        ({"WindowCenter": "100", "WindowWidth": "1"}, None),
        ({"WindowCenter": "", "WindowWidth": "9"}, None),
        ({}, None),
    ],
)
def test_a_window_needs_a_center_and_a_width(tmp_path, elements, expected):
    def change(header):
        for keyword, value in elements.items():
            setattr(header, keyword, value)

    (shown,) = displays_of(write_markers(tmp_path / "a.dcm", [{}], bits=12, change=change))
    assert shown.window == expected
    assert shown.color == "#FFFFFF"


def test_ranges_of_channels_follow_their_own_bits_stored(tmp_path):
    for number, bits in ((1, 12), (2, 16)):
        write_markers(
            tmp_path / f"{number}.dcm", [{"OpticalPathIdentifier": str(number)}], bits=bits,
            number=number,
        )  # fmt: skip
    image = dicomslide.open_slide(tmp_path).to_dataset().image
    assert image.channel_bits_stored.values.tolist() == [12, 16]
    assert image.attrs["valid_range"] == [0, 65535]
    assert [d.valid_range for d in image.slide.channel_displays()] == [(0, 4095), (0, 65535)]
