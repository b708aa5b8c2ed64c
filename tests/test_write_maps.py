"""Parametric maps that are written and opened again: numbers, millimetres, codes, other readers."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.codedict import codes

import dicomslide
from dicomslide.testing import write_slide
from tests.support import dciodvfy
from tests.support.orientations import ORIENTATIONS

NATIVE = "1.2.840.10008.1.2.1"
SHAPE = (23, 31)
PROBABILITY = {"quantity": "probability", "unit": "1"}


@pytest.fixture(scope="module", params=list(ORIENTATIONS))
def oriented(request, tmp_path_factory):
    """A slide whose pixels are numbers of their places in the matrix."""
    folder = tmp_path_factory.mktemp("oriented")
    write_slide(
        folder, shape=SHAPE, downsamples=(1,), tile_shape=(8, 16),
        orientation=ORIENTATIONS[request.param], origin=(12.0, 34.0), spacing=(0.001, 0.0005),
        drawing="position", samples=1, bits=16, transfer_syntax_uid=NATIVE, associated=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dicomslide.MetadataWarning)
        slide = dicomslide.open_slide(folder)
        yield slide, slide.to_dataset(chunks={}).image.load().reset_coords(drop=True)


def files_of(slide):
    return [image._source.path for level in slide.levels for image in level.images]


def numbers_like(image, dtype):
    """A number for each pixel of an image by its number, so that places can't be confused."""
    random = np.random.default_rng(5)
    table = random.integers(0, 60_000, int(image.max()) + 1)
    if np.dtype(dtype).kind == "f":
        table = random.normal(size=table.size) * 1e5
    return image.copy(data=table.astype(dtype)[image.values]).rename("score")


@pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_what_is_written_is_read_again_in_every_orientation(oriented, tmp_path, dtype):
    slide, image = oriented
    whole = numbers_like(image, dtype)
    down, across = image.dims
    region = {down: slice(3, 20), across: slice(5, 21)}
    part = whole.isel(region)
    inside = xr.full_like(whole, np.nan, np.float64)
    inside[region] = part
    paths, expected = [], {}
    with dask.config.set(scheduler="sync"):
        for organization in ("TILED_FULL", "TILED_SPARSE"):
            for given, wanted in ((whole.chunk(7), whole), (part, inside)):
                name = f"m{len(expected)}"
                expected[name] = wanted
                paths += dicomslide.write_parametric_map(
                    given, slide, tmp_path, quantity="area", unit="um2", labels=name, name=name,
                    organization=organization, series_description=name,
                )  # fmt: skip
    found = dicomslide.open_slide([*files_of(slide), *paths]).to_dataset()
    found = {each.attrs.get("series_description"): each for each in found.data_vars.values()}
    for name, wanted in expected.items():
        assert found[name].dtype == ("float64" if dtype == "uint16" else dtype)
        np.testing.assert_array_equal(found[name], wanted)
        for dim in (down, across):
            np.testing.assert_array_equal(found[name][dim], wanted[dim])
    if dtype != "uint16":  # highdicom maps values that have no mapping, and refuses them
        hd = pytest.importorskip("highdicom")
        matrix = slide.levels[0].image.get_total_pixel_matrix()[...][:, :, 0]
        read = hd.pm.ParametricMap.from_file(paths[0]).get_total_pixel_matrix()
        table = np.empty(int(image.max()) + 1, dtype)
        table[image.values] = whole.values
        np.testing.assert_array_equal(read, table[matrix])


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, shape=(150, 200), downsamples=(1, 2, 4), tile_shape=(32, 64),
                associated=False)  # fmt: skip
    return dicomslide.open_slide(folder)


@pytest.fixture(scope="module")
def score(slide):
    return (slide.to_dataset(chunks={}).image.mean("sample") / 255).rename("score").load()


