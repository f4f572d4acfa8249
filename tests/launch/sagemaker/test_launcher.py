"""The SageMaker launcher over the real SDK: against the package's double, which runs the jobs, and against moto."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from run_harness import FakeClock, logged, make_run
from s3_servers import CREDENTIALS, moto
from sagemaker_harness import plan_on
from waiting import wait_for

from mtl_cloud.aws import ErrorClass
from mtl_cloud.clock import Clock
from mtl_cloud.errors import CapacityError, CloudError
from mtl_cloud.launch import BackendState, RunHandle
from mtl_cloud.launch.sagemaker import SageMakerLauncher
from mtl_cloud.launch.sagemaker.jobs import Job
from mtl_cloud.runs.attempts import bill_of
from mtl_cloud.runs.events import Finished, MachineNews
from mtl_cloud.runs.follow import follow
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, Outcome
from mtl_cloud.storage import FolderStorage
from mtl_cloud.testing.sagemaker import SageMakerDouble

NAME = "mtl-cloud-digits-1"


@pytest.fixture
def launcher(sagemaker_double: SageMakerDouble) -> SageMakerLauncher:
    return SageMakerLauncher()


def _run(folder: Path, code: str = "print('done')", **compute: Any) -> RunRecord:
    return make_run(FolderStorage(folder / "storage"), code, **plan_on("sagemaker", **compute))


def _submit(launcher: SageMakerLauncher, run: RunRecord) -> RunHandle:
    return launcher.submit(launcher.prepare(run.plan()))


def _ended(launcher: SageMakerLauncher, handle: RunHandle) -> Job:
    """The newest job, after its end."""
    return wait_for(lambda: next((j for j in launcher.jobs(handle)[-1:] if j.state is BackendState.ENDED), None))


def test_a_run_goes_through_sagemakers_states_to_its_end(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble
) -> None:
    run = _run(tmp_path)
    job = _ended(launcher, _submit(launcher, run))
    states = [step.status for step in job.transitions]
    assert states == ["Starting", "Pending", "Downloading", "Training", "Uploading", "Completed"]
    assert all(before.at <= after.at for before, after in pairwise(job.transitions))
    assert (job.name, job.reason, job.instance_type, job.instance_count) == (NAME, "", "ml.c5.9xlarge", 1)
    assert job.spot_saving == 0.0
    result = run.result()
    assert result is not None
    assert result.outcome == Outcome.DONE


def test_what_is_sent_is_what_was_planned_to_the_letter(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the SDK's own configuration file names defaults, and where a value is empty."""
    defaults = tmp_path / "sagemaker.yaml"
    defaults.write_text(
        "SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Resources: {TrainingJob: "
        "{vpc_config: {security_group_ids: [sg-theirs], subnets: [subnet-theirs]}}}}}\n"
    )
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(defaults))
    run = _run(tmp_path)
    submission = launcher.prepare(run.plan())
    launcher.submit(submission)
    created = [request for operation, request in sagemaker_double.requests if operation == "CreateTrainingJob"]
    assert created == [submission.request["create_training_job"]]
    assert {"Key": "mtl-cloud:spec", "Value": ""} in created[0]["Tags"]


def test_many_submits_at_once_make_one_job(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble
) -> None:
    run = _run(tmp_path, "work()")
    with ThreadPoolExecutor(4) as pool:
        handles = list(pool.map(lambda _: _submit(launcher, run), range(4)))
    assert handles == [RunHandle.of(run.plan())] * 4
    assert [job.name for job in launcher.jobs(handles[0])] == [NAME]


def test_a_run_whose_job_has_ended_goes_on_in_the_next_and_one_that_is_over_is_left_alone(
    tmp_path: Path, launcher: SageMakerLauncher
) -> None:
    run = _run(tmp_path, "attempt == 1 and work()")
    handle = _submit(launcher, run)
    wait_for(lambda: run.heartbeat(1))
    launcher.stop(handle)
    assert _ended(launcher, handle).secondary == "Stopped"
    for _ in range(2):
        _submit(launcher, run)
        wait_for(run.result)
        _ended(launcher, handle)
    assert [job.name for job in launcher.jobs(handle)] == [NAME, f"{NAME}--2"]
    assert [attempt.number for attempt in run.attempts()] == [1, 2]


def test_spot_takes_the_machine_and_the_same_job_goes_on_with_the_next_attempt(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble
) -> None:
    run = _run(tmp_path, "print('up', flush=True); work() if attempt == 1 else work(1)", purchase="spot")
    handle = _submit(launcher, run)
    wait_for(logged(run, "up"))
    sagemaker_double.interrupt(NAME)
    job = _ended(launcher, handle)
    assert [step.status for step in job.transitions].count("Interrupted") == 1
    assert (job.status, launcher.jobs(handle)) == ("Completed", [job])
    ends = [run.exit(attempt.number) for attempt in run.attempts()]
    assert [end.outcome for end in ends if end] == [Outcome.INTERRUPTED, Outcome.DONE]
    assert b"saved" in run.read_log(1)
    assert job.training_s is not None
    assert job.billable_s is not None
    assert job.spot_saving == 1 - job.billable_s / job.training_s


