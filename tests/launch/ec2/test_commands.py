"""The commands, as a user types them, against moto's server: status, cancel, gc and cost of a run on EC2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from ec2_harness import ec2_plan, end_run, work
from s3_servers import BUCKET, CREDENTIALS, moto
from waiting import wait_for

from mtl_cloud.aws import AwsClients
from mtl_cloud.launch.ec2 import Ec2Launcher
from mtl_cloud.launch.submit import submit_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome, PlanRecord
from mtl_cloud.storage import open_storage

STORAGE = f"s3://{BUCKET}/runs-of-ada"


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[AwsClients]:
    with moto() as url:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        yield AwsClients("us-east-1")


def call(*arguments: str) -> str:
    command = [sys.executable, "-m", "mtl_cloud", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def started(aws: AwsClients, run_id: str, created: datetime) -> RunRecord:
    subnets = aws("ec2").describe_subnets()["Subnets"]
    facts = {
        "ami": {"id": aws("ec2").describe_images()["Images"][0]["ImageId"], "root_device": "/dev/xvda"},
        "subnets": {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in subnets},
        "security_group": aws("ec2").describe_security_groups()["SecurityGroups"][0]["GroupId"],
    }
    plan = ec2_plan(run_id, facts=facts)
    compute = {**plan.compute, "region": aws.region}
    return _submitted(replace(plan, compute=compute, storage=STORAGE, created_at=created.isoformat()))


def _submitted(plan: PlanRecord) -> RunRecord:
    storage = open_storage(plan.storage)
    spec = json.dumps({"compute": {"max_restarts": 3}}).encode()
    submit_run(plan, spec_yaml=b"", spec_json=spec, storage=storage, launcher=Ec2Launcher())
    return RunRecord(storage, plan.run_id)


def alive(aws: AwsClients) -> list[Any]:
    running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    return list(aws("ec2").describe_instances(Filters=running)["Reservations"])


def hear(run: RunRecord) -> None:
    """The container, which hears the wish."""
    wait_for(run.cancel_request)
    end_run(run, Outcome.CANCELLED)


@pytest.mark.slow
def test_a_run_is_shown_priced_cancelled_and_swept_from_the_command_line(aws: AwsClients) -> None:
    now = datetime.now(UTC)
    run = started(aws, "digits-1", now)
    assert len(alive(aws)) == 1
    work(run, "i-1", now)
    assert json.loads(call("status", "digits-1", "--storage", STORAGE, "--json"))["backend"] == "ec2"
    assert json.loads(call("cost", "digits-1", "--storage", STORAGE, "--json"))["usd"] == pytest.approx(21.957642)
    assert json.loads(call("gc", "--dry-run", "--json")) == []  # it may go on


@pytest.mark.slow
def test_cancel_returns_when_nothing_is_left_and_may_be_repeated(aws: AwsClients) -> None:
    run = started(aws, "digits-1", datetime.now(UTC))
    Thread(target=hear, args=(run,), daemon=True).start()
    for _ in range(2):
        assert json.loads(call("cancel", "digits-1", "--storage", STORAGE, "--json"))["outcome"] == "cancelled"
    assert alive(aws) == []
    assert run.result() is not None
    assert aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert aws("ec2").describe_launch_templates()["LaunchTemplates"] == []


@pytest.mark.slow
def test_gc_shows_and_then_removes_what_runs_have_left_anywhere_and_needs_no_state_of_this_machine(
    aws: AwsClients,
) -> None:
    away = AwsClients("eu-west-1")
    for run_id, there in (("digits-1", aws), ("digits-2", away)):
        end_run(started(there, run_id, datetime.now(UTC)))
    found = json.loads(call("gc", "--dry-run", "--json"))
    assert [(one["run_id"], one["region"]) for one in found] == [("digits-2", "eu-west-1"), ("digits-1", "us-east-1")]
    for one in found:
        assert (one["reason"], one["removed"]) == ("the run is over", False)
        assert [name.split()[0] for name in one["names"]] == ["group", "template", "instance"]
    assert (len(alive(aws)), len(alive(away))) == (1, 1)
    said = call("gc", "--yes")
    assert "digits-1: removed" in said
    assert "digits-2: removed" in said
    assert alive(aws) == alive(away) == []
    assert re.fullmatch(r"nothing is left in \d\d regions", call("gc", "--dry-run").strip())
