"""The EC2 backend: a run is an Auto Scaling group of one, which AWS itself keeps running."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from functools import partial

from mtl_cloud.aws import AwsClients, ClientMaker
from mtl_cloud.clock import Clock
from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.job import Ec2Compute
from mtl_cloud.launch.base import BackendState, RunHandle, Submission, record_of
from mtl_cloud.launch.ec2.group import Group, GroupState
from mtl_cloud.launch.ec2.request import expires_at, requests
from mtl_cloud.launch.ec2.watch import Ec2Watch
from mtl_cloud.names import KEY_BYTES
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.storage import Storage, open_storage

__all__ = ["Ec2Launcher"]


class Ec2Launcher:
    """Runs are groups in the account that the credentials belong to, in the region of each run's plan.

    ``clients`` maps a region to its maker of clients, ``storages`` a URL to its storage.
    ``random_bytes(n)`` makes the groups' keys.
    """

    backend = "ec2"

    def __init__(
        self,
        *,
        clients: Callable[[str], ClientMaker] = AwsClients,
        storages: Callable[[str], Storage] = open_storage,
        clock: Clock | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._clients = clients
        self._storages = storages
        self._clock = clock or Clock()
        self._random_bytes = random_bytes
        self._opened: dict[str, datetime] = {}

    def prepare(self, plan: PlanRecord) -> Submission:
        """The requests without template id and group key, which ``submit`` makes and which are not stored."""
        return Submission(RunHandle.of(plan), {**requests(plan)})

    def submit(self, submission: Submission) -> RunHandle:
        """Send five requests for a new run, and one for a run whose group exists.

        The requests follow from the recorded plan, as the submission shows them.
        """
        run = self._record(submission.handle)
        if run.result() is not None or run.cancel_request() is not None:
            return submission.handle
        plan = run.plan()
        self._require_time(plan)
        group = self._group(plan)
        found = group.find()
        if found is None:
            group.make(partial(requests, plan), key=self._random_bytes(KEY_BYTES).hex())
        if found is None or not found.wanted:
            self._opened[run.run_id] = self._clock.now()
            group.open(requests(plan))
        return submission.handle

    def describe(self, handle: RunHandle) -> BackendState:
        return _state(self._group(self._record(handle).plan()).find())

    def stop(self, handle: RunHandle) -> None:
        """Delete the run's resources, and wait until AWS confirms it: minutes for a large machine."""
        self._group(self._record(handle).plan()).remove()

    def watch(self, handle: RunHandle) -> Ec2Watch:
        """The watch over the run's machines. If this launcher opened the group, earlier activities are ignored."""
        run = self._record(handle)
        return Ec2Watch(run, self._group(run.plan()), self._clock, since=self._opened.get(run.run_id))

    def _group(self, plan: PlanRecord) -> Group:
        return Group(plan.run_id, self._clients(compute_of(plan, Ec2Compute).region), self._clock)

    def _record(self, handle: RunHandle) -> RunRecord:
        return record_of(handle, self._storages)

    def _require_time(self, plan: PlanRecord) -> None:
        expiry = expires_at(plan)
        if self._clock.now() >= expiry:
            raise LaunchError(
                f"{plan.run_id}: the run expired at {expiry:%Y-%m-%d %H:%M} UTC",
                hint="submit the job as a new run, with a larger compute.max_hours",
            )


def _state(group: GroupState | None) -> BackendState:
    if group is None or not (group.wanted or group.instances):
        return BackendState.ENDED
    return BackendState.RUNNING if group.in_service else BackendState.PENDING
