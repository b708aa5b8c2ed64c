"""The documented API: every name, parameter and default that it promises is there.

Its 116 names are counted as the documentation lists them: 9 classes, 7 values of enumerations,
81 methods and properties (fields of PyramidLevel are among them), and 19 functions.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re

import pytest

import dicomslide

# a class, what belongs to it (indented), or a function; deeper lines go on with the one above
DOCUMENTED = """
ChannelTypes(value)
    OPTICAL_PATH = 'OPTICAL_PATH'
    PARAMETER = 'PARAMETER'
    SEGMENT = 'SEGMENT'
ImageFlavors(value)
    LABEL = 'LABEL'
    OVERVIEW = 'OVERVIEW'
    THUMBNAIL = 'THUMBNAIL'
    VOLUME = 'VOLUME'
OpenSlide(slide)
    associated_images
    close()
    dimensions
    get_best_level_for_downsample(downsample)
    get_thumbnail(size)
    level_count
    level_dimensions
    level_downsamples
    properties
    read_region(location, level, size)
Pyramid(metadata, tolerance, ref_metadata=None)
PyramidLevel(total_pixel_matrix_dimensions, pixel_spacing, downsampling_factors, has_pixels)
    downsampling_factors
    has_pixels
    pixel_spacing
    total_pixel_matrix_dimensions
Slide(client, image_metadata, max_frame_cache_size=6, pyramid_tolerance=0.1)
    downsampling_factors
    find_optical_paths(identifier=None, description=None, illumination_wavelength=None,
        specimen_stain=None)
    find_segments(number=None, label=None, property_category=None, property_type=None)
    frame_of_reference_uid
    get_channel_identifier(channel_index)
    get_channel_index(channel_identifier, channel_type)
    get_channel_type(channel_index)
    get_focal_plane_index(focal_plane_offset)
    get_focal_plane_offset(focal_plane_index)
    get_image_region(offset, level, size, channel_index=0, focal_plane_index=0)
    get_pixel_indices(offset, level, channel_index=0, focal_plane_index=0)
    get_slide_offset(pixel_indices, level, channel_index=0, focal_plane_index=0)
    get_slide_region(offset, level, size, channel_index=0, focal_plane_index=0)
    get_slide_region_for_annotation(annotation, level, channel_index=0, padding=0.0)
    get_volume_images(channel_index=0, focal_plane_index=0)
    label_images
    map_pixel_indices_to_slide_coordinates(pixel_indices, level, channel_index=0,
        focal_plane_index=0)
    map_slide_coordinates_to_pixel_indices(slide_coordinates, level, channel_index=0,
        focal_plane_index=0)
    num_channels
    num_focal_planes
    num_levels
    overview_images
    physical_offset
    physical_size
    pixel_spacings
    size
    total_pixel_matrix_dimensions
TiledImage(client, image_metadata, max_frame_cache_size=6)
    channel_type
    frame_of_reference_uid
    get_channel_identifier(channel_index)
    get_channel_index(channel_identifier)
    get_focal_plane_index(focal_plane_offset)
    get_focal_plane_offset(focal_plane_index)
    get_image_region(offset, size, channel_index=0, focal_plane_index=0)
    get_pixel_indices(offset)
    get_references(sop_class_uid=None)
    get_rotation()
    get_slide_offset(pixel_indices)
    get_slide_region(offset, size, channel_index=0, focal_plane_index=0)
    get_total_pixel_matrix(channel_index=0, focal_plane_index=0)
    map_pixel_indices_to_slide_coordinates(pixel_indices)
    map_slide_coordinates_to_pixel_indices(slide_coordinates)
    metadata
    num_channels
    num_focal_planes
    physical_offset
    physical_size
    size
TotalPixelMatrix(client, image_metadata, channel_index=0, focal_plane_index=0,
        max_frame_cache_size=9, correct_color=True)
    dtype
    get_tile_bounding_box(index)
    get_tile_grid_position(index)
    get_tile_index(position=None, frame_number=None)
    get_tile_position(index)
    ndim
    num_tiles
    shape
    size
    tile_grid_positions
    tile_grid_shape
    tile_positions
    tile_shape
    tile_size
TotalPixelMatrixSampler(matrix, region_dimensions, bounding_box=None, tile_grid_positions=None,
        padding=0)
    get_region_grid_position(index)
    matrix
    padded_region_shape
    padding
    region_shape
assemble_total_pixel_matrix(tiles, tile_positions, total_pixel_matrix_rows,
        total_pixel_matrix_columns)
compute_frame_positions(image)
compute_image_center_position(image)
disassemble_total_pixel_matrix(total_pixel_matrix, tile_positions, rows, columns)
does_optical_path_item_match(item, identifier=None, description=None,
        illumination_wavelength=None)
does_segment_item_match(item, number=None, label=None, property_category=None,
        property_type=None)
does_specimen_description_item_match(item, specimen_stain=None)
find_slides(client, study_instance_uid=None, patient_id=None, study_id=None, container_id=None,
        max_frame_cache_size=6, pyramid_tolerance=0.1, fail_on_error=True, include_derived=True,
        specimen_stains=None, optical_path_ids=None)
