"""Requests and wall time of submitting a run to EC2, compared with three bare requests that create the same resources.

    python benchmarks/submit_calls.py [--runs 15] [--json]

The endpoint is moto's server in this process, so the time includes the client and moto, but not AWS's network. Both
sides take turns. Look-ups of `plan` are not counted: submitting only sends the plan's requests.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from mtl_cloud.aws import AwsClients
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.launch.ec2 import Ec2Launcher
from mtl_cloud.launch.ec2.request import Template, requests
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.storage import MemoryStorage

MOST_REQUESTS = 12
REGION = "us-east-1"
BARE = {"create_launch_template": "ec2", "create_auto_scaling_group": "autoscaling"}
BARE["put_scheduled_update_group_action"] = "autoscaling"


@dataclass
class Side:
    """Requests and times of one way of submitting."""

    sent: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def measure(self, clients: AwsClients, submit: Callable[[], object]) -> None:
        def count(model: Any, **_: object) -> None:
            self.sent[model.name] += 1

        for service in ("ec2", "autoscaling"):
            clients(service).meta.events.register("before-call", count, unique_id="count")
        start = time.perf_counter()
        submit()
        self.seconds.append(time.perf_counter() - start)
        for service in ("ec2", "autoscaling"):
            clients(service).meta.events.unregister("before-call", unique_id="count")

    def figures(self) -> dict[str, Any]:
        runs = len(self.seconds)
        return {
            "requests": sum(self.sent.values()) / runs,
            "median_ms": 1000 * statistics.median(self.seconds),
            "operations": {name: number / runs for name, number in self.sent.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="turns of each side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.runs)
    print(json.dumps(found, indent=2) if options.json else _table(found))
    if found["ours"]["requests"] > MOST_REQUESTS:
        raise SystemExit(f"submit takes more than {MOST_REQUESTS} requests")


def measure(runs: int) -> dict[str, Any]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        os.environ.update(credentials, AWS_ENDPOINT_URL=f"http://{host}:{port}")
        return _take_turns(AwsClients(REGION), runs)
    finally:
        server.stop()


def _submit(launcher: Ec2Launcher, plan: PlanRecord) -> None:
    launcher.submit(launcher.prepare(plan))


def _take_turns(clients: AwsClients, runs: int) -> dict[str, Any]:
    facts, storage = _account(clients), MemoryStorage("bucket")
    launcher = Ec2Launcher(clients=lambda _: clients, storages=lambda _: storage)
    bare, ours, again = Side(), Side(), Side()
    for turn in range(runs + 1):  # the first turn fills caches and is not counted
        if turn == 1:
            bare, ours, again = Side(), Side(), Side()
        bare_plan, plan = _plan(f"bare-{turn}", facts), _plan(f"ours-{turn}", facts)
        RunRecord(storage, plan.run_id).create(plan, spec_yaml=b"", spec_json=b"{}")
        bare.measure(clients, partial(_send_bare, clients, bare_plan))
        ours.measure(clients, partial(_submit, launcher, plan))
        again.measure(clients, partial(_submit, launcher, plan))
    figures = {"bare": bare.figures(), "ours": ours.figures(), "ours again": again.figures()}
    return {**figures, "ratio": figures["ours"]["median_ms"] / figures["bare"]["median_ms"]}


def _send_bare(clients: AwsClients, plan: PlanRecord) -> None:
    template = Template(id="", key=32 * "0")
    for name, service in BARE.items():
        sent: dict[str, Any] = requests(plan, template)
        answer = getattr(clients(service), name)(**sent[name])
        if "LaunchTemplate" in answer:
            template = replace(template, id=answer["LaunchTemplate"]["LaunchTemplateId"])


def _account(clients: AwsClients) -> dict[str, Any]:
    subnets = clients("ec2").describe_subnets()["Subnets"]
    return {
        "ami": {"id": clients("ec2").describe_images()["Images"][0]["ImageId"], "root_device": "/dev/xvda"},
        "subnets": {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in subnets},
        "security_group": clients("ec2").describe_security_groups()["SecurityGroups"][0]["GroupId"],
        "instance_profile": "mtl-cloud",
        "group_role": "arn:aws:iam::123456789012:role/mtl-cloud-group",
        "image": "image:1",
    }


def _plan(run_id: str, account: dict[str, Any]) -> PlanRecord:
    compute = {"backend": "ec2", "instance_type": ["p4d.24xlarge", "p4de.24xlarge"], "gpu_count": 8, "purchase": "spot"}
    document = {"dataset": {"name": "embedded"}, "compute": compute, "storage": "s3://bucket/runs"}
    job = JobSpec.model_validate(document)
    plan = plan_run(job, gather_facts(job), run_id=run_id, now=datetime.now(UTC))
    return replace(plan, facts={**plan.facts, "ec2": account})


def _table(found: dict[str, Any]) -> str:
    rows = [
        f"{name:12}{found[name]['requests']:9.1f}{found[name]['median_ms']:11.1f}"
        for name in ("bare", "ours", "ours again")
    ]
    operations = ", ".join(found["ours"]["operations"])
    return "\n".join(
        ["            requests  median ms", *rows, f"ours / bare: {found['ratio']:.2f}", f"ours: {operations}"]
    )


if __name__ == "__main__":
    main()
