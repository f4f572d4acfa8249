"""From runs to the table: refuse or mark, group over seeds, measure, set joint runs against single ones."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtl_cloud.compare.entry import At, Entry, differences, unlike_budget
from mtl_cloud.compare.table import RECALL, Comparison, Delta, Measure, Row, WorkerEffect, delta_m
from mtl_cloud.errors import UsageError
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.tasks import HEADLINE, TASKS, Task

__all__ = ["compare"]

_OWN_COLUMNS = ("dataset", "model.name", "model.tasks", "training.loader_workers")


def compare(entries: Sequence[Entry], *, at: At = "last", force: bool = False) -> Comparison:
    """The table of ``entries``. With ``force``, runs that differ in what they may not are marked, not refused.

    Raises
    ------
    UsageError
        A run has no complete round; or, without ``force``, the runs cannot be compared truthfully: the message lists
        the fields in which they differ.
    """
    _require_rounds(entries)
    found = differences(entries)
    if found and not force:
        lines = [f"  {field}: {_values_words(values)}" for field, values in found.items()]
        raise UsageError(
            "\n".join(["these runs cannot be compared truthfully:", *lines]),
            hint="compare runs of the same data, image size and epochs, or mark the differences with --force",
        )
    groups = _grouped(entries)
    variants = _variants(groups)
    rows = [_row(group, at, variant) for group, variant in zip(groups, variants, strict=True)]
    deltas = [_delta(group, groups, at, force) for group in groups]
    marks = [tuple(field for field, values in found.items() if _is_odd(group[0], values)) for group in groups]
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


def _values_words(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} in {', '.join(run_ids)}" for value, run_ids in values.items())


def _is_odd(entry: Entry, values: Mapping[str, Sequence[str]]) -> bool:
    """Whether the run has another value than the run that was named first of those that have one."""
    _, *others = values.values()
    return any(entry.run_id in run_ids for run_ids in others)


# --- configurations --------------------------------------------------------------------------------------------------


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[json.dumps(_configuration(entry) | entry.budget, sort_keys=True)].append(entry)
    return list(groups.values())


def _configuration(entry: Entry) -> dict[str, str]:
    """Everything that may change what a run reaches or how fast, but its seed: dotted field -> value."""
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
    """For each group, the fields in which it differs from others, but those that have columns of their own."""
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
    """What a field's value is to be compared with: much of what stands under ``model`` means nothing to others."""
    if not name.startswith("model.") or name == "model.width":
        return found
    return [other for other in found if other["model.name"] == fields["model.name"]]


def _row(group: Sequence[Entry], at: At, variant: dict[str, str]) -> Row:
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
        rounds=tuple(entry.chosen(at).round for entry in group),
        metrics={
            task: {name: _measure(group, at, task, name) for name in (HEADLINE[task], RECALL[task])}
            for task in first.tasks
        },
        training_s=Measure.of(entry.training_s for entry in group),
        images_per_s=Measure.of(entry.images_per_s for entry in group),
        data_wait=Measure.of(entry.data_wait for entry in group),
        usd=Measure.of(entry.usd for entry in group),
    )


def _measure(group: Sequence[Entry], at: At, task: Task, metric: str) -> Measure:
    return Measure.of(entry.chosen(at).metrics.get(task, {}).get(metric) for entry in group)


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


def _delta(group: Sequence[Entry], groups: Sequence[Sequence[Entry]], at: At, force: bool) -> Delta | None:
    """None for a configuration of one task's network; without a mean where a task has no baseline above 0."""
    joint = group[0]
    if not joint.is_joint:
        return None
    chosen = {task: _baseline(task, joint, groups, at, force) for task in joint.tasks}
    baselines = {task: found for task, found in chosen.items() if found}
    singles = {task: _measure(found, at, task, HEADLINE[task]).mean or 0.0 for task, found in baselines.items()}
    is_whole = len(baselines) == len(chosen) and all(singles.values())
    return Delta(
        Measure.of(_delta_of(entry, singles, at) for entry in group if is_whole),
        {task: tuple(entry.run_id for entry in found) for task, found in baselines.items()},
        tuple(dict.fromkeys(field for found in baselines.values() for field in unlike_budget(joint, found[0]))),
    )


def _baseline(
    task: Task, joint: Entry, groups: Sequence[Sequence[Entry]], at: At, force: bool
) -> Sequence[Entry] | None:
    """The single-task configuration to measure against: with as many workers before others, then the strongest one."""

    def rank(group: Sequence[Entry]) -> tuple[int, bool, float]:
        same_workers = group[0].job.training.loader_workers == joint.job.training.loader_workers
        return -len(unlike_budget(joint, group[0])), same_workers, _measure(group, at, task, HEADLINE[task]).mean or 0.0

    able = [g for g in groups if not g[0].is_joint and g[0].tasks == (task,) and _may_stand_against(joint, g[0], force)]
    return max(able, key=rank, default=None)


def _may_stand_against(joint: Entry, single: Entry, force: bool) -> bool:
    unlike = unlike_budget(joint, single)
    return not unlike or (force and not {"dataset", "image size"}.intersection(unlike))


def _delta_of(entry: Entry, singles: Mapping[Task, float], at: At) -> float | None:
    metrics = entry.chosen(at).metrics
    values = {str(task): metrics.get(task, {}).get(HEADLINE[task]) for task in singles}
    known = {task: value for task, value in values.items() if value is not None}
    return delta_m(known, {str(task): value for task, value in singles.items()}) if len(known) == len(values) else None


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(
    entries: Sequence[Entry], rows: Sequence[Row], found: Mapping[str, Mapping[str, Sequence[str]]], at: At
) -> Iterator[str]:
    yield (
        "Metrics are of the validation split after each run's last round."
        if at == "last"
        else "Metrics are of each run's best round, chosen by the validation split itself: they are optimistic."
    )
    for field, values in found.items():
        yield f"Forced: the runs differ in {field}: {_values_words(values)}."
    for entry in entries:
        if entry.outcome != Outcome.DONE:
            yield f"{entry.run_id} is not done ({entry.outcome or 'unfinished'}): it stands as far as it came."
    for row in rows:
        yield from _row_notes(row)


def _row_notes(row: Row) -> Iterator[str]:
    if len(set(row.seeds)) < len(row.seeds):
        yield f"{row.label}: runs share a seed ({', '.join(map(str, row.seeds))}); their spread says too little."
    if row.delta is None:
        return
    against = ", ".join(f"{task} {' '.join(run_ids)}" for task, run_ids in row.delta.baselines.items())
    missing = [task for task in row.tasks if task not in row.delta.baselines]
    if missing:
        budget = f"{row.epochs} epochs in batches of {row.batch_size}"
        yield f"{row.label}: no delta_m, for lack of a single-task run of {', '.join(missing)} of its budget, {budget}."
    elif row.delta.differs:
        yield f"{row.label}: forced: delta_m against {against}, which differ in {', '.join(row.delta.differs)}."
    else:
        yield f"{row.label}: delta_m against {against}."
