"""The story of a training run: restore, step, close rounds, save, stop when asked.

The order of events is chosen so that a kill at any instant loses only the steps since the last commit. At a round's end
the state is saved first, then validation runs, then the round's record is written. The save is committed behind the
loop's back, before or after the record. A run killed with the state committed and the record not finds on its return
that the round is still open, and validates again; one killed the other way round trains the round's last steps again.
Both come to the same outcome.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from mtl_cloud.errors import TrainingError
from mtl_cloud.records import RoundRecord, RoundSamples
from mtl_cloud.run_record import RunRecord
from mtl_cloud.spec.job import JobSpec
from mtl_cloud.tasks import HEADLINE, Task
from mtl_cloud.train import rng
from mtl_cloud.train.backward import Backward
from mtl_cloud.train.batch import Batch
from mtl_cloud.train.channel import Channel
from mtl_cloud.train.checkpoint import Checkpointer
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.evaluate import Validation, draw_samples, forward, loss_terms, sums, validate
from mtl_cloud.train.events import EventLog
from mtl_cloud.train.meters import LossMeter, RoundMeter
from mtl_cloud.train.multi_scale import input_size, resize
from mtl_cloud.train.optim import learning_rate, set_learning_rate
from mtl_cloud.train.saver import Saver
from mtl_cloud.train.tasks.base import LossTerm, TaskHead
from mtl_cloud.train.transforms import apply_color
from mtl_cloud.train.weighting import Weighting

__all__ = ["Position", "Trainer"]

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Where a run stands. ``step`` counts optimizer steps from the job's beginning."""

    step: int = 0
    rounds_closed: int = 0
    skipped: set[str] = field(default_factory=set)
    """Keys of the damaged samples met so far."""


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
    network: nn.Module
    """The bare network."""
    model: nn.Module
    """What a step calls: the network, or its data-parallel wrapper."""
    heads: dict[Task, TaskHead]
    weighting: Weighting
    backward: Backward
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]
    training_batches: Callable[[int], Iterator[Batch]]
    """This process's share of the batches from a step on."""
    step_tasks: Callable[[int], tuple[Task, ...] | None]
    """The tasks whose sub-networks a step runs; None for all."""
    validation_batches: Callable[[], Iterator[Batch]]
    sample_batch: Callable[[], Batch]
    """The few validation images that are drawn after each round."""
    steps_per_epoch: int
    usd_per_hour: float | None
    clock: Callable[[], float] = time.monotonic
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.meter = RoundMeter(tuple(self.heads), self.group.device)
        self.epoch_losses = LossMeter(tuple(self.heads), self.group.device)
        self.saver = Saver(self.checkpointer)
        self._saved_step, self._saved_at = -1, self.clock()

    # --- the story ---------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to the end of the last round. False when asked to stop before; the state is committed then."""
        try:
            self._restore()
            self._go_on()
            self.channel.report("stopping", **self._progress({}))
            self.saver.drain()
        finally:
            self.saver.close()
        return self.position.rounds_closed == self.job.training.rounds

    @property
    def steps_per_round(self) -> int:
        return self.job.training.epochs_per_round * self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Of the whole job."""
        return self.job.training.rounds * self.steps_per_round

    def _go_on(self) -> None:
        """To the end, or until asked to stop."""
        stopped = self._close_round()
        self._train_mode()
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
        rate = learning_rate(
            self.job.training.schedule, self.job.training.optimizer.lr, step=self.position.step, steps=self.steps
        )
        set_learning_rate(self.optimizer, rate)
        losses = self._backward(self._forward(batch.to(self.group.device)))
        self._update()
        self.position.step += 1
        self.position.skipped.update(batch.skipped)
        self.meter.losses.add(*losses)
        self.epoch_losses.add(*losses)
        self.meter.images += len(batch) * self.group.world
        self._report(losses, rate)
        seconds = wait_s + self.clock() - started_at
        self.meter.seconds, self.meter.wait_s = self.meter.seconds + seconds, self.meter.wait_s + wait_s

    def _train_mode(self) -> None:
        self.model.train()
        if self.job.training.norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  # the only common base
                    module.eval()

    def _forward(self, batch: Batch) -> list[LossTerm]:
        images = batch.images.float() / 255
        if batch.color is not None:
            images = apply_color(images, batch.color)
        size = input_size(
            self.job.training, step=self.position.step, steps=self.steps, steps_per_epoch=self.steps_per_epoch
        )
        images, batch = resize(images, batch, size)
        if self.group.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        tasks = self.step_tasks(self.position.step)
        return loss_terms(self.heads, forward(self.model, images, self.autocast, tasks), batch)

    def _backward(self, terms: Sequence[LossTerm]) -> Tensor:
        """Fill the gradients; returns all processes' totals and counts, [2, tasks].

        Every process sees the global batch's losses as values, so that stateful weightings agree, while the gradient
        is that of its own samples.
        """
        totals, counts = reduced = self.group.sum(sums(terms))
        # Not stacked: the graph of a stack would connect each loss to all tasks' parameters.
        losses = [
            (term.total + (total - term.total).detach()) / count.clamp(min=1)
            for term, total, count in zip(terms, totals, counts, strict=True)
        ]
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(losses, counts > 0)
        return reduced

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.job.training.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.job.training.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    # --- words on the way --------------------------------------------------------------------------------------------

    def _report(self, losses: Tensor, rate: float) -> None:
        if not self.channel.report_is_due():
            return
        values = (losses[0] / losses[1].clamp(min=1)).tolist()
        counted = losses[1].tolist()
        newest = {task: value for task, value, n in zip(self.heads, values, counted, strict=True) if n}
        self._refuse_nonsense(newest)
        self.channel.report("training", **self._progress(newest), learning_rate=rate)

    def _refuse_nonsense(self, losses: dict[Task, float]) -> None:
        for task, loss in losses.items():
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the {task} loss is {loss} at step {self.position.step}",
                    hint="lower training.optimizer.lr, lengthen schedule.warmup_steps, or use precision: fp32",
                )

    def _progress(self, losses: dict[Task, float]) -> dict[str, Any]:
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
        means = self.epoch_losses.means()
        self._refuse_nonsense({task: loss for task, loss in means.items() if loss is not None})
        self.weighting.end_epoch({task: loss for task, loss in means.items() if loss is not None})
        self.epoch_losses.reset()
        words = "  ".join(f"{task} {loss:.4g}" for task, loss in means.items() if loss is not None)
        log.info(
            "epoch %d/%d  loss %s  | %.1f images/s, waiting for data %.0f %%",
            self.position.step // self.steps_per_epoch,
            self.job.training.rounds * self.job.training.epochs_per_round,
            words,
            self.meter.images_per_s,
            100 * self.meter.data_wait,
        )

    def _close_round(self) -> bool:
        """Commit, validate and record a round that has just ended; True when asked to stop meanwhile."""
        if self.position.step < (self.position.rounds_closed + 1) * self.steps_per_round:
            return False
        self._save("round")
        started_at = self.clock()
        self.channel.report("validating", **self._progress({}))
        outcome = validate(
            self.network,
            self.heads,
            self.validation_batches(),
            group=self.group,
            autocast=self.autocast,
            interrupted=self._interrupted,
        )
        if outcome is None:
            return True
        self.position.rounds_closed += 1
        self.position.skipped = self._all_skipped() | outcome.skipped
        self._record(outcome, self.clock() - started_at)
        self.meter.reset()
        self._train_mode()
        return False

    def _interrupted(self) -> bool:
        self.channel.give_sign_of_life()
        return self.channel.stop_wished

    def _record(self, outcome: Validation, validation_s: float) -> None:
        if not self.group.leads:
            return
        record = self._round_record(outcome, validation_s)
        self.run.write_samples(self._samples(record.round), attempt=self.attempt)
        self.events.write(record)
        self.run.write_round(record)
        log.info("round %d/%d done in %.0f s", record.round, self.job.training.rounds, record.seconds + validation_s)
        for task, values in record.metrics.items():
            first = {HEADLINE[task]: values.get(HEADLINE[task]), **values}  # type: ignore[index]
            words = " ".join(f"{name}={value:.4g}" for name, value in first.items() if value is not None)
            log.info("metrics round=%d task=%s %s", record.round, task, words)

    def _samples(self, round_number: int) -> RoundSamples:
        return draw_samples(
            self.network,
            self.heads,
            self.sample_batch(),
            device=self.group.device,
            autocast=self.autocast,
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
            learning_rate=self.optimizer.param_groups[0]["lr"],
            weights={str(task): weight for task, weight in self.weighting.weights().items()},
            sharing=self.network.sharing_report(),  # type: ignore[operator]  # every network of ours has one
            usd=None if self.usd_per_hour is None else hours * self.usd_per_hour,
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
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "weighting": self.weighting.state_dict(),
            "meter": self.meter.state_dict(),
            "epoch_losses": self.epoch_losses.state_dict(),
            "rng": self.group.gather(rng.capture()),
        }

    def _all_skipped(self) -> set[str]:
        """Every process's; each has met those of its own share."""
        return set[str]().union(*self.group.gather(self.position.skipped))

    def _restore(self) -> None:
        """Go on from the newest good checkpoint, if there is one. Generators come last: loading may draw from them."""
        self.channel.report("loading")
        restored = self.checkpointer.load_latest()
        if restored is None:
            return
        state = restored.state
        self.position = Position(state["step"], state["rounds_closed"], set(state["skipped"]))
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.weighting.load_state_dict(state["weighting"])
        self.meter.load_state_dict(state["meter"])
        self.epoch_losses.load_state_dict(state["epoch_losses"])
        self._saved_step = self.position.step
        if self.group.rank < len(state["rng"]):
            rng.restore(state["rng"][self.group.rank])
        log.info("resumed at step %d/%d", self.position.step, self.steps)


def _finite(values: Mapping[Any, float | None]) -> dict[str, float | None]:
    """JSON knows no infinity, which a fresh network's validation loss may be."""
    return {str(name): value if value is not None and math.isfinite(value) else None for name, value in values.items()}
