"""Export of a run's weights: reads one checkpoint of the run record and writes it in a format of other programs.

It runs as a child process of ``mtl-cloud export`` (``python -m mtl_cloud.train.export``), because the command line does
not import torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtl_cloud.errors import NotFoundError, RecordError, UsageError
from mtl_cloud.jobspec.job import JobSpec, PretrainedSpec
from mtl_cloud.jobspec.load import job_from_json
from mtl_cloud.runs.record import CheckpointId, RunRecord
from mtl_cloud.tasks import TASKS
from mtl_cloud.train.checkpoint.checkpointer import Restored, lineage, read_checkpoint
from mtl_cloud.train.export.formats import FORMATS, TrainedNetwork
from mtl_cloud.train.nets import build_network

__all__ = ["Export", "export_run", "find_checkpoint"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """Description of the written files, which is also stored as ``export.json`` in the folder."""

    run_id: str
    step: int
    attempt: int
    round: int
    """Rounds that were complete when the checkpoint was saved."""
    weights: str
    """``ema``: the moving average; ``network``: the weights of the last step."""
    model: str
    classes: dict[str, list[str]]
    """Maps task -> class names, in the order of its outputs."""
    image_size: int
    folder: str
    files: list[str]
    notes: list[str]
    """Instructions for using the files."""


def export_run(run: RunRecord, *, checkpoint: str, what: str, folder: Path) -> Export:
    """Write ``checkpoint`` (``last``, ``best`` or a step) in the format ``what`` (a key of ``FORMATS``).

    Raises
    ------
    UsageError
        There is no such checkpoint, the format cannot hold the network, or the folder cannot be written.
    StorageError
        The run record cannot be read, or all matching checkpoints are damaged.
    """
    restored = find_checkpoint(run, checkpoint)
    job = job_from_json(run.spec_json(), source=run.paths.spec_json)
    trained = _trained(job, restored)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = FORMATS[what](trained, folder)
        manifest = restored.manifest
        export = Export(
            run_id=run.run_id,
            step=manifest.step,
            attempt=manifest.attempt,
            round=manifest.round,
            weights="network" if restored.state["ema"] is None else "ema",
            model=job.model.name,
            classes={task: list(names) for task, names in trained.classes.items()},
            image_size=trained.image_size,
            folder=str(folder),
            files=[path.name for path in written],
            notes=trained.notes(what),
        )
        (folder / "export.json").write_text(json.dumps(asdict(export), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", hint="name another folder with -o") from error
    return export


def find_checkpoint(run: RunRecord, which: str) -> Restored:
    """Load ``last`` (the newest intact checkpoint), ``best``, or that of a step. Raises as ``export_run``."""
    known = lineage(run, run.owner() or 0)
    if not known:
        raise UsageError(f"{run.run_id} has no checkpoint yet", hint="one is saved at the end of each round")
    if which == "last":
        return _newest_intact(run, known)
    step = _best_step(run) if which == "best" else _step(which)
    found = [checkpoint for checkpoint in known if checkpoint.step == step]
    if not found:
        steps = ", ".join(str(checkpoint.step) for checkpoint in sorted(known))
        raise UsageError(f"{run.run_id} has no checkpoint of step {step}", hint=f"available steps: {steps}")
    return _newest_intact(run, found)


def _newest_intact(run: RunRecord, checkpoints: Iterable[CheckpointId]) -> Restored:
    failure: RecordError | NotFoundError | None = None
    for checkpoint in checkpoints:
        try:
            return read_checkpoint(run, checkpoint)
        except (RecordError, NotFoundError) as error:
            log.warning("skipping the checkpoint of step %d by attempt %d: %s", *checkpoint, error)
            failure = error
    raise failure or AssertionError("no checkpoint to choose from")


def _best_step(run: RunRecord) -> int:
    rounds = {record.round: record for record in run.rounds()}
    best = rounds[max(rounds)].best_round if rounds else None
    if best is None:
        raise UsageError(f"{run.run_id} has no best round", hint="set checkpoint.keep_best in the job")
    return rounds[best].step


def _step(which: str) -> int:
    if not which.isdecimal():
        raise UsageError(f"{which!r} is not a checkpoint", hint="use last, best, or a step number")
    return int(which)


def _trained(job: JobSpec, restored: Restored) -> TrainedNetwork:
    state: dict[str, Any] = restored.state
    classes = {task: tuple(state["classes"][task]) for task in TASKS if task in state["classes"]}
    network = build_network(job.model.model_copy(update={"pretrained": PretrainedSpec()}), classes)
    network.load_state_dict(state["network"] if state["ema"] is None else state["ema"]["network"])
    return TrainedNetwork(network.eval(), classes, job.training.image_size, state["step"] * job.training.batch_size)
