"""Sample images for the page: truth and prediction side by side, with text alternatives and a legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtl_cloud.report.formatting import percent
from mtl_cloud.report.overlays import Color, class_colors, overlay
from mtl_cloud.runs.schema import RoundSamples

__all__ = ["Panel", "SampleView", "SampleViews", "sample_views"]


class Panel(NamedTuple):
    """One side of a sample: the picture, its classes as text, and a text alternative."""

    title: str
    image: str
    classes: str
    alt: str


class SampleView(NamedTuple):
    key: str
    panels: list[Panel]


class SampleViews(NamedTuple):
    round: int
    samples: list[SampleView]
    legend: list[tuple[str, str]]
    """Class name and CSS colour of every class that boxes or masks may show."""


def sample_views(samples: RoundSamples | None) -> SampleViews | None:
    """Truth and prediction of each sample; None if the run has no samples."""
    if samples is None or not samples.samples:
        return None
    masks = samples.classes.get("segmentation", [])
    colors = class_colors([*samples.classes.get("detection", []), *masks])
    views = [
        SampleView(sample["key"], [_panel(sample, side, colors, masks) for side in ("truth", "prediction")])
        for sample in samples.samples
    ]
    legend = [(name, f"rgb({red} {green} {blue})") for name, (red, green, blue) in colors.items()]
    return SampleViews(samples.round, views, legend)


def _panel(sample: Mapping[str, Any], side: str, colors: Mapping[str, Color], masks: Sequence[str]) -> Panel:
    labels = sample.get(side) or {}
    image = overlay(sample["image"], labels, colors, masks, key=sample["key"])
    return Panel(side, image, _class_text(labels, scored=side == "prediction"), _alt(sample["key"], side, labels))


def _class_text(labels: Mapping[str, Any], *, scored: bool) -> str:
    classes = (labels.get("classes") or [])[:3]
    if not scored:
        return ", ".join(name for name, _ in classes)
    return ", ".join(f"{name} ({percent(score)})" for name, score in classes)


def _alt(key: str, side: str, labels: Mapping[str, Any]) -> str:
    counts = Counter(box[0] for box in labels.get("boxes") or [])
    boxes = ", ".join(f"{count} {name}" for name, count in counts.items())
    parts = ([f"boxes around {boxes}"] if boxes else []) + (["a class mask"] if labels.get("mask") else [])
    return f"{side} of {key}" + (f", with {' and '.join(parts)}" if parts else "")
