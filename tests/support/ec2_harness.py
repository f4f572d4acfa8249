"""A run on EC2 for tests: its plan with all facts, its record in memory, and a fake of AWS."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from run_harness import FakeClock

from mtl_cloud.clock import Clock
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.json_types import Json
from mtl_cloud.launch.ec2 import Ec2Launcher
from mtl_cloud.names import KEY_TAG, aws_name
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, BootRecord, Heartbeat, Outcome, PlanRecord, ResultRecord
from mtl_cloud.storage import MemoryStorage, Storage
from mtl_cloud.testing.ec2 import CloudDouble

START = datetime(2026, 1, 1, tzinfo=UTC)
SUBNETS = {"us-east-1a": "subnet-0a", "us-east-1b": "subnet-0b", "us-east-1c": "subnet-0c"}
FACTS: dict[str, Any] = {
    "ami": {"id": "ami-0123456789abcdef0", "root_device": "/dev/sda1"},
    "subnets": SUBNETS,
    "security_group": "sg-0123456789abcdef0",
    "instance_profile": "mtl-cloud-instance-us-east-1",
    "group_role": "arn:aws:iam::123456789012:role/mtl-cloud-group-us-east-1",
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/mtl-cloud:3fa9c1",
}
STORAGE = "s3://bucket/runs-of-ada"


def ec2_plan(run_id: str = "digits-1", *, facts: dict[str, Any] | None = None, **compute: Any) -> PlanRecord:
    """The plan of a job for EC2, at ``START``."""
    wished = {"backend": "ec2", "instance_type": "p4d.24xlarge", "gpu_count": 8, "max_hours": 10, **compute}
    job = JobSpec.model_validate(
        {
            "name": "digits",
            "dataset": {"name": "embedded"},
            "compute": wished,
            "storage": STORAGE,
            "tags": {"team": "v"},
        }
    )
    plan = plan_run(job, gather_facts(job), run_id=run_id, now=START)
    found: dict[str, Json] = {"identity": "arn:aws:iam::123456789012:user/ada", "ec2": {**FACTS, **(facts or {})}}
    return replace(plan, facts={**plan.facts, **found}, spec_digest="3fa9c1" + 58 * "0")


class World:
    """A clock, a fake AWS account and a storage, which outlive commands that are killed."""

    def __init__(self, clock: Clock | None = None, **account: Any) -> None:
        self.clock = clock or FakeClock(START)
        self.cloud = CloudDouble(self.clock, zones={subnet: zone for zone, subnet in SUBNETS.items()}, **account)
        self.storage: Storage = MemoryStorage("bucket")
        self._keys = count(1)

    @property
    def fake_clock(self) -> FakeClock:
        """The clock of a world that was made without another."""
        assert isinstance(self.clock, FakeClock)
        return self.clock

    def launcher(self, clients: Callable[[str], Any] | None = None) -> Ec2Launcher:
        """A new launcher without state, as each command creates one."""
        return Ec2Launcher(
            clients=clients or self.cloud.clients,
            storages=lambda _: self.storage,
            clock=self.clock,
            random_bytes=lambda length: next(self._keys).to_bytes(length, "big"),
        )

    def keys(self, run_id: str = "digits-1") -> list[str]:
        """The key of the run's group and the key in its template's boot script; None if either is missing."""
        group = self.cloud.state.groups.get(aws_name(run_id))
        template = group and self.cloud.template(group.request)
        if not group or not template:
            return []
        tags = {tag["Key"]: tag["Value"] for tag in group.request["Tags"]}
        script = b64decode(template["data"]["UserData"]).decode()
        return [tags[KEY_TAG], *re.findall(r"^KEY=(.*)$", script, re.MULTILINE)]

    def make_run(self, plan: PlanRecord) -> RunRecord:
        run = RunRecord(self.storage, plan.run_id)
        run.create(plan, spec_yaml=b"name: digits\n", spec_json=b'{"compute": {"max_restarts": 3}}')
        return run

    def submit(self, plan: PlanRecord) -> None:
        launcher = self.launcher()
        launcher.submit(launcher.prepare(plan))

    def pass_time(self, **span: float) -> None:
        self.clock.sleep(timedelta(**span).total_seconds())


def work(run: RunRecord, instance: str, start: datetime, *, instance_type: str = "p4d.24xlarge") -> None:
    """Write the record of a machine that has worked for an hour."""
    at = (start + timedelta(hours=1)).isoformat()
    boot = BootRecord(
        instance=instance,
        instance_type=instance_type,
        zone="us-east-1a",
        market="on-demand",
        phase="running",
        message="",
        started_at=start.isoformat(),
        at=at,
    )
    run.storage.write(run.paths.boot(instance), boot.encode())
    run.claim(AttemptRecord(number=1, started_at=start.isoformat(), host=instance, pid=1, backend="ec2"))
    run.append_log(1, 1, b"epoch 1\n")
    run.write_heartbeat(1, Heartbeat(at=at, phase="training"))


def end_run(run: RunRecord, outcome: Outcome = Outcome.DONE) -> None:
    """Write the record of the next attempt's container."""
    number = (run.owner() or 0) + 1
    run.claim(AttemptRecord(number=number, started_at=START.isoformat(), host="i-1", pid=1, backend="ec2"))
    run.write_result(
        ResultRecord(
            ended_at=START.isoformat(), outcome=outcome, message="", attempts=number, rounds=2, seconds=60.0, usd=1.0
        ),
        attempt=number,
    )
