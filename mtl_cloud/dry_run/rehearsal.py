"""Run the small job with a kill and an interruption, and once undisturbed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mtl_cloud.clock import Clock
from mtl_cloud.container.engine import Engine
from mtl_cloud.dry_run.imds import SpotNotice
from mtl_cloud.dry_run.request import RequestCheck, check_request
from mtl_cloud.errors import DatasetError, EngineError, LaunchError, StorageError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.json_types import Json
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.docker import DockerLauncher
from mtl_cloud.launch.submit import submit_run
from mtl_cloud.names import container_name
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.storage import open_storage

__all__ = ["Evidence", "Rehearsal"]

_LOOK_S = 0.1
_LONGEST_S = 1800.0
_UNLIMITED = {"max_train_samples": None, "max_val_samples": None}


@dataclass
class Evidence:
    """The results of a rehearsal. None and empty values: that stage was not reached."""

    request: RequestCheck | None = None
    """The check of the whole job's request."""
    image: str | None = None
    """The image, if it was found."""
    probe: dict[str, Json] | None = None
    probe_error: tuple[int, str] | None = None
    """Exit code (``mtl_cloud.errors``) and message of a failed probe."""
    start_error: str | None = None
    """The reason if the run could not be created or started."""
    run: RunRecord | None = None
    twin: RunRecord | None = None
    """The same job, undisturbed."""
    stop_s: float | None = None
    """Seconds from the notice to the end of the container."""
    out_of_memory: bool = False
    containers: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """``job`` is the slice of ``whole`` that ``plan`` is for. ``notice`` None: the interruption is a SIGTERM."""

    whole: JobSpec
    job: JobSpec
    plan: PlanRecord
    launcher: DockerLauncher
    engine: Engine
    notice: SpotNotice | None
    say: Callable[[str], None]
    clock: Clock = field(default_factory=Clock)

    def run(self) -> Evidence:
        """Run all stages, even after a failed check. Raises the engine's own errors only. Removes its containers."""
        evidence = Evidence(request=check_request(self.whole, now=self.clock.now()))
        try:
            self._run_all(evidence)
        except EngineError:
            raise
        except (LaunchError, StorageError) as error:
            evidence.start_error = str(error)
        finally:
            self._remove(evidence.containers)
        return evidence

    def _run_all(self, evidence: Evidence) -> None:
        image = self.plan.image
        if image is None or self.engine.inspect("image", image) is None:
            return
        evidence.image = image
        self.say("reading the data, counting memory and work")
        self._probe(image, evidence)
        if evidence.probe is None:
            return
        evidence.run = self._start(self.plan, evidence, "first attempt")
        if not self._kill_after_a_round(evidence.run, evidence):
            return
        self._start(self.plan, evidence, "second attempt, from the checkpoint")
        self._interrupt(evidence.run, evidence)
        self._start(self.plan, evidence, "third attempt, to the end")
        self._wait(evidence.run, lambda: False)
        twin = replace(self.plan, run_id=f"{self.plan.run_id}-twin")
        evidence.twin = self._start(twin, evidence, "the same, undisturbed")
        self._wait(evidence.twin, lambda: False)

    def _probe(self, image: str, evidence: Evidence) -> None:
        absent = [place for place in self.plan.inputs if Path(place).is_absolute() and not Path(place).exists()]
        if absent:
            evidence.probe_error = DatasetError.exit_code, f"{absent[0]}: does not exist"
            return
        name = container_name(f"{self.plan.run_id}-probe")
        evidence.containers.append(name)
        around = self.launcher.surroundings(replace(self.plan, storage=""))
        options = ["--rm", "--interactive", "--name", name, *around]
        command = ["--entrypoint", "python", image, "-m", "mtl_cloud.train.probe"]
        done = self.engine.run_to_end(*options, *command, given=job_to_json(self._probed()))
        if done.returncode:
            evidence.probe_error = done.returncode, (done.stderr.strip().splitlines() or ["no output"])[-1]
        else:
            evidence.probe = json.loads(done.stdout.splitlines()[-1])

    def _probed(self) -> JobSpec:
        """The whole job, on the local data."""
        asked = {(one.name, one.uri): one for one in self.whole.datasets}
        datasets = tuple(
            asked.get((one.name, one.uri)) or one.model_copy(update=_UNLIMITED) for one in self.job.datasets
        )
        return self.whole.model_copy(update={"dataset": datasets, "compute": self.job.compute})

    def _start(self, plan: PlanRecord, evidence: Evidence, what: str) -> RunRecord:
        self.say(what)
        evidence.containers.append(container_name(plan.run_id))
        storage = open_storage(plan.storage)
        submit_run(plan, spec_yaml=b"", spec_json=job_to_json(self.job), storage=storage, launcher=self.launcher)
        return RunRecord(storage, plan.run_id)

    def _kill_after_a_round(self, run: RunRecord, evidence: Evidence) -> bool:
        """Kill the container without notice once a round is committed. False: the run ended before."""
        name = container_name(run.run_id)
        if not self._wait(run, lambda: bool(run.rounds()) and bool(run.checkpoints())):
            found = self.engine.inspect("container", name)
            evidence.out_of_memory = bool(found and found["State"].get("OOMKilled"))
            return False
        self.engine.ask("kill", name)
        return True

    def _interrupt(self, run: RunRecord, evidence: Evidence) -> None:
        """Issue the notice once the newest attempt is training; measure the time until its container ends."""
        number = run.owner() or 1
        if not self._wait(run, lambda: (beat := run.heartbeat(number)) is not None and beat.phase != "starting"):
            return
        started = self.clock.monotonic()
        if self.notice is None:
            self.engine.ask("kill", "--signal", "TERM", container_name(run.run_id))
        else:
            self.notice.give()
        self._wait(run, lambda: False)
        evidence.stop_s = self.clock.monotonic() - started
        if self.notice is not None:
            self.notice.withdraw()

    def _wait(self, run: RunRecord, condition: Callable[[], bool]) -> bool:
        """Wait for the condition. False if the container ended, or half an hour passed, before it held."""
        handle, end = RunHandle.of(run.plan()), self.clock.monotonic() + _LONGEST_S
        while not condition():
            if self.launcher.describe(handle) is BackendState.ENDED or self.clock.monotonic() > end:
                return condition()
            self.clock.sleep(_LOOK_S)
        return True

    def _remove(self, containers: list[str]) -> None:
        for name in dict.fromkeys(containers):
            if self.engine.inspect("container", name) is not None:
                self.engine.ask("rm", "--force", name)
