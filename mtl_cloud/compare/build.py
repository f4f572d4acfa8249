"""Builds the comparison table: refuses or marks runs, groups them by configuration, computes measures and delta_m."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtl_cloud.compare.entry import Entry, RoundChoice, budget_differences, differences
from mtl_cloud.compare.table import RECALL, Comparison, Delta, Measure, Row, WorkerEffect, delta_m
from mtl_cloud.errors import UsageError
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.tasks import HEADLINE, TASKS, Task

__all__ = ["compare"]

_OWN_COLUMNS = ("dataset", "model.name", "model.tasks", "training.loader_workers")


def compare(entries: Sequence[Entry], *, at: RoundChoice = "last", force: bool = False) -> Comparison:
    """Compare ``entries``. With ``force``, runs that are not comparable are marked instead of refused.

    Raises
    ------
    UsageError
        A run has no complete round; or, without ``force``, the runs are not comparable, and the message lists the
        fields in which they differ.
    """
    _require_rounds(entries)
    found = differences(entries)
    if found and not force:
        lines = [f"  {field}: {_values_text(values)}" for field, values in found.items()]
        raise UsageError(
            "\n".join(["these runs are not comparable:", *lines]),
            hint="compare runs with the same data, image size and epochs, or mark the differences with --force",
        )
    groups = _grouped(entries)
    variants = _variants(groups)
    rows = [_row(group, at, variant) for group, variant in zip(groups, variants, strict=True)]
    deltas = [_delta(group, groups, at, force) for group in groups]
    marks = [
        tuple(field for field, values in found.items() if _differs_from_first(group[0], values)) for group in groups
    ]
    rows = [replace(row, delta=delta, differs=mark) for row, delta, mark in zip(rows, deltas, marks, strict=True)]
    return Comparison(
        at=at,
        tasks=tuple(task for task in TASKS if any(task in row.tasks for row in rows)),
        rows=tuple(rows),
        workers=tuple(_worker_effects(groups, rows)),
        notes=tuple(_notes(entries, rows, found, at)),
    )


def _require_rounds(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if not entry.rounds:
            raise UsageError(f"{entry.run_id}: no round is complete yet", hint="leave it out, or wait for its metrics")


def _values_text(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} in {', '.join(run_ids)}" for value, run_ids in values.items())


def _differs_from_first(entry: Entry, values: Mapping[str, Sequence[str]]) -> bool:
    """Whether the run's value differs from that of the first run that has one."""
    _, *others = values.values()
    return any(entry.run_id in run_ids for run_ids in others)


# --- configurations --------------------------------------------------------------------------------------------------


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[json.dumps(_configuration(entry) | entry.budget, sort_keys=True)].append(entry)
    return list(groups.values())


def _configuration(entry: Entry) -> dict[str, str]:
    """Everything but the seed that may change a run's metrics or speed: dotted field -> value."""
    job = entry.job.model_dump(mode="json", include={"model", "training"})
    fields = dict(_flat(job))
    del fields["training.seed"]
    machine = {"device": ", ".join(entry.devices), "processes": str(entry.job.processes)}
    return fields | machine | {"dataset": str(entry.budget["dataset"])}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item if isinstance(item, str) else json.dumps(item)


def _variants(groups: Sequence[Sequence[Entry]]) -> list[dict[str, str]]:
    """For each group, the fields in which it differs from others, without those that have columns of their own."""
    found = [_configuration(group[0]) for group in groups]
    names = [name for name in dict.fromkeys(name for fields in found for name in fields) if name not in _OWN_COLUMNS]
    return [
        {
            name: fields.get(name, "none")
            for name in names
            if len({o.get(name) for o in _peers(name, fields, found)}) > 1
        }
        for fields in found
    ]