def test_the_next_preference_is_taken_where_the_first_has_no_capacity(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble
) -> None:
    sagemaker_double.refuse("ml.c5.9xlarge")
    handle = _submit(launcher, _run(tmp_path, instance_type=["ml.c5.9xlarge", "ml.c5.18xlarge"]))
    assert _ended(launcher, handle).instance_type == "ml.c5.18xlarge"


def test_a_job_waits_for_capacity_and_can_be_stopped_while_it_waits(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble
) -> None:
    sagemaker_double.refuse("ml.c5.9xlarge")
    run = _run(tmp_path)
    handle = _submit(launcher, run)
    wait_for(lambda: launcher.jobs(handle)[-1].secondary == "Pending")
    assert launcher.describe(handle) is BackendState.PENDING
    for _ in range(2):
        launcher.stop(handle)
        assert _ended(launcher, handle).status == "Stopped"
    assert run.attempts() == []


@pytest.mark.parametrize("purchase", ["on_demand", "spot"])
def test_want_of_capacity_is_told_as_that(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble, purchase: str
) -> None:
    sagemaker_double.pending_s = 0.0
    sagemaker_double.refuse("ml.c5.9xlarge")
    job = _ended(launcher, _submit(launcher, _run(tmp_path, purchase=purchase)))
    assert job.error_class is ErrorClass.CAPACITY
    with pytest.raises(CapacityError, match="digits-1: SageMaker ended mtl-cloud-digits-1") as caught:
        raise job.failure("digits-1")
    assert caught.value.exit_code == 6


def test_a_quota_is_told_as_that_with_sagemakers_own_figures_and_no_job_is_left(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble
) -> None:
    sagemaker_double.set_quota("ml.c5.9xlarge", 1)
    run = _run(tmp_path, instance_count=2)
    with pytest.raises(CloudError, match=r"'ml\.c5\.9xlarge for training job usage' is 1 Instances") as caught:
        _submit(launcher, run)
    assert (caught.value.error_class, caught.value.code) == ("quota", "ResourceLimitExceeded")
    assert "Service Quotas" in str(caught.value.hint)


def test_a_users_error_is_the_failure_reason_and_no_want_of_capacity(
    tmp_path: Path, launcher: SageMakerLauncher
) -> None:
    job = _ended(launcher, _submit(launcher, _run(tmp_path, "raise ValueError('no such class')")))
    assert job.reason.startswith("AlgorithmError: user_error: the trainer ended with code 1: ValueError: no such class")
    assert job.reason.endswith("exit code: 7")
    assert job.error_class is ErrorClass.PERMANENT
    assert not isinstance(job.failure("digits-1"), CapacityError)


@pytest.mark.parametrize(
    ("reason", "error_class"),
    [
        ("InternalServerError: We encountered an internal error. Please try again.", ErrorClass.SERVER),
        ("ClientError: Data download failed:Could not find S3 bucket", ErrorClass.PERMANENT),
        ("CapacityError: Unable to provision requested ML compute capacity.", ErrorClass.CAPACITY),
        ("ResourceLimitExceeded: The account-level service limit is 0 Instances", ErrorClass.QUOTA),
        ("Something new", ErrorClass.UNKNOWN),
    ],
)
def test_a_failure_reason_has_a_class(reason: str, error_class: ErrorClass) -> None:
    assert _job(status="Failed", secondary="Failed", reason=reason).error_class is error_class


@pytest.mark.parametrize(
    ("status", "secondary", "state"),
    [
        ("InProgress", "Starting", BackendState.PENDING),
        ("InProgress", "Pending", BackendState.PENDING),
        ("InProgress", "Downloading", BackendState.PENDING),
        ("InProgress", "Training", BackendState.RUNNING),
        ("InProgress", "Interrupted", BackendState.PENDING),
        ("InProgress", "Restarting", BackendState.PENDING),
        ("InProgress", "Uploading", BackendState.RUNNING),
        ("Stopping", "Stopping", BackendState.RUNNING),
        ("Stopping", "Pending", BackendState.PENDING),
        ("Completed", "Completed", BackendState.ENDED),
        ("Failed", "Failed", BackendState.ENDED),
        ("Stopped", "MaxRuntimeExceeded", BackendState.ENDED),
        ("Stopped", "MaxWaitTimeExceeded", BackendState.ENDED),
        ("Deleting", "Completed", BackendState.ENDED),
    ],
)
def test_sagemakers_states_are_three_of_ours(status: str, secondary: str, state: BackendState) -> None:
    assert _job(status=status, secondary=secondary).state is state


def _job(**fields: Any) -> Job:
    values = {"name": NAME, "reason": "", "created_at": datetime(2026, 1, 1, tzinfo=UTC), "instance_type": "ml.x"}
    return Job(**{**values, "instance_count": 1, "training_s": None, "billable_s": None, "transitions": (), **fields})