get_image_pixel_spacing(image)
get_image_size(image)
is_image(dataset)
is_label_image(dataset)
is_overview_image(dataset)
is_tiled_image(dataset)
is_volume_image(dataset)
select_image_at_magnification(collection, magnification, tolerance=None)
select_image_at_pixel_spacing(collection, pixel_spacing, tolerance=None)
sort_images_by_pixel_spacing(collection)
sort_images_by_size(collection)
"""


def entries():
    """Yield (class or None, name, parameters, value) of each line; None where there is none."""
    owner = None
    for line in re.sub(r"\n {8}", " ", DOCUMENTED.strip("\n")).splitlines():
        indent, name, parameters, value = re.fullmatch(
            r"( *)(\w+)(?:\((.*)\))?(?: = (.*))?", line
        ).groups()
        if not indent:
            owner = name if name[0].isupper() else None
        yield (owner if indent else None), name, parameters, value


ENTRIES = list(entries())
CLASSES = [name for owner, name, _, _ in ENTRIES if owner is None and name[0].isupper()]
FUNCTIONS = [name for owner, name, _, _ in ENTRIES if owner is None and name[0].islower()]


def of(owner, name):
    """Return what stands under a name, without binding it."""
    if owner is None:
        return getattr(dicomslide, name)
    for base in getattr(dicomslide, owner).__mro__:
        if name in vars(base):
            return vars(base)[name]
    raise AssertionError(f"{owner} has no {name}")


def promised(parameters):
    """Return the (name, default) of each parameter; inspect.Parameter.empty without one."""
    arguments = ast.parse(f"def f({parameters}): ...").body[0].args
    names = [argument.arg for argument in arguments.args]
    defaults = [ast.literal_eval(default) for default in arguments.defaults]
    empty = [inspect.Parameter.empty] * (len(names) - len(defaults))
    return list(zip(names, empty + defaults, strict=True))


def identifier(entry):
    owner, name, _, _ = entry
    return f"{owner}.{name}" if owner else name


def test_all_names_are_counted():
    assert len(ENTRIES) == 116
    assert len(CLASSES) == 9
    assert len(FUNCTIONS) == 19
    assert sum(value is not None for *_, value in ENTRIES) == 7
    assert sum(owner is not None for owner, *_ in ENTRIES) == 81 + 7
    assert len(set(map(identifier, ENTRIES))) == 116


@pytest.mark.parametrize("name", CLASSES + FUNCTIONS)
def test_documented_names_are_public(name):
    assert name in dicomslide.__all__
    assert getattr(dicomslide, name).__doc__


@pytest.mark.parametrize("entry", [each for each in ENTRIES if each[2] is not None], ids=identifier)
def test_parameters_and_defaults_are_those_documented(entry):
    owner, name, parameters, _ = entry
    thing = of(owner, name)
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        assert parameters == "value"
        return
    signature = inspect.signature(thing)
    found = [each for each in signature.parameters.values() if each.name != "self"]
    wanted = promised(parameters)
    documented, more = found[: len(wanted)], found[len(wanted) :]
    assert [(each.name, each.default) for each in documented] == wanted
    assert all(each.kind is each.POSITIONAL_OR_KEYWORD for each in documented)
    # what goes beyond the documentation disturbs no call that is lawful by it
    assert all(each.kind is each.KEYWORD_ONLY for each in more)
    assert all(each.default is not each.empty for each in more)


@pytest.mark.parametrize(
    "entry", [each for each in ENTRIES if each[2] is None and each[3] is None], ids=identifier
)
def test_properties_are_those_documented(entry):
    owner, name, _, _ = entry
    found = of(owner, name)
    assert inspect.isdatadescriptor(found)
    assert found.__doc__


@pytest.mark.parametrize("entry", [each for each in ENTRIES if each[3]], ids=identifier)
def test_values_of_enumerations_are_those_documented(entry):
    owner, name, _, value = entry
    assert getattr(dicomslide, owner)[name].value == ast.literal_eval(value)


def test_levels_have_their_fields_in_the_documented_order():
    fields = [name for name, _ in promised({e[1]: e[2] for e in ENTRIES}["PyramidLevel"])]
    assert dicomslide.PyramidLevel._fields == tuple(fields)


@pytest.mark.parametrize(
    ("module", "names"),
    {
        "enum": ["ChannelTypes", "ImageFlavors"],
        "image": ["TiledImage"],
        "matrix": ["TotalPixelMatrix", "TotalPixelMatrixSampler"],
        "openslide": ["OpenSlide"],
        "pyramid": [
            "Pyramid",
            "PyramidLevel",
            "compute_image_center_position",
            "get_image_pixel_spacing",
            "get_image_size",
            "select_image_at_magnification",
            "select_image_at_pixel_spacing",
            "sort_images_by_pixel_spacing",
            "sort_images_by_size",
        ],
        "slide": ["Slide", "find_slides"],
        "tile": [
            "assemble_total_pixel_matrix",
            "compute_frame_positions",
            "disassemble_total_pixel_matrix",
        ],
        "utils": [
            "does_optical_path_item_match",
            "does_segment_item_match",
            "does_specimen_description_item_match",
            "is_image",
            "is_label_image",
            "is_overview_image",
            "is_tiled_image",
            "is_volume_image",
        ],
    }.items(),
)
def test_modules_keep_their_names(module, names):
    home = __import__(f"dicomslide.{module}", fromlist=names)
    for name in names:
        assert getattr(home, name) is getattr(dicomslide, name)
