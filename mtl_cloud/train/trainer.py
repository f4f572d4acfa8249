"""The story of a training run: restore, step, close rounds, save, stop when asked.

The order of events is chosen so that a kill at any instant loses only the steps since the last commit. At a round's end
the state is saved first, then validation runs, then the round's record is written. The save is committed behind the
loop's back, before or after the record. A run killed with the state committed and the record not finds on its return
that the round is still open, and validates again; one killed the other way round trains the round's last steps again.
Both come to the same outcome.

Where training diverges and the job says ``rewind``, it goes back to the last round's end (before that: to the job's
beginning) and on from there at a lower learning rate. Everything that decides this (the losses, where a round ends) is
the same however often a run was killed, so the way on is too.
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
from mtl_cloud.train.control import Channel
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.multi_scale import input_size
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.divergence import DivergenceError, DivergenceWatch, require_finite
from mtl_cloud.train.evaluate import Validation, validate
from mtl_cloud.train.meters import LossMeter, RoundMeter
from mtl_cloud.train.optim.optimizer import learning_rate
from mtl_cloud.train.samples import draw_samples
from mtl_cloud.train.tasks.base import TaskHead
from mtl_cloud.train.tensorboard import EventLog
from mtl_cloud.train.train_step import Learner

__all__ = ["Position", "Trainer"]

log = logging.getLogger(__name__)

_LOOK_EVERY = 50
"""Steps whose losses are looked at together on a device that one would have to wait for."""


@dataclass
class Position:
    """Where a run stands. ``step`` counts optimizer steps from the job's beginning."""

    step: int = 0
    rounds_closed: int = 0
    skipped: set[str] = field(default_factory=set)
    """Keys of the damaged samples met so far."""
    rewinds: list[dict[str, Any]] = field(default_factory=list)
    """As ``RoundRecord.rewinds``, of the whole job."""