def _peers(name: str, fields: Mapping[str, str], found: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    """Configurations to compare a field's value with: most fields under ``model`` apply to one model only."""
    if not name.startswith("model.") or name == "model.width":
        return found
    return [other for other in found if other["model.name"] == fields["model.name"]]


def _row(group: Sequence[Entry], at: RoundChoice, variant: dict[str, str]) -> Row:
    first = group[0]
    return Row(
        model=first.job.model.name,
        variant=variant,
        tasks=first.tasks,
        dataset=str(first.budget["dataset"]),
        workers=first.job.training.loader_workers,
        image_size=first.job.training.image_size,
        batch_size=first.job.training.batch_size,
        steps=first.rounds[-1].step,
        images=first.images,
        epochs=first.rounds[-1].epoch,
        devices=first.devices,
        run_ids=tuple(entry.run_id for entry in group),
        seeds=tuple(entry.job.training.seed for entry in group),
        rounds=tuple(entry.selected_round(at).round for entry in group),
        metrics={
            task: {name: _measure(group, at, task, name) for name in (HEADLINE[task], RECALL[task])}
            for task in first.tasks
        },
        training_s=Measure.of(entry.training_s for entry in group),
        images_per_s=Measure.of(entry.images_per_s for entry in group),
        data_wait=Measure.of(entry.data_wait for entry in group),
        usd=Measure.of(entry.usd for entry in group),
    )


def _measure(group: Sequence[Entry], at: RoundChoice, task: Task, metric: str) -> Measure:
    return Measure.of(entry.selected_round(at).metrics.get(task, {}).get(metric) for entry in group)


def _worker_effects(groups: Sequence[Sequence[Entry]], rows: Sequence[Row]) -> Iterator[WorkerEffect]:
    alike: dict[str, list[Row]] = defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        fields = _configuration(group[0])
        del fields["training.loader_workers"]
        alike[json.dumps(fields, sort_keys=True)].append(row)
    for found in alike.values():
        fewest, *more = sorted(found, key=lambda row: row.workers)
        yield from (WorkerEffect(fewest, row) for row in more if row.workers > fewest.workers)


# --- joint against single --------------------------------------------------------------------------------------------


def _delta(group: Sequence[Entry], groups: Sequence[Sequence[Entry]], at: RoundChoice, force: bool) -> Delta | None:
    """delta_m of a configuration: None for a single-task network, no mean if a task has no baseline above 0."""
    joint = group[0]
    if not joint.is_joint:
        return None
    chosen = {task: _baseline(task, joint, groups, at, force) for task in joint.tasks}
    baselines = {task: found for task, found in chosen.items() if found}
    singles = {task: _measure(found, at, task, HEADLINE[task]).mean or 0.0 for task, found in baselines.items()}
    is_complete = len(baselines) == len(chosen) and all(singles.values())
    return Delta(
        Measure.of(_delta_of(entry, singles, at) for entry in group if is_complete),
        {task: tuple(entry.run_id for entry in found) for task, found in baselines.items()},
        tuple(dict.fromkeys(field for found in baselines.values() for field in budget_differences(joint, found[0]))),
    )


def _baseline(
    task: Task, joint: Entry, groups: Sequence[Sequence[Entry]], at: RoundChoice, force: bool
) -> Sequence[Entry] | None:
    """The single-task configuration to compare with: those with as many workers are preferred, then the best metric."""

    def rank(group: Sequence[Entry]) -> tuple[int, bool, float]:
        same_workers = group[0].job.training.loader_workers == joint.job.training.loader_workers
        metric = _measure(group, at, task, HEADLINE[task]).mean or 0.0
        return -len(budget_differences(joint, group[0])), same_workers, metric

    able = [g for g in groups if not g[0].is_joint and g[0].tasks == (task,) and _is_valid_baseline(joint, g[0], force)]
    return max(able, key=rank, default=None)


def _is_valid_baseline(joint: Entry, single: Entry, force: bool) -> bool:
    different = budget_differences(joint, single)
    return not different or (force and not {"dataset", "image size"}.intersection(different))


def _delta_of(entry: Entry, singles: Mapping[Task, float], at: RoundChoice) -> float | None:
    metrics = entry.selected_round(at).metrics
    values = {str(task): metrics.get(task, {}).get(HEADLINE[task]) for task in singles}
    known = {task: value for task, value in values.items() if value is not None}
    return delta_m(known, {str(task): value for task, value in singles.items()}) if len(known) == len(values) else None


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(
    entries: Sequence[Entry], rows: Sequence[Row], found: Mapping[str, Mapping[str, Sequence[str]]], at: RoundChoice
) -> Iterator[str]:
    yield (
        "Metrics are of the validation split after each run's last round."
        if at == "last"
        else "Metrics are of each run's best round, chosen on the validation split itself: they are optimistic."
    )
    for field, values in found.items():
        yield f"Forced: the runs differ in {field}: {_values_text(values)}."
    for entry in entries:
        if entry.outcome != Outcome.DONE:
            outcome = entry.outcome or "unfinished"
            yield f"{entry.run_id} is not done ({outcome}): its metrics are those of the rounds it completed."
    for row in rows:
        yield from _row_notes(row)


def _row_notes(row: Row) -> Iterator[str]:
    if len(set(row.seeds)) < len(row.seeds):
        yield f"{row.label}: same seed ({', '.join(map(str, row.seeds))}), so the ± is meaningless."
    if row.delta is None:
        return
    against = ", ".join(f"{task} {' '.join(run_ids)}" for task, run_ids in row.delta.baselines.items())
    missing = [task for task in row.tasks if task not in row.delta.baselines]
    if missing:
        budget = f"{row.epochs} epochs, batch {row.batch_size}"
        yield f"{row.label}: delta_m needs single-task runs of {', '.join(missing)} with {budget}."
    elif row.delta.differs:
        yield f"{row.label}: forced: delta_m against {against}, which differ in {', '.join(row.delta.differs)}."
    else:
        yield f"{row.label}: delta_m against {against}."
