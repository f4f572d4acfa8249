"""One-line descriptions of a heartbeat, a round and a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mtl_cloud.report.formatting import dollars, duration, number, percent
from mtl_cloud.report.metrics import format_metric, headlines, label

if TYPE_CHECKING:
    from mtl_cloud.json_types import Json
    from mtl_cloud.runs.schema import ResultRecord, RoundRecord

__all__ = ["loss_words", "position_words", "result_words", "round_words", "speed_words", "state_words"]


def state_words(state: str) -> str:
    """``out of time`` for ``out_of_time``."""
    return state.replace("_", " ")


def position_words(progress: Mapping[str, Json]) -> str:
    """``round 2/5 · epoch 31/100 · step 411/685``; values that are not reported are left out."""
    pairs = (("round", "rounds"), ("epoch", "epochs"), ("step", "steps"))
    parts = [f"{one} {_of(progress[one], progress.get(all_))}" for one, all_ in pairs if progress.get(one) is not None]
    return " · ".join(parts)


def _of(value: Json, total: Json) -> str:
    return f"{value}/{total}" if total is not None else str(value)


def loss_words(progress: Mapping[str, Json]) -> str:
    """``loss classification 0.297, detection 1.48``; empty before the first step."""
    losses = progress.get("losses")
    known = [(task, value) for task, value in losses.items() if _real(value)] if isinstance(losses, dict) else []
    return "loss " + ", ".join(f"{task} {value:.3g}" for task, value in known) if known else ""


def speed_words(progress: Mapping[str, Json]) -> str:
    """``812 images/s · 3.1 % waiting for data · 3 min 10 s left``; empty while nothing is measured."""
    rate, wait, left = (progress.get(name) for name in ("images_per_s", "data_wait", "eta_s"))
    if not rate or not isinstance(rate, int | float):
        return ""
    parts = [
        f"{rate:.3g} images/s",
        f"{percent(wait)} waiting for data" if isinstance(wait, int | float) else "",
        f"{duration(left)} left" if isinstance(left, int | float) else "",
    ]
    return " · ".join(part for part in parts if part)


def round_words(record: RoundRecord, rounds: int) -> str:
    """``round 2/5: classification top-1 accuracy 72.8 %, … · 812 images/s · 5 min 02 s · $1.90``."""
    metrics = [
        f"{task} {label(metric, task)} {format_metric(metric, last)}" for task, metric, _, last in headlines([record])
    ]
    parts = [
        ", ".join(metrics),
        f"{number(record.images_per_s)} images/s",
        duration(record.seconds + record.validation_s),
        "" if record.usd is None else dollars(record.usd),
    ]
    return f"round {record.round}/{rounds}: " + " · ".join(part for part in parts if part)


def result_words(result: ResultRecord) -> str:
    """``done after 5 rounds, 53 min 00 s, $19.40: all rounds are done``."""
    rounds = f"{result.rounds} round{'' if result.rounds == 1 else 's'}"
    cost = "" if result.usd is None else f", {dollars(result.usd)}"
    reason = f": {result.message}" if result.message else ""
    return f"{state_words(result.outcome)} after {rounds}, {duration(result.seconds)}{cost}{reason}"


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
