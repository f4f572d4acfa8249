"""The launcher of ``backend: sagemaker``.

A training job that has ended never runs again, and its name cannot be reused. So a run is a series of jobs, named
``mtl-cloud-<run id>``, ``…--2``, ``…--3``: ``submit`` looks for the newest job, adopts it while it runs, and creates
the next one if it ended before the run. Two concurrent submits use the same name, so SageMaker refuses one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mtl_cloud.aws import AwsClients, ClientMaker
from mtl_cloud.clock import Clock
from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.job import SageMakerCompute
from mtl_cloud.launch.base import BackendState, RunHandle, Submission, record_of
from mtl_cloud.launch.sagemaker.jobs import Job, TrainingJobs
from mtl_cloud.launch.sagemaker.logs import log_lines
from mtl_cloud.launch.sagemaker.request import job_name, request
from mtl_cloud.launch.sagemaker.watch import SageMakerWatch
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.runs.charges import Charge
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["SageMakerLauncher"]

_OWN_END_S = 60.0
_STOP_S = 600.0
_LOOK_S = 1.0


class SageMakerLauncher:
    """Runs are training jobs of the account that the credentials belong to, in the region of each run's plan.

    ``clients`` maps a region to its maker of clients.
    """

    backend = "sagemaker"

    def __init__(self, *, clients: Callable[[str], ClientMaker] = AwsClients, clock: Clock | None = None) -> None:
        self._clients = clients
        self._clock = clock or Clock()

    def prepare(self, plan: PlanRecord) -> Submission:
        return Submission(RunHandle.of(plan), {"create_training_job": request(plan)})

    def submit(self, submission: Submission) -> RunHandle:
        run = record_of(submission.handle)
        if run.result() is not None:
            return submission.handle
        plan = run.plan()
        jobs = self._jobs(plan)
        known = jobs.of_run(run.run_id)
        if not known or known[-1].state is BackendState.ENDED:
            jobs.create({**request(plan), "TrainingJobName": job_name(run.run_id, len(known) + 1)})
        return submission.handle

    def describe(self, handle: RunHandle) -> BackendState:
        return self.jobs(handle)[-1].state

    def stop(self, handle: RunHandle) -> None:
        """Stop the job, and return when it has ended: the trainer has two minutes to save.

        The job of a run that is over ends by itself within seconds.
        """
        run = record_of(handle)
        jobs = self._jobs(run.plan())
        if run.result() is not None and self._has_ended(jobs, handle, _OWN_END_S):
            return
        for job in jobs.of_run(handle.run_id)[-1:]:
            if job.state is not BackendState.ENDED:
                jobs.stop(job.name)
        if not self._has_ended(jobs, handle, _STOP_S):
            raise LaunchError(
                f"{handle.run_id}: SageMaker has not stopped the job within {_STOP_S / 60:g} minutes",
                hint="repeat it, or look at the job in SageMaker's console",
            )

    def watch(self, handle: RunHandle) -> SageMakerWatch:
        return SageMakerWatch(record_of(handle), lambda: self.jobs(handle), self._clock)

    def _has_ended(self, jobs: TrainingJobs, handle: RunHandle, within_s: float) -> bool:
        end = self._clock.monotonic() + within_s
        while any(job.state is not BackendState.ENDED for job in jobs.of_run(handle.run_id)[-1:]):
            if self._clock.monotonic() > end:
                return False
            self._clock.sleep(_LOOK_S)
        return True

    # --- jobs, charges and logs ---

    def jobs(self, handle: RunHandle) -> list[Job]:
        """All training jobs of the run, with states, reasons and billed seconds, oldest first.

        Raises ``LaunchError`` for a run that was never submitted to SageMaker.
        """
        found = self._jobs(record_of(handle).plan()).of_run(handle.run_id)
        if not found:
            raise LaunchError(f"{handle.run_id}: was never submitted to SageMaker", hint="mtl-cloud submit --help")
        return found

    def charges(self, handle: RunHandle) -> list[Charge]:
        """SageMaker's charge for each job that has ended: managed spot does not charge for all seconds."""
        plan = record_of(handle).plan()
        bills = ((number, job) for number, job in enumerate(self.jobs(handle), 1) if job.training_s)
        return [_charge(plan, number, job) for number, job in bills]

    def log_lines(self, handle: RunHandle) -> Iterator[str]:
        """The output of all containers of all jobs, from CloudWatch."""
        logs = self._region(record_of(handle).plan())("logs")
        for job in self.jobs(handle):
            yield from log_lines(logs, job.name)

    def _jobs(self, plan: PlanRecord) -> TrainingJobs:
        return TrainingJobs(self._region(plan))

    def _region(self, plan: PlanRecord) -> ClientMaker:
        return self._clients(compute_of(plan, SageMakerCompute).region)


def _charge(plan: PlanRecord, number: int, job: Job) -> Charge:
    price = plan.usd_per_hour  # for all instances together
    return Charge(
        attempt=number,
        instance=job.name,
        machine=job.instance_type,
        zone=None,
        market=compute_of(plan, SageMakerCompute).purchase,
        seconds=float(job.training_s or 0),
        usd_per_hour=None if price is None else price * (1 - (job.spot_saving or 0.0)),
        on_demand_usd_per_hour=price,
        backend="sagemaker",
    )
