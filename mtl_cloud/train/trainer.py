"""The training loop: restore, step, close rounds, save, stop when asked.

The order of events ensures that a kill at any instant loses only the steps since the last commit. At a round's end the
state is saved first, then validation runs, then the round's record is written. The save is committed asynchronously,
before or after the record. A run that is killed after the commit and before the record finds the round still open when
it resumes, and validates again. A run that is killed after the record and before the commit trains the round's last
steps again. Both produce the same result.

If training diverges and the job says ``rewind``, training returns to the last round's end (in the first round: to the
job's beginning) and continues at a lower learning rate. This depends only on the losses and on where rounds end, which
are the same however often a run was killed; so a resumed run rewinds at the same step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import Tensor, nn

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.names import epoch_line, metrics_line
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import RoundRecord, RoundSamples
from mtl_cloud.tasks import HEADLINE, Task
from mtl_cloud.train.checkpoint import rng_state as rng
from mtl_cloud.train.checkpoint.async_saver import AsyncSaver
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer, Restored
from mtl_cloud.train.checkpoint.retention import Retention
from mtl_cloud.train.control import ControlChannel
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.multi_scale import input_size
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.divergence import DivergenceError, DivergenceMonitor, require_finite
from mtl_cloud.train.evaluate import Validation, validate
from mtl_cloud.train.meters import LossMeter, RoundMeter
from mtl_cloud.train.optim.optimizer import learning_rate
from mtl_cloud.train.samples import render_samples
from mtl_cloud.train.tasks.base import TaskHead
from mtl_cloud.train.tensorboard import EventLog
from mtl_cloud.train.train_step import Replica

__all__ = ["Position", "Trainer"]

log = logging.getLogger(__name__)

_CHECK_EVERY_STEPS = 50
"""Steps between divergence checks on an accelerator: each check waits for the device."""


@dataclass
class Position:
    """How far a run has trained. ``step`` counts optimizer steps from the job's beginning."""

    step: int = 0
    rounds_closed: int = 0
    skipped: set[str] = field(default_factory=set)
    """Keys of the damaged samples skipped so far."""
    rewinds: list[dict[str, Any]] = field(default_factory=list)
    """All rewinds of the job, in the format of ``RoundRecord.rewinds``."""


