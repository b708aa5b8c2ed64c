"""Orientations of total pixel matrices on the slide."""

from __future__ import annotations

import math


def orientations():
    """16 orientations: 4 right angles and 4 oblique ones, each mirrored and not."""
    for angle in (0, 90, 180, 270, 30, 100, 200, 325):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        if angle % 90 == 0:
            cos, sin = round(cos), round(sin)
        for mirrored in (False, True):
            # rows run along the angle; columns clockwise from them as seen from the coverslip
            v = (-sin, cos) if mirrored else (sin, -cos)
            yield f"{angle}{' mirrored' if mirrored else ''}", (cos, sin, 0, *v, 0)


ORIENTATIONS = dict(orientations())
