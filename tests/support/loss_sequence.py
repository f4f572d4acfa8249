"""The batches and losses of a training run, step by step: ``python loss_sequence.py JOB.json FOLDER`` prints JSON.

A process of its own, because loader workers have the environment that their fork server started in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from trainer_harness import ALONE, digest, facts_of, open_attempt

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.train.__main__ import _connect
from mtl_cloud.train.build import open_data
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.trainer import Trainer

__all__ = ["sequence_of", "sequence_of_process"]

Sequence = dict[str, Any]
"""``keys`` and ``losses`` of every step, bit for bit; ``rounds``; ``network``, the digest of the final network."""


def sequence_of(job: JobSpec, folder: Path) -> Sequence:
    """Train the job in this process on one thread; ``folder`` is its scratch folder."""
    torch.set_num_threads(1)
    data = open_data(job, connect=_connect)
    trainer = open_attempt(job, folder, storage=MemoryStorage(), attempt=1, data=data, group=ALONE)
    keys, losses = _watched_keys(trainer), _watched_losses(trainer)
    assert trainer.fit()
    rounds = [list(map(repr, facts_of(record))) for record in trainer.run.rounds()]  # type: ignore[call-overload]
    return {"keys": keys, "losses": losses, "rounds": rounds, "network": digest(trainer.network)}


def sequence_of_process(job: JobSpec, folder: Path) -> Sequence:
    """The same in a child process with this environment."""
    (folder / "job.json").write_text(job.model_dump_json())
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, __file__, str(folder / "job.json"), str(folder)]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
    sequence: Sequence = json.loads(done.stdout.splitlines()[-1])
    return sequence


def _watched_keys(trainer: Trainer) -> list[list[str]]:
    """The keys of each step's batch, as steps are taken."""
    keys: list[list[str]] = []
    batches = trainer.training_batches

    def watched(start: int) -> Iterator[Batch]:
        for batch in batches(start):
            keys.append(list(batch.keys))
            yield batch

    trainer.training_batches = watched
    return keys


def _watched_losses(trainer: Trainer) -> list[str]:
    """The sums and counts of each step's losses, as hexadecimal bytes."""
    losses: list[str] = []
    step = trainer.replica.step

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = step(*arguments, **options)
        losses.append(loss.detach().numpy().tobytes().hex())
        return loss

    trainer.replica.step = watched  # type: ignore[method-assign]
    return losses


if __name__ == "__main__":
    print(json.dumps(sequence_of(JobSpec.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))))
