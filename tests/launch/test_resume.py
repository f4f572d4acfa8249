"""A run goes on where it was, or on another backend, as the same training or not at all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from run_harness import FakeClock

from mtl_cloud.errors import CloudError, LaunchError, SpecError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.launch import BackendState, Launcher, RunHandle
from mtl_cloud.launch.resume import changed_training, moved_job, replan, resume_run
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, CancelRecord, ResultRecord
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.testing.launcher import MemoryLauncher

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ON_EC2 = ["compute.instance_type=g5.xlarge", "compute.max_hours=5"]


class Named(MemoryLauncher):
    def __init__(self, backend: str, *script: BackendState) -> None:
        super().__init__(script or (BackendState.RUNNING,))
        self.backend = backend


@pytest.fixture
def job() -> JobSpec:
    compute = {"backend": "local", "max_hours": 9, "max_restarts": 1, "processes": 2}
    dataset = {"name": "voc", "uri": "s3://b/voc"}
    return JobSpec.model_validate({"name": "voc", "dataset": dataset, "compute": compute, "storage": "s3://b/runs"})


@pytest.fixture
def run(job: JobSpec) -> RunRecord:
    run = RunRecord(MemoryStorage("resume"), "voc-1")
    run.create(_plan(job), spec_yaml=b"name: voc", spec_json=job_to_json(job))
    return run


def _plan(job: JobSpec) -> Any:
    return plan_run(job, gather_facts(job), run_id="voc-1", now=NOW)


def _resume(run: RunRecord, job: JobSpec, *launchers: Launcher, clock: FakeClock | None = None) -> None:
    by_name = {launcher.backend: launcher for launcher in launchers}
    plan = replan(run, job, gather_facts, now=NOW)
    resume_run(run, job, plan, get_launcher=by_name.__getitem__, clock=clock or FakeClock())


def test_without_a_change_the_present_plan_is_submitted_again(run: RunRecord) -> None:
    job, local = moved_job(run, backend=None), Named("local")
    _resume(run, job, local)
    assert (run.moves(), run.plan()) == (0, _plan(job))
    assert len(local.submissions) == 1


def test_another_backend_gets_a_compute_section_of_its_own_and_the_limits(run: RunRecord) -> None:
    moved = moved_job(run, backend="ec2", overrides=["compute.instance_type=g5.xlarge"])
    assert moved.compute.model_dump(exclude_unset=True) == {
        "backend": "ec2",
        "instance_type": "g5.xlarge",
        "max_hours": 9,
        "max_restarts": 1,
    }
    with pytest.raises(SpecError, match=r"compute\.instance_type"):
        moved_job(run, backend="ec2")


def test_the_old_backend_lets_go_before_the_new_one_is_asked(run: RunRecord) -> None:
    local, ec2, clock = Named("local"), Named("ec2"), FakeClock()
    local.submit(local.prepare(run.plan()))
    moved = moved_job(run, backend="ec2", overrides=ON_EC2)
    for _ in range(2):  # repeating it changes nothing
        _resume(run, moved, local, ec2, clock=clock)
    assert local.describe(local.submissions[0].handle) is BackendState.ENDED
    assert (run.moves(), run.plan().backend, run.plan().deadline_s) == (1, "ec2", 5 * 3600)
    assert run.plan().requests == {"command": run.plan().command}
    assert (run.spec_json(), len(ec2.submissions)) == (job_to_json(moved), 1)


def test_and_back_again(run: RunRecord) -> None:
    local, ec2 = Named("local"), Named("ec2")
    for backend, options in (("ec2", ON_EC2), ("local", []), ("ec2", ON_EC2)):
        _resume(run, moved_job(run, backend=backend, overrides=options), local, ec2)
    assert (run.moves(), run.plan().backend) == (3, "ec2")
    assert run.first_spec_json() != run.spec_json()


def test_a_backend_that_does_not_let_go_keeps_the_run(run: RunRecord) -> None:
    class Deaf(Named):
        def stop(self, handle: Any) -> None:
            pass

    local, clock = Deaf("local"), FakeClock()
    local.submit(local.prepare(run.plan()))
    with pytest.raises(LaunchError, match="is still running on local after 10 minutes"):
        _resume(run, moved_job(run, backend="ec2", overrides=ON_EC2), local, Named("ec2"), clock=clock)
    assert run.moves() == 0
    assert clock.seconds == pytest.approx(600, abs=5)


def test_a_backend_that_cannot_be_asked_keeps_the_run(run: RunRecord) -> None:
    """AWS's refusal is no word that nothing runs there; a run that was never submitted is."""

    class Denied(Named):
        def describe(self, handle: RunHandle) -> BackendState:
            raise CloudError("digits-1: not authorized", error_class="permission")

    denied, never, ec2 = Denied("local"), Named("local"), Named("ec2")
    with pytest.raises(CloudError, match="not authorized"):
        _resume(run, moved_job(run, backend="ec2", overrides=ON_EC2), denied, ec2)
    assert (run.moves(), ec2.submissions) == (0, [])
    _resume(run, moved_job(run, backend="ec2", overrides=ON_EC2), never, ec2)
    assert (run.moves(), len(ec2.submissions)) == (1, 1)


def test_a_request_that_cannot_be_made_gives_nothing_up(run: RunRecord) -> None:
    class Refusing(Named):
        def prepare(self, plan: Any) -> Any:
            raise LaunchError("no role")

    local = Named("local")
    local.submit(local.prepare(run.plan()))
    with pytest.raises(LaunchError, match="no role"):
        _resume(run, moved_job(run, backend="ec2", overrides=ON_EC2), local, Refusing("ec2"))
    assert local.describe(local.submissions[0].handle) is BackendState.RUNNING


def test_another_training_is_refused_with_the_fields_that_differ(run: RunRecord) -> None:
    other = moved_job(run, backend=None, overrides=["training.batch_size=32", "model.width=0.5", "training.seed=1"])
    with pytest.raises(LaunchError, match=r"differs in model\.width, training\.batch_size, training\.seed"):
        _resume(run, other, Named("local"))


def test_where_data_lies_and_who_loads_it_may_change(job: JobSpec, run: RunRecord) -> None:
    options = ["dataset.uri=/data/voc", "training.loader_workers=9", "checkpoint.keep=9", "env={A: b}"]
    assert changed_training(job, moved_job(run, backend=None, overrides=options)) == []


@pytest.mark.parametrize("ending", ["over", "cancelled"])
def test_a_run_that_ends_does_not_go_on(run: RunRecord, ending: str) -> None:
    if ending == "over":
        run.claim(AttemptRecord(number=1, started_at="x", host="h", pid=1, backend="local"))
        result = ResultRecord(ended_at="x", outcome="done", message="", attempts=1, rounds=1, seconds=1)
        run.write_result(result, attempt=1)
    else:
        run.request_cancel(CancelRecord(at="x", by="ann"))
    with pytest.raises(LaunchError, match="cannot be resumed"):
        _resume(run, moved_job(run, backend=None), Named("local"))
