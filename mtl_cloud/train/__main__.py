"""The trainer process: ``python -m mtl_cloud.train``, started by the supervisor in the container.

It reads its job from the run record, trains, and exits with one of ``TrainerExit`` or with the exit code of the error
that it names in the scratch folder.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Literal

import torch

from mtl_cloud.clock import Clock
from mtl_cloud.errors import MtlCloudError, StorageError, TrainingError, WorkerDiedError
from mtl_cloud.jobspec.load import job_from_json, relocate
from mtl_cloud.names import ENV_ATTEMPT, ENV_HANG_S, ENV_INPUTS, ENV_RUN_ID, ENV_STORAGE, TrainerExit
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.scratch import Failure, Scratch
from mtl_cloud.storage import open_storage
from mtl_cloud.storage.retrying import RetryingStorage
from mtl_cloud.train.build import build_trainer, open_data, wants_cuda
from mtl_cloud.train.distributed import join_group

log = logging.getLogger("mtl_cloud.train")

_STORAGE_PATIENCE_S = 900.0
"""Time to retry failing storage requests: about as long as a new attempt takes to get back to the same step. Uploads
are retried while training continues; a failing read of training data stalls it."""


def main() -> int:
    """Run one trainer process of an attempt. Returns its exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it prints a table of its own
    scratch = Scratch.from_environ(os.environ)
    try:
        return _train(scratch)
    except torch.OutOfMemoryError as error:
        return _fail(scratch, _out_of_memory(error))
    except MtlCloudError as error:
        return _fail(scratch, error)


def _train(scratch: Scratch) -> int:
    run = RunRecord(_connect(os.environ[ENV_STORAGE]), os.environ[ENV_RUN_ID])
    job = job_from_json(run.spec_json(), source=run.paths.spec_json)
    job = relocate(job, json.loads(os.environ.get(ENV_INPUTS, "{}")))
    group = join_group(cuda=wants_cuda(job))
    if not group.leads:
        logging.getLogger().setLevel(logging.WARNING)
    try:
        attempt = int(os.environ[ENV_ATTEMPT])
        data = open_data(job, connect=_connect)
        trainer = build_trainer(job, data, run, attempt=attempt, group=group, scratch=scratch)
        trainer.channel.listen(hang_s=float(os.environ[ENV_HANG_S]) if ENV_HANG_S in os.environ else None)
        return TrainerExit.DONE if trainer.fit() else TrainerExit.STOPPED
    finally:
        group.leave()


def _connect(url: str) -> RetryingStorage:
    return RetryingStorage(open_storage(url), patience_s=_STORAGE_PATIENCE_S, clock=Clock())


def _out_of_memory(error: torch.OutOfMemoryError) -> TrainingError:
    return TrainingError(
        f"the GPU is out of memory: {str(error).splitlines()[0]}",
        hint="lower training.batch_size or training.image_size, use precision: bf16, or an instance with a larger GPU",
    )


def _fail(scratch: Scratch, error: MtlCloudError) -> int:
    """Write the failure for the supervisor, which may not see this process's exit code through torchrun."""
    log.error("error: %s%s", error, f"\nhint: {error.hint}" if error.hint else "")
    kind: Literal["user", "machine"] = "machine" if isinstance(error, StorageError | WorkerDiedError) else "user"
    scratch.write_failure(Failure(exit_code=error.exit_code, message=str(error), hint=error.hint, kind=kind))
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
