"""The boot script run for real, in a container that stands for the machine.

Its own programs (bash, coreutils, python), the metadata service over HTTP and the supervisor with its trainer are real;
what a container cannot have (disks, systemd, AWS, an engine of its own) is a stub that writes down how it was called.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from container_engine import base_image, lent_engine
from ec2_harness import ec2_plan
from run_harness import make_run

from mtl_cloud.launch.ec2.request import Template, requests
from mtl_cloud.names import KEY_TAG
from mtl_cloud.runs.schema import BootRecord, PlanRecord, ResultRecord
from mtl_cloud.storage import FolderStorage

MACHINE = Path(__file__).parent / "machine"
PACKAGE = Path(__file__).parents[3]
INSTANCE = "i-0123456789abcdef0"
BOOT_LOG = f"boots/{INSTANCE}.log"
CLOSED = (
    "aws autoscaling update-auto-scaling-group --auto-scaling-group-name mtl-cloud-digits-1 --min-size 0 --max-size 0"
)
CLOSED += " --desired-capacity 0"
KEY = 16 * "5e"
ASSUMED = (
    "aws sts assume-role --role-arn arn:aws:iam::123456789012:role/mtl-cloud-group-us-east-1 --role-session-name"
    f" {INSTANCE} --duration-seconds 900 --tags Key={KEY_TAG},Value={KEY}"
    " --query Credentials.[AccessKeyId, SecretAccessKey, SessionToken] --output text"
)
DISK = "/dev/nvme{}n1 Amazon EC2 NVMe Instance Storage\n"
ROOT = "/dev/nvme0n1 Amazon Elastic Block Store\n"
NOTICE = json.dumps({"action": "terminate", "time": f"{datetime.now(UTC) + timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}"})
RECORDS = {"done": "print('done')", "wrong": "raise ValueError('no such class')", "long": "work()"}
SPOT_FIRST = {"market": "spot", "script": "spot_first.sh"}
TWO_DISKS = {"DISKS": ROOT + DISK.format(1) + DISK.format(2)}
SCENARIOS: dict[str, dict[str, Any]] = {
    "done": {"environ": TWO_DISKS},
    "one disk": {"environ": {"DISKS": ROOT + DISK.format(1)}},
    "no disk": {"environ": {"DISKS": ROOT}},
    "mounted by the AMI": {"environ": {"AMI_MOUNTS": "1"}},
    "wrong": {"record": "wrong"},
    "interrupted": {"record": "long", "notice": NOTICE, "market": "spot"},
    "no image": {"environ": {"FAIL_PROGRAM": "docker"}},
    "third failure": {"environ": {"FAIL_PROGRAM": "docker"}, "boots": ["i-1.log", "i-2.log"]},
    "first interruption": {**SPOT_FIRST, "boots": ["i-1.json"]},
    "second interruption": {**SPOT_FIRST, "boots": ["i-1.json", "i-2.json"]},
    "no right to change": {
        **SPOT_FIRST,
        "boots": ["i-1.json", "i-2.json"],
        "environ": {"FAIL_CALL": "aws autoscaling update-auto-scaling-group"},
    },
    "no role": {**SPOT_FIRST, "boots": ["i-1.json", "i-2.json"], "environ": {"FAIL_CALL": "aws sts assume-role"}},
}
MOST_CALLS = 30
"""More than a boot makes: each of them fails once."""
BREAKING = {f"call {n}": {"environ": {**TWO_DISKS, "FAIL_AT": str(n)}} for n in range(1, MOST_CALLS + 1)}
PROGRAMS = ("aws", "curl", "lsblk", "mdadm", "mkfs.ext4", "mount", "systemctl")
BROKEN = {f"no {program}": {"environ": {**TWO_DISKS, "FAIL_PROGRAM": program}} for program in PROGRAMS}


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The two boots that matter most: one that goes well, one that does not."""
    return booted(tmp_path_factory.mktemp("machine"), {name: SCENARIOS[name] for name in ("done", "no image")})


@pytest.fixture(scope="module")
def all_boots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return booted(tmp_path_factory.mktemp("machine"), SCENARIOS | BROKEN)