def test_several_parameters_are_found_by_their_labels_quantities_and_units(slide, score, tmp_path):
    both = xr.concat([score, 100 * score], "class").assign_coords(class_=0)
    both = both.assign_coords({"class": ["tumour", "stroma"]})
    unit = codes.UCUM.Percent
    paths = dicomslide.write_parametric_map(
        both, slide, tmp_path, unit=["1", unit], missing="refuse",
        quantity=["probability", ("130404", "DCM", "Saliency")],
    )  # fmt: skip
    assert len(paths) == 2
    found = dicomslide.open_slide([*files_of(slide), *paths]).to_dataset().parametric_map
    assert found.parameter.values.tolist() == ["tumour", "stroma"]
    assert found.parameter_quantity.values.tolist() == ["Probability", "Saliency"]
    assert found.parameter_unit.values.tolist() == ["1", "%"]
    np.testing.assert_array_equal(found, both)
    mapping = pydicom.dcmread(paths[1]).SharedFunctionalGroupsSequence[0]
    mapping = mapping.RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "%"
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("130404", "DCM")


def test_floats_as_integers_are_read_within_half_a_step(slide, score, tmp_path):
    given = score.where(score < 0.9)
    (path,) = dicomslide.write_parametric_map(
        given, slide, tmp_path, **PROBABILITY, dtype="uint16", value_range=(0, 1), missing="allow",
        transfer_syntax_uid="1.2.840.10008.1.2.5",
    )  # fmt: skip
    found = dicomslide.open_slide([*files_of(slide), path]).to_dataset().parametric_map
    np.testing.assert_array_equal(found.isnull(), given.isnull())
    assert float(abs(found - given).max()) <= 0.5 / 65534 * (1 + 1e-9)


def test_integers_have_the_mapping_that_is_given(slide, score, tmp_path):
    counts = (score * 250).astype(np.uint8)
    (path,) = dicomslide.write_parametric_map(
        counts, slide, tmp_path, quantity="area", unit="um2", slope=0.25, intercept=-3
    )
    found = dicomslide.open_slide([*files_of(slide), path]).to_dataset().parametric_map
    np.testing.assert_array_equal(found, counts * 0.25 - 3)


def test_a_pyramid_of_integers_has_their_mapping(slide, score, tmp_path):
    counts = (score * 250).astype(np.uint8)
    paths = dicomslide.write_parametric_map(
        counts, slide, tmp_path, quantity="area", unit="um2", slope=0.25, levels="all"
    )
    tree = dicomslide.open_slide([*files_of(slide), *paths]).to_datatree()
    expected = counts.coarsen(x=2, y=2).mean() * 0.25
    np.testing.assert_allclose(tree["level_1"].parametric_map, expected, atol=0.25)


def test_a_pyramid_of_maps_has_means(slide, score, tmp_path):
    paths = dicomslide.write_parametric_map(score, slide, tmp_path, **PROBABILITY, levels="all")
    assert [path.rpartition("/")[2] for path in paths] == [
        f"parametric_map_level_{level}.dcm" for level in range(3)
    ]
    tree = dicomslide.open_slide([*files_of(slide), *paths]).to_datatree()
    expected = score.coarsen(x=2, y=2).mean()
    np.testing.assert_allclose(tree["level_1"].parametric_map, expected, rtol=1e-6)