@dataclass
class Trainer:
    """Trains one process's share of a run. ``mtl_cloud.train.build`` builds it; ``fit`` runs it."""

    job: JobSpec
    run: RunRecord
    attempt: int
    group: ProcessGroup
    channel: ControlChannel
    checkpointer: Checkpointer
    events: EventLog
    replica: Replica
    training_batches: Callable[[int], Iterator[Batch]]
    """Takes a step (0-based); returns this process's share of the batches from that step on."""
    step_tasks: Callable[[int], tuple[Task, ...] | None]
    """Takes a step; returns the tasks whose sub-networks run in it, None for all."""
    validation_batches: Callable[[], Iterator[Batch]]
    sample_batch: Callable[[], Batch]
    """Returns the validation images that are rendered after each round."""
    classes: Mapping[Task, tuple[str, ...]]
    """Class names of every task that the network has an output for."""
    steps_per_epoch: int
    usd_per_hour: float | None
    clock: Callable[[], float] = time.monotonic
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.meter = RoundMeter(tuple(self.heads), self.group.device)
        self.epoch_losses = LossMeter(tuple(self.heads), self.group.device)
        check_every = 1 if self.group.device.type == "cpu" else _CHECK_EVERY_STEPS
        self.monitor = DivergenceMonitor(tuple(self.heads), self.job.training.divergence, every_steps=check_every)
        self.saver = AsyncSaver(self.checkpointer)
        self.retention = Retention(self.job, self.steps_per_round)
        self._saved_step, self._saved_at = -1, self.clock()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to the end of the last round. Returns False when asked to stop earlier, after committing the state."""
        try:
            self._restore()
            self._train()
            self.channel.report("stopping", **self._progress({}))
            self.saver.drain()
            if self.group.leads:
                self.checkpointer.apply_retention()
        finally:
            self.saver.close()
        return self.position.rounds_closed == self.job.training.rounds

    @property
    def network(self) -> nn.Module:
        """The network without the data-parallel wrapper."""
        return self.replica.network

    @property
    def heads(self) -> dict[Task, TaskHead]:
        return self.replica.heads

    @property
    def steps_per_round(self) -> int:
        return self.job.training.epochs_per_round * self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole job."""
        return self.job.training.rounds * self.steps_per_round

    def _train(self) -> None:
        """Train to the end or until asked to stop, rewinding after divergence as often as the job allows."""
        while True:
            try:
                return self._train_until_stopped()
            except DivergenceError as divergence:
                self._rewind(divergence)

    def _train_until_stopped(self) -> None:
        """Train to the end or until asked to stop. Raises ``DivergenceError`` before a diverged state is saved."""
        stopped = self._close_round()
        self.replica.train_mode()
        for batch, wait_s in self._batches():
            if stopped:
                break
            self._step(batch, wait_s)
            self._close_epoch()
            stopped = self._close_round() or self._stop_requested()
            if stopped or self._save_is_due():
                self._save("stop" if stopped else "time")

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Yield each batch with the seconds that the loop waited for it."""
        batches = self.training_batches(self.position.step) if self.position.step < self.steps else iter(())
        while True:
            requested_at = self.clock()
            batch = next(batches, None)
            if batch is None:
                return
            yield batch, self.clock() - requested_at

    def _stop_requested(self) -> bool:
        return self.position.step < self.steps and self.group.any(self.channel.stop_requested)

    # --- a step ------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch, wait_s: float) -> None:
        started_at = self.clock()
        training, step = self.job.training, self.position.step
        lr = self._lr_scale * learning_rate(training.schedule, training.optimizer.lr, step=step, steps=self.steps)
        size = input_size(training, step=step, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        losses = self.replica.step(batch, lr=lr, size=size, tasks=self.step_tasks(step))
        self.position.step += 1
        self.position.skipped.update(batch.skipped)
        self.meter.losses.add(*losses)
        self.epoch_losses.add(*losses)
        self.meter.images += len(batch) * self.group.world
        self._report(losses, lr)
        seconds = wait_s + self.clock() - started_at
        self.meter.seconds, self.meter.wait_s = self.meter.seconds + seconds, self.meter.wait_s + wait_s
        self.monitor.add(self.position.step, losses)

    @property
    def _lr_scale(self) -> float:
        """Factor of the learning rate after the rewinds so far."""
        return self.job.training.divergence.lr_factor ** len(self.position.rewinds)

    # --- progress reports --------------------------------------------------------------------------------------------

    def _report(self, losses: Tensor, lr: float) -> None:
        if not self.channel.report_is_due():
            return
        values = (losses[0] / losses[1].clamp(min=1)).tolist()
        counted = losses[1].tolist()
        newest = {task: value for task, value, n in zip(self.heads, values, counted, strict=True) if n}
        self.channel.report("training", **self._progress(_finite(newest)), learning_rate=lr)

    def _progress(self, losses: Mapping[str, float | None]) -> dict[str, Any]:
        training, step = self.job.training, self.position.step
        images_per_s = self.meter.images_per_s
        images_left = (self.steps - step) * training.batch_size
        return {
            "round": min(training.rounds, self.position.rounds_closed + 1),
            "rounds": training.rounds,
            "epoch": min(training.rounds * training.epochs_per_round, step // self.steps_per_epoch + 1),
            "epochs": training.rounds * training.epochs_per_round,
            "step": step,
            "steps": self.steps,
            "losses": losses,
            "images_per_s": images_per_s,
            "data_wait": self.meter.data_wait,
            "eta_s": images_left / images_per_s if images_per_s else None,
        }

    # --- ends of epochs and rounds -----------------------------------------------------------------------------------

    def _close_epoch(self) -> None:
        if self.position.step % self.steps_per_epoch:
            return
        self.monitor.check()
        means = self.epoch_losses.means()
        losses = {task: loss for task, loss in means.items() if loss is not None}
        self.replica.weighting.end_epoch(losses)
        self.epoch_losses.reset()
        line = epoch_line(
            self.position.step // self.steps_per_epoch,
            self.job.training.rounds * self.job.training.epochs_per_round,
            losses,
            images_per_s=self.meter.images_per_s,
            data_wait=self.meter.data_wait,
        )
        log.info(line)

    def _close_round(self) -> bool:
        """If a round has just ended, save, validate and record it. Returns True when asked to stop meanwhile."""
        if self.position.step < (self.position.rounds_closed + 1) * self.steps_per_round:
            return False
        self._save("round")
        started_at = self.clock()
        self.channel.report("validating", **self._progress({}))
        outcome = validate(
            self.replica.eval_network,
            self.heads,
            self.validation_batches(),
            group=self.group,
            autocast=self.replica.autocast,
            interrupted=self._interrupted,
        )
        if outcome is None:
            return True
        self.position.rounds_closed += 1
        self.position.skipped = self._all_skipped() | outcome.skipped
        self._record(outcome, self.clock() - started_at)
        self.meter.reset()
        self.replica.train_mode()
        return False

    def _interrupted(self) -> bool:
        self.channel.heartbeat()
        return self.channel.stop_requested

    def _record(self, outcome: Validation, validation_s: float) -> None:
        if not self.group.leads:
            return
        record = self.retention.with_best(self._round_record(outcome, validation_s))
        self.run.write_samples(self._samples(record.round), attempt=self.attempt)
        self.events.write(record)
        self.run.write_round(record)
        self.checkpointer.pinned = self.retention.pinned(self.position.rounds_closed)
        log.info("round %d/%d done in %.0f s", record.round, self.job.training.rounds, record.seconds + validation_s)
        for task, values in record.metrics.items():
            first = {HEADLINE[task]: values.get(HEADLINE[task]), **values}  # type: ignore[index]
            known = {name: value for name, value in first.items() if value is not None}
            log.info(metrics_line(record.round, task, known))

    def _samples(self, round_number: int) -> RoundSamples:
        return render_samples(
            self.replica.eval_network,
            self.heads,
            self.sample_batch(),
            device=self.group.device,
            autocast=self.replica.autocast,
            round_number=round_number,
        )

    def _round_record(self, outcome: Validation, validation_s: float) -> RoundRecord:
        meter, classification = self.meter, outcome.metrics.get("classification")
        hours = (meter.seconds + validation_s) / 3600
        return RoundRecord(
            round=self.position.rounds_closed,
            attempt=self.attempt,
            step=self.position.step,
            epoch=self.position.step // self.steps_per_epoch,
            ended_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=meter.seconds,
            validation_s=validation_s,
            images=meter.images,
            images_per_s=meter.images_per_s,
            data_wait=meter.data_wait,
            train_losses=_finite(meter.losses.means()),
            val_losses=_finite(outcome.losses),
            metrics={str(task): _finite(metrics.values) for task, metrics in outcome.metrics.items()},
            per_class={str(task): metrics.per_class for task, metrics in outcome.metrics.items()},
            confusion=classification.confusion if classification is not None else None,
            classes={str(task): list(head.classes) for task, head in self.heads.items()},
            bad_samples=len(self.position.skipped),
            learning_rate=self.replica.optimizer.param_groups[0]["lr"],
            weights={str(task): weight for task, weight in self.replica.weighting.weights().items()},
            sharing=self.replica.eval_network.sharing_report(),  # type: ignore[operator]  # a method of ``nets.Network``
            usd=None if self.usd_per_hour is None else hours * self.usd_per_hour,
            rewinds=[rewind for rewind in self.position.rewinds if rewind["round"] == self.position.rounds_closed],
        )

    # --- state -------------------------------------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        minutes = self.job.checkpoint.every_minutes
        timed = minutes is not None and self.clock() - self._saved_at >= 60 * minutes
        due = not self.saver.is_busy and (self.channel.take_save_request() or timed)
        # The clocks of several processes differ, so the leading process decides.
        return due if self.group.world == 1 else self.group.any(due and self.group.leads)

    def _save(self, reason: str) -> None:
        """Save the state, unless this step's state was saved already. Collective: every process must call it."""
        if self._saved_step == self.position.step:
            return
        self.monitor.check()
        require_finite(self.network, self.position.step)
        state = self._state_dict()
        if self.group.leads:
            self.channel.report("saving", **self._progress({}))
            self.saver.save(state, step=self.position.step, round=self.position.rounds_closed, reason=reason)
        self._saved_step, self._saved_at = self.position.step, self.clock()

    def _state_dict(self) -> dict[str, Any]:
        return {
            "step": self.position.step,
            "rounds_closed": self.position.rounds_closed,
            "skipped": sorted(self._all_skipped()),
            "rewinds": self.position.rewinds,
            "classes": self.classes,
            **self.replica.state_dict(),
            "meter": self.meter.state_dict(),
            "epoch_losses": self.epoch_losses.state_dict(),
            "watch": self.monitor.state_dict(),
            "rng": self.group.gather(rng.capture()),
        }

    def _all_skipped(self) -> set[str]:
        """Gather the skipped keys of all processes; each process knows only those of its own share."""
        return set[str]().union(*self.group.gather(self.position.skipped))

    def _restore(self) -> None:
        """Resume from the newest intact checkpoint, if there is one."""
        self.channel.report("loading")
        restored = self.checkpointer.load_latest()
        if restored is not None:
            self._load(restored)
            log.info("resumed at step %d/%d", self.position.step, self.steps)
        if self.group.leads:
            self.retention.observe(*self.run.rounds())
            self.checkpointer.pinned = self.retention.pinned(self.position.rounds_closed)
        if self.job.training.on_divergence == "rewind" and self.position.step == 0:
            self._save("start")

    def _load(self, restored: Restored) -> None:
        """Load the state. Random generators come last, because loading the rest may draw from them."""
        state = restored.state
        self.position = Position(state["step"], state["rounds_closed"], set(state["skipped"]), state["rewinds"])
        self.replica.load_state_dict(state)
        self.meter.load_state_dict(state["meter"])
        self.epoch_losses.load_state_dict(state["epoch_losses"])
        self.monitor.load_state_dict(state["watch"])
        self._saved_step, self._saved_at = self.position.step, self.clock()
        if self.group.rank < len(state["rng"]):
            rng.restore(state["rng"][self.group.rank])

    def _rewind(self, divergence: DivergenceError) -> None:
        """Return to the last round's end. Raises ``divergence`` if the job allows no rewind, or no further one."""
        training, rewinds, round_start = self.job.training, self.position.rewinds, self._round_start
        if training.on_divergence == "fail":
            raise divergence
        if len(rewinds) == training.divergence.max_rewinds:
            raise divergence.after(len(rewinds)) from divergence
        rewind = {"round": self.position.rounds_closed + 1, "step": divergence.step, "reason": str(divergence)}
        if self.group.leads:
            self.saver.drain()
            self.checkpointer.discard_newer(than=round_start)
        self.group.any(flag=False)  # a barrier: no process may load before the leading one has deleted checkpoints
        restored = self.checkpointer.load_upto(round_start)
        if restored is None:
            raise divergence
        self._load(restored)
        self.position.rewinds = [*rewinds, rewind | {"to_step": self.position.step}]
        log.warning(
            "%s: rewound to step %d, continuing with %g times the learning rate (rewind %d of at most %d)",
            divergence,
            self.position.step,
            self._lr_scale,
            len(self.position.rewinds),
            training.divergence.max_rewinds,
        )

    @property
    def _round_start(self) -> int:
        """Step at which the current round began: the last one whose state is known to be good."""
        return self.position.rounds_closed * self.steps_per_round


def _finite(values: Mapping[Any, float | None]) -> dict[str, float | None]:
    """Replace values that are not finite by None: JSON has none, and a fresh network's validation loss may be one."""
    return {str(name): value if value is not None and math.isfinite(value) else None for name, value in values.items()}