def test_without_the_sdk_a_job_is_planned_and_not_submitted(tmp_path: Path) -> None:
    run = _run(tmp_path)
    program = (
        "import sys; sys.modules['sagemaker'] = None\n"
        "from mtl_cloud.launch import get_launcher\n"
        "from mtl_cloud.runs.record import RunRecord\n"
        "from mtl_cloud.storage import open_storage\n"
        "launcher = get_launcher('sagemaker')\n"
        f"submission = launcher.prepare(RunRecord(open_storage({run.storage.url!r}), 'digits-1').plan())\n"
        "print(submission.request['create_training_job']['TrainingJobName'], 'boto3' in sys.modules)\n"
        "launcher.submit(submission)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout == f"{NAME} False\n"
    assert "MissingExtraError: submitting to SageMaker needs the extra 'sagemaker'" in ended.stderr


def test_a_run_is_followed_through_sagemakers_states_with_its_rounds_between(
    tmp_path: Path, launcher: SageMakerLauncher
) -> None:
    run = _run(tmp_path)
    events = list(follow(run, clock=Clock(), machine=launcher.watch(_submit(launcher, run))))
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, MachineNews) and event.phase == "requesting" for event in events)
    launcher.stop(RunHandle.of(run.plan()))
    assert launcher.jobs(RunHandle.of(run.plan()))[-1].status == "Completed"  # it was given its own end


def test_the_wait_for_a_machine_that_will_not_come_ends_with_the_reason_after_the_news(
    tmp_path: Path, launcher: SageMakerLauncher, sagemaker_double: SageMakerDouble
) -> None:
    sagemaker_double.pending_s = 0.0
    sagemaker_double.refuse("ml.c5.9xlarge")
    run, clock = _run(tmp_path), FakeClock()
    handle = _submit(launcher, run)
    _ended(launcher, handle)
    watch = SageMakerLauncher(clock=clock).watch(handle)
    assert [news.phase for news in watch.look()] == ["requesting", "requesting", "failed"]
    assert watch.look() == []  # too early
    clock.sleep(10)
    with pytest.raises(CapacityError, match="Unable to provision"):
        watch.look()


def test_the_bill_is_sagemakers_own_with_what_spot_saved_and_what_other_backends_cost(
    tmp_path: Path, launcher: SageMakerLauncher
) -> None:
    run = _run(tmp_path, "work(2 if attempt == 1 else 0)", purchase="spot")
    other = AttemptRecord(number=2, started_at="x", host="h", pid=1, backend="local")
    handle = _submit(launcher, run)
    _ended(launcher, handle)
    (charge,) = launcher.charges(handle)
    assert (charge.instance, charge.machine, charge.market) == (NAME, "ml.c5.9xlarge", "spot")
    (job,) = launcher.jobs(handle)
    assert charge.seconds == job.training_s
    priced = replace(charge, usd_per_hour=2.0 * (1 - (job.spot_saving or 0)), on_demand_usd_per_hour=2.0)
    assert priced.usd == pytest.approx(2.0 * (job.billable_s or 0) / 3600)
    assert bill_of(run, {"sagemaker": [priced]}).charges == (priced,)
    run.claim(replace(other, started_at="2026-01-01T00:00:00+00:00"))
    assert [c.instance for c in bill_of(run, {"sagemaker": [priced]}).charges] == [NAME, "h"]


# --- an independent service ---


@pytest.fixture
def moto_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with moto() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        yield url


def _client(service: str, url: str) -> Any:
    import boto3

    return boto3.client(service, endpoint_url=url, region_name="us-east-1")


def test_moto_takes_the_request_and_keeps_the_tags(tmp_path: Path, moto_url: str) -> None:
    run, launcher = _run(tmp_path), SageMakerLauncher()
    handle = _submit(launcher, run)
    sagemaker = _client("sagemaker", moto_url)
    (summary,) = sagemaker.list_training_jobs()["TrainingJobSummaries"]
    assert summary["TrainingJobName"] == NAME
    tags = sagemaker.list_tags(ResourceArn=summary["TrainingJobArn"])["Tags"]
    assert {"Key": "mtl-cloud:run", "Value": "digits-1"} in tags
    assert launcher.describe(handle) is BackendState.ENDED  # moto's jobs are complete at once


def test_the_log_is_read_from_cloudwatch_page_by_page_to_its_true_end(tmp_path: Path, moto_url: str) -> None:
    run, launcher = _run(tmp_path), SageMakerLauncher()
    handle = _submit(launcher, run)
    assert list(launcher.log_lines(handle)) == []
    logs = _client("logs", moto_url)
    logs.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    expected, now_ms = [], int(time.time() * 1000)
    for host, count in (("algo-1", 12_000), ("algo-2", 3)):  # a page holds 10,000
        stream = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamName": f"{NAME}/{host}-1700000000"}
        logs.create_log_stream(**stream)
        lines = [f"{host} line {number}" for number in range(count)]
        for start in range(0, count, 6_000):
            events = [
                {"timestamp": now_ms + i, "message": line} for i, line in enumerate(lines[start : start + 6_000], start)
            ]
            logs.put_log_events(**stream, logEvents=events)
        expected += lines
    assert list(launcher.log_lines(handle)) == expected