@pytest.mark.skipif(bool(dciodvfy.MISSING), reason=str(dciodvfy.MISSING))
@pytest.mark.parametrize("organization", ["TILED_FULL", "TILED_SPARSE"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_maps_are_lawful(slide, score, tmp_path, dtype, organization):
    (path,) = dicomslide.write_parametric_map(
        score, slide, tmp_path, **PROBABILITY, dtype=dtype, value_range=(0, 1),
        organization=organization, palette=[[0, 0, 0], [255, 128, 64]],
    )  # fmt: skip
    assert dciodvfy.errors_in(path) == []
    found, source = pydicom.dcmread(path), slide.levels[0].image.metadata
    for keyword in (
        "PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID",
        "ContainerIdentifier", "ImageOrientationSlide", "TotalPixelMatrixRows",
    ):  # fmt: skip
        assert found[keyword].value == source[keyword].value
    assert found.SpecimenDescriptionSequence == source.SpecimenDescriptionSequence
    (reference,) = found.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    tables = [found[f"{c}PaletteColorLookupTableData"].value for c in ("Red", "Green", "Blue")]
    red, green, blue = (np.frombuffer(table, "<u2") for table in tables)
    assert (red[[0, 255]].tolist(), green[255], blue.max()) == (
        [0, 65535], 128 * 257, 64 * 257,
    )  # fmt: skip


def test_a_palette_by_name_has_the_colours_of_matplotlib(slide, score, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    (path,) = dicomslide.write_parametric_map(
        score, slide, tmp_path, **PROBABILITY, palette="viridis"
    )
    found = np.frombuffer(pydicom.dcmread(path).GreenPaletteColorLookupTableData, "<u2") / 65535
    expected = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, 1]
    np.testing.assert_allclose(found, expected, atol=0.5 / 255)


REFUSED = {
    "NaN": (lambda s: s.where(s < 0.9), {}, dicomslide.PixelValueError, "NaN; missing="),
    "infinite": (
        lambda s: s.where(s < 0.9, np.inf), {"missing": "allow"}, dicomslide.PixelValueError,
        "expected finite",
    ),
    "too large": (
        lambda s: s * 1e300, {"dtype": "float32"}, dicomslide.PixelValueError, "float64",
    ),
    "beyond": (
        lambda s: s, {"dtype": "uint16", "value_range": (0, 0.5)}, dicomslide.PixelValueError,
        "value_range is 0 to 0.5",
    ),
    "no range": (lambda s: s, {"dtype": "uint16"}, ValueError, "needs value_range"),
    "signed": (lambda s: s.astype(int), {}, dicomslide.PixelValueError, "int64"),
    "65535": (
        lambda s: (s * 0 + 65535).astype("uint16"), {}, dicomslide.PixelValueError, "65535 is larg",
    ),
    "slope": (lambda s: s, {"slope": 2.0}, ValueError, "integers"),
    "other frame": (
        lambda s: s.slide.restore(frame_of_reference_uid="1.2.3"), {}, dicomslide.GridError,
        "frame of reference",
    ),
    "other grid": (lambda s: s[::3, ::3], {}, dicomslide.GridError, "grid of no level"),
    "quantity": (lambda s: s, {"quantity": "beauty"}, ValueError, "no code is known"),
    "unit": (lambda s: s, {"unit": "square mm"}, ValueError, "UCUM"),
    "label": (lambda s: s.rename("a name that is too long"), {}, ValueError, "LUT Label"),
    "units": (lambda s: s, {"unit": ["1", "1"]}, ValueError, "2 for 1 parameters"),
    "palette": (lambda s: s, {"palette": [1, 2, 3]}, ValueError, "palette of shape"),
    "resample": (lambda s: s, {"resample": "majority"}, ValueError, "resample"),
    "array": (lambda s: s.values, {}, TypeError, "xarray.DataArray"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_nothing(slide, score, tmp_path, case):
    change, options, error, message = REFUSED[case]
    target = tmp_path / "results"
    with pytest.raises(error, match=message):
        dicomslide.write_parametric_map(change(score), slide, target, **PROBABILITY | options)
    assert not target.exists()


def test_a_map_that_exists_is_overwritten_on_request_only(slide, score, tmp_path):
    (path,) = dicomslide.write_parametric_map(score, slide, tmp_path, **PROBABILITY)
    with pytest.raises(dicomslide.StoreExistsError, match="overwrite=True"):
        dicomslide.write_parametric_map(score, slide, tmp_path, **PROBABILITY)
    assert dicomslide.write_parametric_map(
        1 - score, slide, tmp_path, **PROBABILITY, labels="score", overwrite=True
    ) == [path]
    found = dicomslide.open_slide([*files_of(slide), path]).to_dataset().parametric_map
    np.testing.assert_array_equal(found, 1 - score)
