"""A launcher that starts nothing, for tests of code that uses launchers. Public: your tests may use it, too."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.base import BackendState, RunHandle, Submission
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["MemoryLauncher"]


class MemoryLauncher:
    """Replays a list of states: each ``describe`` of a run returns the next one; the last one repeats."""

    backend = "memory"

    def __init__(self, script: Sequence[BackendState] = (BackendState.PENDING, BackendState.RUNNING)) -> None:
        self.submissions: list[Submission] = []
        """The submissions, each run once, oldest first."""
        self._script = tuple(script)
        self._scripts: dict[str, list[BackendState]] = {}

    def prepare(self, plan: PlanRecord) -> Submission:
        return Submission(RunHandle.of(plan), {"command": list(plan.command)})

    def submit(self, submission: Submission) -> RunHandle:
        run_id = submission.handle.run_id
        if run_id not in self._scripts:
            self._scripts[run_id] = list(self._script)
            self.submissions.append(submission)
        return submission.handle

    def describe(self, handle: RunHandle) -> BackendState:
        script = self._script_of(handle)
        return script.pop(0) if len(script) > 1 else script[0]

    def stop(self, handle: RunHandle) -> None:
        self._script_of(handle)[:] = [BackendState.ENDED]

    def _script_of(self, handle: RunHandle) -> list[BackendState]:
        if handle.run_id not in self._scripts:
            raise LaunchError(f"{handle.run_id}: was never submitted to the backend {self.backend!r}")
        return self._scripts[handle.run_id]
