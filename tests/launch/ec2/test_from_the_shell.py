"""One run on EC2 from nothing to nothing, against moto's server: every command is a process."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ec2_harness import end_run, work
from shell_harness import Shell, account, push_image, shell

from mtl_cloud.aws import AwsClients
from mtl_cloud.launch.tags import read_tags
from mtl_cloud.names import KEY_TAG
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import open_storage

__all__ = ["account", "shell"]

# moto leaves the bucket's policy out, and says so.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Tried to parse AWS")]

RUN = "digits-1"
COMPUTE = {"backend": "ec2", "instance_type": "c5.9xlarge", "gpu_count": 0, "max_hours": 2}


def alive(account: AwsClients) -> list[str]:
    """Ids of the run's instances. moto brings an interrupted one's replacement at a look at the group."""
    account("autoscaling").describe_auto_scaling_groups()
    filters = [
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
        {"Name": "tag:mtl-cloud:run", "Values": [RUN]},
    ]
    found = account("ec2").describe_instances(Filters=filters)["Reservations"]
    return [instance["InstanceId"] for held in found for instance in held["Instances"]]


def assert_key_is_kept(account: AwsClients, bucket: str, shown: list[str]) -> None:
    """The group's key is its template's; no command shows it, and no object and no instance has it."""
    (group,) = account("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    (template,) = account("ec2").describe_launch_templates()["LaunchTemplates"]
    key = read_tags(group["Tags"])[KEY_TAG]
    assert len(key) == 32
    assert read_tags(template["Tags"])[KEY_TAG] == key
    objects = [entry["Key"] for entry in account("s3").list_objects_v2(Bucket=bucket)["Contents"]]
    held = [account("s3").get_object(Bucket=bucket, Key=name)["Body"].read().decode() for name in objects]
    machines = [str(held["Instances"]) for held in account("ec2").describe_instances()["Reservations"]]
    assert len(objects) > 6
    assert not any(key in text for text in (*shown, *objects, *held, *machines))


def test_a_run_from_an_empty_account_to_nothing_left(account: AwsClients, shell: Shell, tmp_path: Path) -> None:
    outputs = json.loads(shell("bootstrap", "--yes", "--json"))["outputs"]
    push_image(account, outputs["repository_uri"])
    folder = f"{outputs['storage']}/ada"
    job = {"compute": COMPUTE, "dataset": {"name": "embedded"}, "storage": folder}
    (tmp_path / "job.yaml").write_text(json.dumps({"name": "digits", **job}))

    planned = json.loads(shell("plan", "job.yaml", "--run-id", RUN, "--json"))
    checks = {check["name"]: check["status"] for check in planned["facts"]["checks"]}
    assert (checks["permission"], checks["storage"]) == ("ok", "ok")
    for _ in range(2):
        assert json.loads(shell("submit", "job.yaml", "--run-id", RUN, "--detach", "--json"))["outcome"] is None
    (first,) = alive(account)
    assert "requesting: c5.9xlarge, on demand, in us-east-1" in shell("status", RUN)

    account("ec2").terminate_instances(InstanceIds=[first])
    (second,) = alive(account)
    assert second != first
    run = RunRecord(open_storage(folder), RUN)
    work(run, second, datetime.now(UTC), instance_type="c5.9xlarge")
    assert json.loads(shell("status", RUN, "--json"))["state"] == "running"
    assert shell("logs", RUN) == "epoch 1\n"
    assert "nothing is left" in shell("gc", "--dry-run")  # it may go on
    end_run(run)
    assert_key_is_kept(account, outputs["bucket"], [json.dumps(planned), shell("status", RUN, "--json")])

    assert json.loads(shell("cost", RUN, "--json"))["usd"] == pytest.approx(planned["usd_per_hour"])
    assert f"{RUN}: removed" in shell("gc", "--yes")
    assert alive(account) == []
    assert "nothing is left" in shell("gc", "--dry-run")
