"""``status`` of a run that waits for its machine: what AWS said last, and the record where AWS does not answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ec2_harness import World, ec2_plan
from run_harness import PLAN

from mtl_cloud import cli
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import BootRecord
from mtl_cloud.storage import FolderStorage

BOOT = BootRecord(
    instance="i-1",
    instance_type="p4d.24xlarge",
    zone="us-east-1c",
    market="on-demand",
    phase="pulling",
    message="mtl-cloud:1",
    started_at="2026-01-01T00:05:00+00:00",
    at="2026-01-01T00:06:00+00:00",
)


def test_every_zone_that_has_refused_is_shown_and_then_how_far_the_machine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scarce = ["InsufficientInstanceCapacity"]
    world = World(script={"us-east-1a": scarce, "us-east-1b": scarce}, tries_per_zone=1)
    world.storage = FolderStorage(tmp_path)
    monkeypatch.setattr("mtl_cloud.launch.get_launcher", lambda _: world.launcher())
    plan = ec2_plan()
    run = world.make_run(plan)
    world.submit(plan)
    status = ["status", plan.run_id, "--storage", str(tmp_path)]

    world.pass_time(seconds=45)
    assert cli.main(status) == 0
    lines = [line.split()[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("machine")]
    assert lines == [["refused:", "in", "us-east-1a:"], ["refused:", "in", "us-east-1b:"]]

    world.pass_time(minutes=4)
    run.storage.write(run.paths.boot("i-1"), BOOT.encode())
    assert cli.main([*status, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "queued"
    assert document["machine"] == ["pulling: i-1 (p4d.24xlarge, on-demand, us-east-1c): mtl-cloud:1"]


def test_without_credentials_the_record_is_shown_and_why_aws_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = FolderStorage(tmp_path)
    plan = replace(ec2_plan(), storage=storage.url, rounds=PLAN.rounds)
    RunRecord(storage, plan.run_id).create(plan, spec_yaml=b"", spec_json=b"{}")
    assert cli.main(["status", plan.run_id, "--storage", storage.url]) == 0
    shown = capsys.readouterr().out
    assert "state    queued\n" in shown
    assert "machine  ec2 does not answer: digits-1: autoscaling: Unable to locate credentials" in shown
