"""The launcher of ``backend: sagemaker``.

A training job that has ended never runs again, and its name is taken for ever. So a run is a series of jobs, named
``mtl-cloud-<run id>``, ``…--2``, ``…--3``: whoever submits asks for the newest, adopts it while it lives, and makes the
next one when it has ended before the run. Two who do so at once ask for the same name, and one of them is told that it
is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from mtl_cloud.aws import AwsClients, ClientMaker
from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.base import BackendState, RunHandle, Submission
from mtl_cloud.launch.sagemaker.jobs import Job, TrainingJobs
from mtl_cloud.launch.sagemaker.logs import log_lines
from mtl_cloud.launch.sagemaker.request import job_name, request, sagemaker_compute
from mtl_cloud.records import PlanRecord
from mtl_cloud.run_record import RunRecord
from mtl_cloud.storage import open_storage

__all__ = ["SageMakerLauncher"]


class SageMakerLauncher:
    """Runs are training jobs of the account that the credentials belong to, in the region of each run's plan.

    ``clients`` maps a region to its maker of clients.
    """

    backend = "sagemaker"

    def __init__(self, *, clients: Callable[[str], ClientMaker] = AwsClients) -> None:
        self._clients = clients

    def prepare(self, plan: PlanRecord) -> Submission:
        return Submission(RunHandle.of(plan), {"create_training_job": request(plan)})

    def submit(self, submission: Submission) -> RunHandle:
        run = _record_of(submission.handle)
        if run.result() is not None:
            return submission.handle
        jobs = self._jobs(run.plan())
        known = jobs.of_run(run.run_id)
        if not known or known[-1].state is BackendState.ENDED:
            wanted = cast("dict[str, object]", submission.request["create_training_job"])
            jobs.create({**wanted, "TrainingJobName": job_name(run.run_id, len(known) + 1)})  # type: ignore[dict-item]
        return submission.handle

    def describe(self, handle: RunHandle) -> BackendState:
        return self.jobs(handle)[-1].state

    def stop(self, handle: RunHandle) -> None:
        """Ask SageMaker to end the job. It gives the trainer two minutes to save."""
        jobs = self._jobs(_record_of(handle).plan())
        for job in jobs.of_run(handle.run_id)[-1:]:
            if job.state is not BackendState.ENDED:
                jobs.stop(job.name)

    # --- what SageMaker knows beside ---

    def jobs(self, handle: RunHandle) -> list[Job]:
        """All training jobs of the run, with their states, reasons and billed seconds; the newest is the last.

        Raises ``LaunchError`` for a run that SageMaker was never given.
        """
        found = self._jobs(_record_of(handle).plan()).of_run(handle.run_id)
        if not found:
            raise LaunchError(f"{handle.run_id}: was never submitted to SageMaker", hint="mtl-cloud submit --help")
        return found

    def log_lines(self, handle: RunHandle) -> Iterator[str]:
        """What all containers of all jobs printed, as CloudWatch keeps it."""
        logs = self._region(_record_of(handle).plan())("logs")
        for job in self.jobs(handle):
            yield from log_lines(logs, job.name)

    def _jobs(self, plan: PlanRecord) -> TrainingJobs:
        return TrainingJobs(self._region(plan))

    def _region(self, plan: PlanRecord) -> ClientMaker:
        return self._clients(sagemaker_compute(plan).region)


def _record_of(handle: RunHandle) -> RunRecord:
    run = RunRecord(open_storage(handle.storage), handle.run_id)
    if not run.exists():
        raise LaunchError(f"{handle.run_id}: there is no such run in {handle.storage}")
    return run