@pytest.fixture(scope="module")
def failing_boots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One for each call that a boot makes: that one fails."""
    return booted(tmp_path_factory.mktemp("machine"), BREAKING)


def booted(folder: Path, scenarios: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Scenario -> what came of it; all of them in one container."""
    shutil.copytree(MACHINE, folder, dirs_exist_ok=True)
    _write_scripts(folder)
    for name, code in RECORDS.items():
        make_run(FolderStorage(folder / "records" / name / "bucket" / "runs-of-ada"), code, backend="ec2")
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    with lent_engine() as engine:
        volumes = ["--volume", f"{folder}:/machine:ro", "--volume", f"{PACKAGE}:/package:ro"]
        command = [engine.program, "run", "--rm", "--network", "none", "--hostname", INSTANCE, *volumes]
        command += ["--env", "PYTHONPATH=/package", "--env", "PYTHONDONTWRITEBYTECODE=1", base_image(engine)]
        done = subprocess.run([*command, "python3", "/machine/boot.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def _write_scripts(folder: Path) -> None:
    plans = {"user_data.sh": ec2_plan(), "spot_first.sh": ec2_plan(purchase="spot_then_on_demand", on_demand_after=2)}
    for name, plan in plans.items():
        (folder / name).write_bytes(_script(plan))
    (folder / "bin").mkdir()
    for program in (*PROGRAMS, "docker", "mountpoint", "shutdown", "sleep"):
        os.link(folder / "stub", folder / "bin" / program)


def _script(plan: PlanRecord) -> bytes:
    now = datetime.now(UTC).isoformat()
    template: Any = requests(replace(plan, created_at=now), Template(id="lt-1", key=KEY))["create_launch_template"]
    return b64decode(template["LaunchTemplateData"]["UserData"])


def _phase(booted: Any) -> tuple[str, str]:
    record = BootRecord.decode(booted["files"][f"boots/{INSTANCE}.json"].encode(), source="boot")
    return record.phase, record.message


def test_the_timer_is_armed_before_all_else_and_the_machine_is_off_after_all_else(boots: Any) -> None:
    for boot in boots.values():
        assert boot["calls"][0] in {"shutdown -P +689", "shutdown -P +690"}  # 10 h, the wait for capacity, the slack
        assert boot["calls"][-1] == "shutdown -P now"


def test_a_whole_boot_runs_the_image_leaves_the_result_closes_the_group_and_ends(boots: Any) -> None:
    booted = boots["done"]
    result = ResultRecord.decode(booted["files"]["result.json"].encode(), source="result")
    assert result.outcome == "done"
    assert booted["calls"][-3:] == [ASSUMED, CLOSED, "shutdown -P now"]
    assert _phase(booted) == ("ended", "the run is over (supervisor: 0)")
    assert BOOT_LOG not in booted["files"]
    attempt = json.loads(booted["files"]["attempts/0001.json"])
    assert attempt["host"] == INSTANCE  # so an attempt's machine, and its price, are known


def test_the_container_gets_gpus_shared_memory_limits_and_nothing_that_it_does_not_need(boots: Any) -> None:
    (run,) = [call for call in boots["done"]["calls"] if call.startswith("docker run")]
    for option in (
        "--gpus 8",
        "--shm-size",
        "--ulimit memlock=-1",
        "--cap-drop ALL",
        "--read-only",
        f"--hostname {INSTANCE}",
        "--storage s3://bucket/runs-of-ada --run-id digits-1 --spot-notices",
    ):
        assert option in run


def test_the_registrys_token_is_asked_for_on_the_machine_just_before_the_pull(boots: Any) -> None:
    calls = boots["done"]["calls"]
    registry = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
    pull = calls.index(f"docker pull --quiet {registry}/mtl-cloud:3fa9c1")
    assert sorted(calls[pull - 2 : pull]) == [
        "aws ecr get-login-password --region us-east-1",
        f"docker login --username AWS --password-stdin {registry}",
    ]


def test_the_group_is_changed_by_its_role_and_all_else_by_the_instances(boots: Any) -> None:
    """Nothing else, the container least of all, sees the credentials."""
    by_group = [call for call in boots["done"]["signed"] if not call.endswith("by the instance")]
    assert by_group == ["aws autoscaling update-auto-scaling-group by ASIAGROUP token-of-group"]
    assert "docker run --name by the instance" in boots["done"]["signed"]


def test_the_key_is_told_to_the_role_and_to_nobody_else(boots: Any) -> None:
    for boot in boots.values():
        assert_key_is_kept(boot)
    assert [call for call in boots["done"]["calls"] if KEY in call] == [ASSUMED]


def assert_key_is_kept(boot: Any) -> None:
    """Neither the run record, which other runs' machines may read, nor the log has it, nor the credentials it gave."""
    for text in (boot["log"], *boot["files"], *boot["files"].values()):
        assert not any(secret in text for secret in (KEY, "secret/of+group", "token-of-group"))


def _disk_calls(booted: Any) -> list[str]:
    return [call for call in booted["calls"] if call.split()[0] in {"mdadm", "mkfs.ext4", "mount"}]


def test_the_instances_own_disks_are_striped_and_docker_lies_on_them(boots: Any) -> None:
    made, formatted, mounted, docker, containerd = _disk_calls(boots["done"])
    assert made.endswith("--level=0 --raid-devices=2 /dev/nvme1n1 /dev/nvme2n1")
    assert formatted.endswith(" /dev/md0")
    assert mounted == "mount -o noatime,discard /dev/md0 /var/lib/mtl-cloud"
    assert docker == "mount --bind /var/lib/mtl-cloud/docker /var/lib/docker"
    assert containerd == "mount --bind /var/lib/mtl-cloud/containerd /var/lib/containerd"


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
def test_one_disk_needs_no_stripe_none_the_root_disk_and_what_the_ami_has_mounted_is_taken(all_boots: Any) -> None:
    assert _disk_calls(all_boots["one disk"])[0].endswith(" /dev/nvme1n1")
    assert len(_disk_calls(all_boots["one disk"])) == 4
    assert len(_disk_calls(all_boots["no disk"])) == 2
    assert (
        _disk_calls(all_boots["mounted by the AMI"])[0]
        == "mount --bind /opt/dlami/nvme/mtl-cloud/docker /var/lib/docker"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
def test_a_users_mistake_ends_the_run_and_closes_the_group(all_boots: Any) -> None:
    assert json.loads(all_boots["wrong"]["files"]["result.json"])["outcome"] == "user_error"
    assert CLOSED in all_boots["wrong"]["calls"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
def test_an_interrupted_machine_leaves_the_group_open_for_the_next(all_boots: Any) -> None:
    booted = all_boots["interrupted"]
    assert json.loads(booted["files"]["attempts/0001/exit.json"])["outcome"] == "interrupted"
    assert "result.json" not in booted["files"]
    assert CLOSED not in booted["calls"]
    assert _phase(booted) == ("ended", "the run continues elsewhere (supervisor: 75)")


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
def test_a_machine_that_fails_ships_its_log_and_leaves_the_group_open_until_the_third(all_boots: Any) -> None:
    for name, closed in (("no image", False), ("third failure", True)):
        booted = all_boots[name]
        assert _phase(booted)[0] == "failed"
        assert "docker" in booted["files"][BOOT_LOG]
        assert (CLOSED in booted["calls"]) is closed


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
def test_after_two_interruptions_a_spot_machine_has_the_next_one_bought_on_demand_and_makes_room(
    all_boots: Any,
) -> None:
    again, switched = (all_boots[f"{n}"] for n in ("first interruption", "second interruption"))
    assert json.loads(again["files"]["result.json"])["outcome"] == "done"
    (change,) = [call for call in switched["calls"] if "OnDemandPercentageAboveBaseCapacity" in call]
    assert change.endswith('{"InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 100}}')
    assert "--max-size 1" in change
    assert not any(call.startswith("docker run") for call in switched["calls"])
    assert _phase(switched)[0] == "ended"
    assert [call for call in switched["signed"] if "ASIAGROUP" in call] == [
        "aws autoscaling update-auto-scaling-group by ASIAGROUP token-of-group"
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
@pytest.mark.parametrize("name", ["no role", "no right to change"])
def test_where_the_group_may_not_be_changed_the_run_goes_on_with_spot_and_the_machine_is_off(
    all_boots: Any, name: str
) -> None:
    boot = all_boots[name]
    assert json.loads(boot["files"]["result.json"])["outcome"] == "done"
    assert sum(call.startswith("aws sts assume-role") for call in boot["calls"]) == 2  # to buy, and to close
    assert "the group cannot be changed to on demand" in boot["log"]
    assert "the group is not closed" in boot["log"]
    assert boot["calls"][-1] == "shutdown -P now"


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
@pytest.mark.parametrize("number", range(1, MOST_CALLS + 1))
def test_a_failure_of_any_call_still_ends_in_a_result_or_in_the_log_shipped(failing_boots: Any, number: int) -> None:
    boot = failing_boots[f"call {number}"]
    failed = (boot["calls"] + MOST_CALLS * [""])[number - 1]
    assert "result.json" in boot["files"] or BOOT_LOG in boot["files"] or "boots/unknown.log" in boot["files"], failed
    assert boot["calls"][-1] == "shutdown -P now" or number == len(boot["calls"])
    assert_key_is_kept(boot)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
def test_every_call_of_a_boot_was_among_those_that_failed(all_boots: Any) -> None:
    assert 20 < len(all_boots["done"]["calls"]) < MOST_CALLS


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one boots all
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_is_broken_for_good_still_ends_in_the_machine_off(all_boots: Any, program: str) -> None:
    boot = all_boots[f"no {program}"]
    assert boot["calls"][-1] == "shutdown -P now"
    shipped = BOOT_LOG in boot["files"] or "boots/unknown.log" in boot["files"]
    assert shipped or program in {
        "aws",
        "lsblk",
    }  # without the one nothing can be shipped, without the other all goes on
