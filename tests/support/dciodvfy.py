"""What dciodvfy of dicom3tools finds in a file, but for errors of its own."""

from __future__ import annotations

import re
import shutil
import subprocess

OWN_ERRORS = (
    # frames of TILED_FULL are in a known order: PS3.3 C.7.6.16, C.7.6.17.3
    r"PerFrameFunctionalGroupsSequence\(5200,9230\)> - Missing attribute for Type 1 Required",
    # of TILED_FULL: their positions follow from the order (C.7.6.16.1.1); of slides, positions and
    # orientations of a patient are required of no image (A.75.5, conditions of the macros)
    r"Plane(PositionSlide|Position|Orientation)Sequence\S*> - Missing attribute for Type 1",
    # a term of PS3.3 C.8.32.2.1
    r"Unrecognized defined term = <QUANTITY>",
    # a palette is required with COLOR_RANGE, too: A.75.3, C.8.32.2
    r"PaletteColorLookupTable(Descriptor|Data)\S*> - Attribute present when condition unsat",
    # colours may be dark; that it takes them for 8 bits in 16 is a guess
    r"LookupTableData bad - .* number of bits = 16 but maximum LUT Data value",
    # numbers (FD), of which dciodvfy checks texts
    r"StoredValueMapped\S*> - Non-string attribute while verifying string enumerated value",
    # of annotations in pixels, also where the attribute is absent
    r"CommonZCoordinateValue\S*> - Only valid for AnnotationCoordinateType of 3D",
)
"""Patterns of messages that are wrong, with the reason."""

MISSING = None if shutil.which("dciodvfy") else "dciodvfy (dicom3tools) isn't installed"


def errors_in(path):
    """Messages about a file that are errors, and not dciodvfy's own."""
    run = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
    lines = [line for line in run.stderr.splitlines() if re.search(r"\bError\b", line)]
    return [line for line in lines if not any(re.search(known, line) for known in OWN_ERRORS)]