@dataclass
class Trainer:
    """One process's part in a run. Built by ``mtl_cloud.train.build``; ``fit`` does the rest."""

    job: JobSpec
    run: RunRecord
    attempt: int
    group: ProcessGroup
    channel: Channel
    checkpointer: Checkpointer
    events: EventLog
    learner: Learner
    training_batches: Callable[[int], Iterator[Batch]]
    """This process's share of the batches from a step on."""
    step_tasks: Callable[[int], tuple[Task, ...] | None]
    """The tasks whose sub-networks a step runs; None for all."""
    validation_batches: Callable[[], Iterator[Batch]]
    sample_batch: Callable[[], Batch]
    """The few validation images that are drawn after each round."""
    classes: Mapping[Task, tuple[str, ...]]
    """Of every task that the network has an output for."""
    steps_per_epoch: int
    usd_per_hour: float | None
    clock: Callable[[], float] = time.monotonic
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.meter = RoundMeter(tuple(self.heads), self.group.device)
        self.epoch_losses = LossMeter(tuple(self.heads), self.group.device)
        look_every = 1 if self.group.device.type == "cpu" else _LOOK_EVERY
        self.watch = DivergenceWatch(tuple(self.heads), self.job.training.divergence, every_steps=look_every)
        self.saver = AsyncSaver(self.checkpointer)
        self.retention = Retention(self.job, self.steps_per_round)
        self._saved_step, self._saved_at = -1, self.clock()

    # --- the story ---------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to the end of the last round. False when asked to stop before; the state is committed then."""
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
        """The bare network."""
        return self.learner.network

    @property
    def heads(self) -> dict[Task, TaskHead]:
        return self.learner.heads

    @property
    def steps_per_round(self) -> int:
        return self.job.training.epochs_per_round * self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Of the whole job."""
        return self.job.training.rounds * self.steps_per_round

    def _train(self) -> None:
        """To the end, or until asked to stop; where training diverges, once more as the job allows."""
        while True:
            try:
                return self._go_on()
            except DivergenceError as divergence:
                self._rewind(divergence)

    def _go_on(self) -> None:
        """To the end, or until asked to stop. Raises ``DivergenceError`` before a diverged state is saved."""
        stopped = self._close_round()
        self.learner.train_mode()
        for batch, wait_s in self._batches():
            if stopped:
                break
            self._step(batch, wait_s)
            self._close_epoch()
            stopped = self._close_round() or self._stop_wished()
            if stopped or self._save_is_due():
                self._save("stop" if stopped else "time")

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Each batch with the seconds that the loop waited for it."""
        batches = self.training_batches(self.position.step) if self.position.step < self.steps else iter(())
        while True:
            asked_at = self.clock()
            batch = next(batches, None)
            if batch is None:
                return
            yield batch, self.clock() - asked_at

    def _stop_wished(self) -> bool:
        return self.position.step < self.steps and self.group.any(self.channel.stop_wished)

    # --- a step ------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch, wait_s: float) -> None:
        started_at = self.clock()
        training, step = self.job.training, self.position.step
        rate = self._lr_scale * learning_rate(training.schedule, training.optimizer.lr, step=step, steps=self.steps)
        size = input_size(training, step=step, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        losses = self.learner.step(batch, rate=rate, size=size, tasks=self.step_tasks(step))
        self.position.step += 1
        self.position.skipped.update(batch.skipped)
        self.meter.losses.add(*losses)
        self.epoch_losses.add(*losses)
        self.meter.images += len(batch) * self.group.world
        self._report(losses, rate)
        seconds = wait_s + self.clock() - started_at
        self.meter.seconds, self.meter.wait_s = self.meter.seconds + seconds, self.meter.wait_s + wait_s
        self.watch.add(self.position.step, losses)

    @property
    def _lr_scale(self) -> float:
        """What the rewinds so far have left of the learning rate."""
        return self.job.training.divergence.lr_factor ** len(self.position.rewinds)

    # --- words on the way --------------------------------------------------------------------------------------------

    def _report(self, losses: Tensor, rate: float) -> None:
        if not self.channel.report_is_due():
            return
        values = (losses[0] / losses[1].clamp(min=1)).tolist()
        counted = losses[1].tolist()
        newest = {task: value for task, value, n in zip(self.heads, values, counted, strict=True) if n}
        self.channel.report("training", **self._progress(_finite(newest)), learning_rate=rate)

    def _progress(self, losses: Mapping[str, float | None]) -> dict[str, Any]:
        training, step = self.job.training, self.position.step
        rate = self.meter.images_per_s
        left = (self.steps - step) * training.batch_size
        return {
            "round": min(training.rounds, self.position.rounds_closed + 1),
            "rounds": training.rounds,
            "epoch": min(training.rounds * training.epochs_per_round, step // self.steps_per_epoch + 1),
            "epochs": training.rounds * training.epochs_per_round,
            "step": step,
            "steps": self.steps,
            "losses": losses,
            "images_per_s": rate,
            "data_wait": self.meter.data_wait,
            "eta_s": left / rate if rate else None,
        }

    # --- ends of epochs and rounds -----------------------------------------------------------------------------------

    def _close_epoch(self) -> None:
        if self.position.step % self.steps_per_epoch:
            return
        self.watch.look()
        means = self.epoch_losses.means()
        losses = {task: loss for task, loss in means.items() if loss is not None}
        self.learner.weighting.end_epoch(losses)
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
        """Commit, validate and record a round that has just ended; True when asked to stop meanwhile."""
        if self.position.step < (self.position.rounds_closed + 1) * self.steps_per_round:
            return False
        self._save("round")
        started_at = self.clock()
        self.channel.report("validating", **self._progress({}))
        outcome = validate(
            self.learner.judged,
            self.heads,
            self.validation_batches(),
            group=self.group,
            autocast=self.learner.autocast,
            interrupted=self._interrupted,
        )
        if outcome is None:
            return True
        self.position.rounds_closed += 1
        self.position.skipped = self._all_skipped() | outcome.skipped
        self._record(outcome, self.clock() - started_at)
        self.meter.reset()
        self.learner.train_mode()
        return False

    def _interrupted(self) -> bool:
        self.channel.give_sign_of_life()
        return self.channel.stop_wished

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
        return draw_samples(
            self.learner.judged,
            self.heads,
            self.sample_batch(),
            device=self.group.device,
            autocast=self.learner.autocast,
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
            learning_rate=self.learner.optimizer.param_groups[0]["lr"],
            weights={str(task): weight for task, weight in self.learner.weighting.weights().items()},
            sharing=self.learner.judged.sharing_report(),  # type: ignore[operator]  # every network of ours has one
            usd=None if self.usd_per_hour is None else hours * self.usd_per_hour,
            rewinds=[rewind for rewind in self.position.rewinds if rewind["round"] == self.position.rounds_closed],
        )

    # --- state -------------------------------------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        minutes = self.job.checkpoint.every_minutes
        timed = minutes is not None and self.clock() - self._saved_at >= 60 * minutes
        due = not self.saver.is_busy and (self.channel.take_save_wish() or timed)
        # The clocks of several processes differ; the leader's decides. One process needs no agreement.
        return due if self.group.world == 1 else self.group.any(due and self.group.leads)

    def _save(self, reason: str) -> None:
        """Have the state committed, unless this step's already is. Every process takes part."""
        if self._saved_step == self.position.step:
            return
        self.watch.look()
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
            **self.learner.state_dict(),
            "meter": self.meter.state_dict(),
            "epoch_losses": self.epoch_losses.state_dict(),
            "watch": self.watch.state_dict(),
            "rng": self.group.gather(rng.capture()),
        }

    def _all_skipped(self) -> set[str]:
        """Every process's; each has met those of its own share."""
        return set[str]().union(*self.group.gather(self.position.skipped))

    def _restore(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
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
        """Become what was saved. Generators come last: loading may draw from them."""
        state = restored.state
        self.position = Position(state["step"], state["rounds_closed"], set(state["skipped"]), state["rewinds"])
        self.learner.load_state_dict(state)
        self.meter.load_state_dict(state["meter"])
        self.epoch_losses.load_state_dict(state["epoch_losses"])
        self.watch.load_state_dict(state["watch"])
        self._saved_step, self._saved_at = self.position.step, self.clock()
        if self.group.rank < len(state["rng"]):
            rng.restore(state["rng"][self.group.rank])

    def _rewind(self, divergence: DivergenceError) -> None:
        """Go back to the last round's end. Raises ``divergence`` where the job does not allow it, or not once more."""
        training, rewinds, round_start = self.job.training, self.position.rewinds, self._round_start
        if training.on_divergence == "fail":
            raise divergence
        if len(rewinds) == training.divergence.max_rewinds:
            raise divergence.after(len(rewinds)) from divergence
        rewind = {"round": self.position.rounds_closed + 1, "step": divergence.step, "reason": str(divergence)}
        if self.group.leads:
            self.saver.drain()
            self.checkpointer.discard_newer(than=round_start)
        self.group.any(flag=False)  # nobody looks before the leader is done
        restored = self.checkpointer.load_upto(round_start)
        if restored is None:
            raise divergence
        self._load(restored)
        self.position.rewinds = [*rewinds, rewind | {"to_step": self.position.step}]
        log.warning(
            "%s: back to step %d, and on from there with %g times the learning rate (rewind %d of at most %d)",
            divergence,
            self.position.step,
            self._lr_scale,
            len(self.position.rewinds),
            training.divergence.max_rewinds,
        )

    @property
    def _round_start(self) -> int:
        """The step at which the present round began: the last one whose state has proved good."""
        return self.position.rounds_closed * self.steps_per_round


def _finite(values: Mapping[Any, float | None]) -> dict[str, float | None]:
    """JSON knows no infinity, which a fresh network's validation loss may be."""
    return {str(name): value if value is not None and math.isfinite(value) else None for name, value in values.items()}
