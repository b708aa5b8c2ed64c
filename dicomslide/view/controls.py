"""Controls beside a view: channels, focal plane, overlays."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import panel as pn

from dicomslide.display.blend import LABEL_COLORS
from dicomslide.labelled.overlay import Labels, NumberMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomslide.view.scene import Channel, Drawn, Scene

__all__ = ["controls_of"]

WIDTH = 260
MOST_OPEN = 8
"""Channels up to which their controls are open at first."""


def controls_of(scene: Scene, changed: Callable[[], None]) -> list[Any]:
    """Return the widgets of a scene.

    Parameters
    ----------
    scene : Scene
        What the widgets set.
    changed : callable
        Called after each change.

    Returns
    -------
    list of panel.viewable.Viewable

    """
    found: list[Any] = []
    if len(scene.planes) > 1:
        found.append(_plane(scene, changed))
    if scene.channels:
        gamma = pn.widgets.FloatSlider(
            label="gamma", start=0.2, end=2.0, step=0.05, value=scene.gamma, width=WIDTH
        )
        _watch(gamma, scene, "gamma", changed)
        channels = [_channel(each, changed) for each in scene.channels]
        is_small = len(channels) <= MOST_OPEN
        found.append(
            pn.Card(*channels, gamma, title="Channels", collapsed=not is_small, width=WIDTH + 30)
        )
    if scene.overlays:
        overlays = [_overlay(each, changed) for each in scene.overlays]
        found.append(pn.Card(*overlays, title="On the slide", width=WIDTH + 30))
    return found


def _watch(widget: Any, target: Any, name: str, changed: Callable[[], None]) -> None:
    """Set an attribute to the value of a widget when that changes."""

    def change(event: Any) -> None:
        setattr(target, name, event.new)
        changed()

    widget.param.watch(change, "value")


def _plane(scene: Scene, changed: Callable[[], None]) -> Any:
    options = {f"{plane:g} µm": number for number, plane in enumerate(scene.planes)}
    if len(options) < len(scene.planes):
        options = {f"{n}: {plane:g} µm": n for n, plane in enumerate(scene.planes)}
    slider = pn.widgets.DiscreteSlider(
        label="focal plane", options=options, value=scene.plane, width=WIDTH
    )
    _watch(slider, scene, "plane", changed)
    return slider


def _channel(channel: Channel, changed: Callable[[], None]) -> Any:
    visible = pn.widgets.Checkbox(label=channel.name, value=channel.visible, width=WIDTH - 70)
    color = pn.widgets.ColorPicker(value=channel.color, width=45, height=30)
    low, high = channel.valid_range
    low, high = min(low, channel.limits[0]), max(high, channel.limits[1])
    is_wide = high - low > 20
    limits = pn.widgets.EditableRangeSlider(
        label="", start=low, end=high, value=channel.limits, width=WIDTH,
        step=1.0 if is_wide else (high - low) / 200, format="0" if is_wide else "0.[000]",
    )  # fmt: skip
    _watch(visible, channel, "visible", changed)
    _watch(color, channel, "color", changed)

    def change(event: Any) -> None:
        first, last = event.new
        if first < last:
            channel.limits = (float(first), float(last))
            changed()

    limits.param.watch(change, "value_throttled")
    return pn.Column(pn.Row(visible, color), limits)


def _overlay(drawn: Drawn, changed: Callable[[], None]) -> Any:
    visible = pn.widgets.Checkbox(label=drawn.name, value=drawn.visible, width=WIDTH)
    opacity = pn.widgets.FloatSlider(
        label="opacity", start=0, end=1, step=0.05, value=drawn.opacity, width=WIDTH
    )
    _watch(visible, drawn, "visible", changed)
    _watch(opacity, drawn, "opacity", changed)
    parts: list[Any] = [visible, opacity]
    look = drawn.look
    if isinstance(look, Labels):
        parts.append(_legend(drawn, look, changed))
    elif isinstance(look, NumberMap):
        parts.append(pn.pane.HTML(_color_bar(look), width=WIDTH))
    else:
        color = pn.widgets.ColorPicker(label="colour", value=drawn.color, width=60)
        _watch(color, drawn, "color", changed)
        count = 0 if drawn.shapes is None else len(drawn.shapes)
        parts.append(pn.Row(color, pn.pane.HTML(f"{count:,} shapes")))
    return pn.Column(*parts)


def _legend(drawn: Drawn, look: Labels, changed: Callable[[], None]) -> Any:
    """Return the colours of segments, and a choice of those that are drawn."""
    entries = "".join(
        f'<div><span style="display:inline-block;width:12px;height:12px;background:{color};'
        f'border:1px solid #888;margin-right:6px"></span>{html.escape(name)}</div>'
        for name, color in look.legend
    )
    if look.colors == LABEL_COLORS:  # numbers of objects
        return pn.pane.HTML("", visible=False)
    legend = pn.pane.HTML(entries, width=WIDTH)
    if len(look.names) < 2:
        return legend
    options = {name: i for i, name in enumerate(look.names)}
    chosen = pn.widgets.MultiChoice(
        label="shown", options=options, value=list(options.values()), width=WIDTH
    )

    def change(event: Any) -> None:
        import dataclasses

        assert isinstance(drawn.look, Labels)
        hidden = frozenset(options.values()) - frozenset(event.new)
        drawn.look = dataclasses.replace(drawn.look, hidden=hidden)
        changed()

    chosen.param.watch(change, "value")
    return pn.Column(legend, chosen)


def _color_bar(look: NumberMap) -> str:
    """Return a bar of the colours with the values at its ends and the unit, as HTML."""
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in look.table(16).tolist())
    low, high = look.limits or (0.0, 1.0)
    unit = f" [{html.escape(look.unit)}]" if look.unit else ""
    return (
        f"<div>{html.escape(look.name)}{unit}</div>"
        f'<div style="height:12px;background:linear-gradient(to right, {stops})"></div>'
        '<div style="display:flex;justify-content:space-between">'
        f"<span>{low:.4g}</span><span>{high:.4g}</span></div>"
    )
