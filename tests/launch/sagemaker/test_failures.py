"""What AWS refuses, and jobs that do not do as they are told: each is an error with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aws_harness import Answers, moto_clients
from run_harness import FakeClock, logged, make_run
from sagemaker_harness import plan_on
from waiting import wait_for

from mtl_cloud.aws import AwsClients
from mtl_cloud.errors import CloudError, LaunchError
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.sagemaker import SageMakerLauncher
from mtl_cloud.launch.sagemaker.jobs import Job
from mtl_cloud.launch.sagemaker.logs import log_lines
from mtl_cloud.launch.sagemaker.request import request
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import FolderStorage
from mtl_cloud.testing.sagemaker import SageMakerDouble

NAME = "mtl-cloud-digits-1"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def aws() -> Iterator[AwsClients]:
    with moto_clients() as clients:
        yield clients


@pytest.fixture
def answers(aws: AwsClients) -> Answers:
    return Answers(aws, ["sagemaker", "logs"])


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return make_run(FolderStorage(tmp_path / "storage"), **plan_on("sagemaker"))


def launcher_on(aws: AwsClients) -> SageMakerLauncher:
    return SageMakerLauncher(clients=lambda _region: aws)


def test_a_run_that_was_never_submitted_is_told_as_that(aws: AwsClients, run: RunRecord) -> None:
    with pytest.raises(LaunchError, match="digits-1: was never submitted to SageMaker"):
        launcher_on(aws).describe(RunHandle.of(run.plan()))


def test_a_refusal_is_no_absence(aws: AwsClients, answers: Answers, run: RunRecord) -> None:
    message = "User: arn:aws:iam::1:user/ada is not authorized to perform: sagemaker:DescribeTrainingJob"
    answers.refuse("sagemaker", "DescribeTrainingJob", "AccessDeniedException", message)
    with pytest.raises(CloudError, match="is not authorized") as caught:
        launcher_on(aws).describe(RunHandle.of(run.plan()))
    assert caught.value.error_class == "permission"


def test_a_job_that_may_not_be_made_is_an_error(aws: AwsClients, answers: Answers, run: RunRecord) -> None:
    """Only a name that is taken is not: another process submits the same run."""
    answers.refuse("sagemaker", "CreateTrainingJob", "AccessDeniedException", "not authorized")
    launcher = launcher_on(aws)
    with pytest.raises(CloudError, match="not authorized"):
        launcher.submit(launcher.prepare(run.plan()))
    answers.refuse("sagemaker", "CreateTrainingJob", "ResourceInUse", "Training job names must be unique")
    assert launcher.submit(launcher.prepare(run.plan())) == RunHandle.of(run.plan())


class MinuteClock(FakeClock):
    """Every pause takes a minute."""

    def sleep(self, seconds: float) -> None:
        super().sleep(60)


def test_a_job_that_does_not_stop_is_an_error_after_ten_minutes(
    tmp_path: Path, sagemaker_double: SageMakerDouble
) -> None:
    code = "print('started', flush=True); time.sleep(600)"
    run = make_run(FolderStorage(tmp_path / "storage"), code, **plan_on("sagemaker"))
    clock = MinuteClock()
    launcher = SageMakerLauncher(clock=clock)
    handle = launcher.submit(launcher.prepare(run.plan()))
    wait_for(logged(run, "started"))
    with pytest.raises(LaunchError, match="digits-1: SageMaker has not stopped the job within 10 min"):
        launcher.stop(handle)
    assert 600 < clock.seconds <= 660
    assert launcher.describe(handle) is BackendState.RUNNING


def test_a_log_group_that_may_not_be_read_is_an_error(aws: AwsClients, answers: Answers) -> None:
    """One that is not there is none: the account's first job makes it."""
    assert list(log_lines(aws("logs"), NAME)) == []
    answers.refuse("logs", "DescribeLogStreams", "AccessDeniedException", "not authorized")
    with pytest.raises(CloudError, match="not authorized"):
        list(log_lines(aws("logs"), NAME))


def test_a_plan_without_a_deadline_is_refused(run: RunRecord) -> None:
    with pytest.raises(LaunchError, match="digits-1: the plan has no deadline") as caught:
        request(replace(run.plan(), deadline_s=None))
    assert caught.value.hint == "set compute.max_hours"


def test_a_plan_without_an_image_is_refused(run: RunRecord) -> None:
    plan = run.plan()
    without = replace(plan, image=None, compute={**plan.compute, "image": None})
    with pytest.raises(LaunchError, match=r"digits-1: compute\.image is not given"):
        request(without)


@pytest.mark.parametrize(
    ("training_s", "billable_s", "saving"), [(100, 30, 0.7), (100, 100, 0.0), (100, None, None), (None, None, None)]
)
def test_the_share_that_spot_saved_is_known_when_the_bill_is(
    training_s: int | None, billable_s: int | None, saving: float | None
) -> None:
    job = Job(
        name=NAME, status="Completed", secondary="Completed", reason="", created_at=NOW, instance_type="ml.x",
        instance_count=1, training_s=training_s, billable_s=billable_s, transitions=(),
    )  # fmt: skip
    assert job.spot_saving == saving
