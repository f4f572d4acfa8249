"""The boot script and the launchers use the names that the supervisor, the policies and the record's readers use."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from boot_script import KEY, Call, boot_script, calls_of
from ec2_harness import FACTS, STORAGE
from run_harness import PLAN
from sagemaker_harness import plan_on

from mtl_cloud.bootstrap.policies import trust_policy
from mtl_cloud.dry_run.fake_cloud import stand_in
from mtl_cloud.errors import MtlCloudError, StorageError
from mtl_cloud.launch.docker import DockerLauncher
from mtl_cloud.launch.ec2.user_data import shared_names
from mtl_cloud.launch.local import LocalLauncher
from mtl_cloud.launch.sagemaker.request import request
from mtl_cloud.names import BootPhase, SupervisorExit, aws_name, container_name
from mtl_cloud.runs.paths import RunPaths
from mtl_cloud.runs.schema import BootRecord, PlanRecord
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.supervise.__main__ import _parser

ROOT = Path(__file__).parents[2]
RUN = "cats-42"
SCRIPT = boot_script(RUN)
PATHS = RunPaths(RUN)
INSTANCE = "INSTANCE=i-7 TYPE=p4d.24xlarge ZONE=us-east-1b MARKET=spot"


def only_call(command: str) -> Call:
    (call,) = calls_of(f"{INSTANCE}; {command}", SCRIPT)
    return call


def supervisor_reads(arguments: list[str]) -> Namespace:
    """Fails the test (``SystemExit``) for a flag that the supervisor does not know."""
    return _parser().parse_args(arguments)


# --- the boot script ---


def test_every_placeholder_of_the_script_is_filled_and_every_name_used() -> None:
    text = (ROOT / "mtl_cloud/launch/ec2/user_data.sh").read_text()
    assert set(re.findall(r"@([A-Z_]+)@", text)) - {"NAME"} == set(shared_names())
    assert re.findall(r"@[A-Z_]+@", SCRIPT) == []


def test_the_container_is_named_as_it_is_looked_for() -> None:
    assert only_call("run").option("--name") == container_name(RUN)


def test_the_supervisor_knows_its_arguments_and_saves_before_the_engine_kills_it() -> None:
    run = only_call("run")
    args = supervisor_reads(run.words[run.words.index(FACTS["image"]) + 1 :])
    assert (args.storage, args.run_id, args.spot_notices) == (STORAGE, RUN, True)
    assert args.grace_s < float(run.option("--stop-timeout"))


@pytest.mark.parametrize("phase", BootPhase)
def test_each_phase_is_recorded_where_and_as_the_records_readers_expect_it(phase: BootPhase) -> None:
    call = only_call(f"record {phase} 'a message'")
    assert call.words[:3] == ["aws", "s3", "cp"]
    assert call.words[-1] == f"{STORAGE}/{PATHS.boot('i-7')}"
    record = BootRecord.decode(call.given.encode(), source="the script")
    expected = {"instance": "i-7", "instance_type": "p4d.24xlarge", "zone": "us-east-1b", "market": "spot"}
    assert expected.items() <= vars(record).items()
    assert (record.phase, record.message, record.extra) == (phase, "a message", {})


def test_the_script_reports_all_phases_and_no_other() -> None:
    assert set(re.findall(r"\bphase ([a-z]+)\b", SCRIPT)) == {*BootPhase}


def test_whatever_a_message_holds_the_record_can_be_read() -> None:
    call = only_call(r"""record failed $'"a" \\ b\tc\e[0m $(id) `id` \xff\n%s é'""")
    assert BootRecord.decode(call.given.encode(), source="the script").message == "a  bc[0m $(id) `id` %s "


def test_the_boot_log_and_the_count_of_earlier_machines_are_where_the_record_has_them() -> None:
    record, shipped, count = calls_of(f"{INSTANCE}; fail 1", SCRIPT)
    assert BootRecord.decode(record.given.encode(), source="the script").phase == BootPhase.FAILED
    assert shipped.words[-1] == f"{STORAGE}/{PATHS.boot_log('i-7')}"
    assert count.words == ["aws", "s3", "ls", f"{STORAGE}/{PATHS.boots}"]
    suffixes = {Path(PATHS.boot("i-7")).suffix, Path(PATHS.boot_log("i-7")).suffix}
    assert set(re.findall(r"\$\(count (\S+)\)", SCRIPT)) == suffixes


CODES = {error.exit_code for error in (MtlCloudError, StorageError)}


@pytest.mark.parametrize(
    ("code", "phase", "closes"),
    [
        (SupervisorExit.DONE, BootPhase.ENDED, True),
        (SupervisorExit.ENDED, BootPhase.ENDED, True),
        (SupervisorExit.TAKEN, BootPhase.ENDED, False),
        (SupervisorExit.CONTINUES, BootPhase.ENDED, False),
        *((code, BootPhase.FAILED, False) for code in sorted(CODES)),
    ],
)
def test_the_group_is_closed_for_the_codes_with_which_a_run_is_over(code: int, phase: str, closes: bool) -> None:
    calls = calls_of(f"shutdown() {{ :; }}; {INSTANCE}; (exit {code}); finish", SCRIPT)
    assert BootRecord.decode(calls[0].given.encode(), source="the script").phase == phase
    assert any("update-auto-scaling-group" in call.words for call in calls) is closes


def test_a_machine_that_is_switched_off_leaves_the_run_to_another() -> None:
    assert f"trap 'exit {SupervisorExit.CONTINUES}' TERM" in SCRIPT.splitlines()


def test_the_group_is_closed_under_its_name_with_the_tag_that_its_role_asks_for() -> None:
    assumed, closed = calls_of(f"{INSTANCE}; close_group", SCRIPT)
    (tag,) = re.findall(r"aws:RequestTag/([^']+)'", str(trust_policy("group", account="1", region="us-east-1")))
    assert assumed.option("--tags") == f"Key={tag},Value={KEY}"
    assert closed.option("--auto-scaling-group-name") == aws_name(RUN)


# --- the launchers, the image, the rehearsal ---


def local_arguments(plan: PlanRecord) -> list[str]:
    submission: Any = LocalLauncher(settings=SupervisorOptions(tick_s=3)).prepare(plan).request
    return list(submission["argv"][3:])


def docker_arguments(plan: PlanRecord, *flags: str) -> list[str]:
    submission: Any = DockerLauncher(environ={}, flags=flags).prepare(plan).request
    return list(submission["arguments"])


def sagemaker_arguments(plan: PlanRecord) -> list[str]:
    made: Any = request(replace(plan, **plan_on("sagemaker")))
    return list(made["AlgorithmSpecification"]["ContainerArguments"])


@pytest.mark.parametrize("arguments", [local_arguments, docker_arguments, sagemaker_arguments])
def test_the_supervisor_knows_the_arguments_of_every_launcher(arguments: Callable[[PlanRecord], list[str]]) -> None:
    args = supervisor_reads(arguments(replace(PLAN, storage="/runs")))
    assert (args.storage, args.run_id) == ("/runs", PLAN.run_id)


@pytest.mark.parametrize("backend", ["ec2", "sagemaker", "local"])
def test_the_supervisor_knows_the_flags_of_a_rehearsal(backend: str) -> None:
    with stand_in(backend) as surroundings:
        args = supervisor_reads(docker_arguments(PLAN, *surroundings.flags))
    assert (args.spot_notices, bool(args.sagemaker)) == (backend == "ec2", backend == "sagemaker")


def test_the_image_starts_the_supervisor_as_sagemaker_is_told_to() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    made: Any = request(replace(PLAN, **plan_on("sagemaker")))
    command = made["AlgorithmSpecification"]["ContainerEntrypoint"]
    words = json.loads(entry)
    assert words[: len(command)] == command
    assert supervisor_reads([*words[len(command) :], "--storage", "s", "--run-id", "r"]).echo
    (root,) = re.findall(r"install --directory .* (/\S+)$", dockerfile, re.MULTILINE)
    assert str(supervisor_reads(sagemaker_arguments(PLAN)).sagemaker) == root
