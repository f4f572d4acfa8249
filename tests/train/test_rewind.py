"""A run that diverges rewinds to the last round's end and continues at a lower learning rate, as the job allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trainer_harness import small_job

from mtl_cloud.errors import RunTakenOverError, TrainingError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.runs.record import CheckpointId, RunRecord
from mtl_cloud.runs.schema import AttemptRecord
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer, read_checkpoint
from mtl_cloud.train.trainer import Trainer

TrainerMaker = Callable[..., Trainer]


def exploding_job(**training: Any) -> JobSpec:
    """Rounds of two steps, each saved. From step 3 on, in round 2, the learning rate makes training diverge."""
    job = small_job(
        **{
            "rounds": 2,
            "epochs_per_round": 1,
            "max_steps_per_epoch": 2,
            "batch_size": 4,
            "image_size": 32,
            "optimizer": {"lr": 1e38, "clip_norm": None},
            "schedule": {"name": "constant", "warmup_steps": 4, "warmup_power": 137},
            "on_divergence": "rewind",
            **training,
        }
    )
    return job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"every_minutes": 1e-9, "keep": 1})})


def test_a_rewind_restarts_the_round_at_a_lower_learning_rate_and_is_recorded(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(exploding_job(divergence={"lr_factor": 1e-40}))
    assert trainer.fit()
    first, second = trainer.run.rounds()
    (rewind,) = second.rewinds
    assert (rewind["round"], rewind["to_step"]) == (2, 2)
    assert rewind["step"] in {3, 4}
    assert "not finite after step" in rewind["reason"] or "loss is" in rewind["reason"]
    assert first.rewinds == []
    assert (second.step, second.images) == (4, 8)
    assert second.learning_rate == pytest.approx(1e38 * 1e-40)
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())


def test_in_the_first_round_it_goes_back_to_the_beginning(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(exploding_job(schedule={"name": "constant"}, divergence={"lr_factor": 1e-40}, rounds=1))
    assert trainer.fit()
    assert [rewind["to_step"] for rewind in trainer.run.rounds()[0].rewinds] == [0]


def test_after_the_last_rewind_allowed_the_run_fails_with_step_and_reason(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(exploding_job(divergence={"lr_factor": 0.9, "max_rewinds": 2}))
    with pytest.raises(TrainingError, match=r"step \d.*; 2 rewinds did not help") as caught:
        trainer.fit()
    assert "optimizer.lr" in str(caught.value.hint)
    assert len(trainer.position.rewinds) == 2


@pytest.mark.parametrize("policy", ["fail", "rewind"])
def test_no_diverged_state_is_ever_committed(make_trainer: TrainerMaker, policy: str) -> None:
    trainer = make_trainer(exploding_job(on_divergence=policy))
    with pytest.raises(TrainingError):
        trainer.fit()
    committed = trainer.run.checkpoints()
    assert committed
    for checkpoint in committed:
        network = read_checkpoint(trainer.run, checkpoint).state["network"]
        assert all(value.isfinite().all() for value in network.values())


# --- checkpoints after a rewind ---


def claimed(run: RunRecord, number: int) -> Checkpointer:
    run.claim(AttemptRecord(number=number, started_at="15:00", host="h", pid=number, backend="local"))
    return Checkpointer(run, number, keep=9)


def test_a_rewind_deletes_later_checkpoints_and_their_steps_may_be_committed_again() -> None:
    run = RunRecord(MemoryStorage(), "x-1")
    checkpointer = claimed(run, 1)
    for step in (10, 20, 30):
        checkpointer.save({"w": torch.full((3,), float(step))}, step=step, round=0, reason="time")
    checkpointer.discard_newer(than=10)
    assert run.checkpoints() == [CheckpointId(10, 1)]
    checkpointer.save({"w": torch.zeros(3)}, step=20, round=0, reason="time")
    restored = checkpointer.load_upto(25)
    assert restored is not None
    assert torch.equal(restored.state["w"], torch.zeros(3))


def test_an_attempt_that_was_replaced_abandons_nothing() -> None:
    run = RunRecord(MemoryStorage(), "x-1")
    zombie = claimed(run, 1)
    zombie.save({"w": torch.zeros(3)}, step=20, round=0, reason="time")
    claimed(run, 2)
    with pytest.raises(RunTakenOverError):
        zombie.discard_newer(than=0)
    assert run.checkpoints() == [CheckpointId(20, 1)]
