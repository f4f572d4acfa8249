"""The requests of a run on EC2: compared whole with golden files, and with botocore's own model of the API.

``MTL_CLOUD_UPDATE_GOLDEN=1`` rewrites the files, for a person to review.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.session import get_session
from botocore.validate import ParamValidator
from ec2_harness import START, ec2_plan

from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.ec2 import Ec2Launcher
from mtl_cloud.launch.ec2.request import Template, expires_at, requests
from mtl_cloud.names import KEY_TAG
from mtl_cloud.runs.dataclass_json import to_json
from mtl_cloud.runs.plan_facts import Offer
from mtl_cloud.runs.schema import PlanRecord

GOLDEN = Path(__file__).parent / "golden"
KEY = 16 * "5e"
SERVICES = {"create_launch_template": "ec2"}
RESERVED = {"reservation": {"zone": "us-east-1b", "kind": "default"}}
BLOCK = {"reservation": {"zone": "us-east-1c", "kind": "capacity-block"}}
PLANS = {
    "on_demand": ec2_plan(),
    "spot_types": ec2_plan(purchase="spot", instance_type=["p4d.24xlarge", "p4de.24xlarge"], budget_usd=100),
    "spot_then_on_demand": ec2_plan(
        purchase="spot_then_on_demand", on_demand_after=3, instance_type="g5.xlarge", gpu_count=1
    ),
    "cpu": ec2_plan(instance_type="c5.9xlarge", gpu_count=0, disk_gib=50, capacity_timeout_minutes=None),
    "reservation": ec2_plan(capacity_reservation="cr-0a1", facts=RESERVED),
    "capacity_block": ec2_plan(capacity_reservation="cr-0b2", facts=BLOCK),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_requests_are_the_golden_ones_whole(name: str) -> None:
    text = json.dumps(Ec2Launcher().prepare(PLANS[name]).request, indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("MTL_CLOUD_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", PLANS)
def test_the_requests_fit_botocores_model_of_the_api(name: str) -> None:
    for method, parameters in requests(PLANS[name]).items():
        operation = "".join(word.capitalize() for word in method.split("_"))
        model = get_session().get_service_model(SERVICES.get(method, "autoscaling")).operation_model(operation)
        report = ParamValidator().validate(parameters, model.input_shape)
        assert not report.has_errors(), report.generate_report()


def _machine(plan: PlanRecord) -> Any:
    request: Any = requests(plan)["create_launch_template"]
    return request["LaunchTemplateData"]


def test_a_machine_takes_its_disk_with_it_keeps_it_encrypted_and_answers_imds_v2_alone() -> None:
    machine = _machine(ec2_plan(disk_gib=77))
    assert machine["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    (disk,) = machine["BlockDeviceMappings"]
    assert disk["DeviceName"] == "/dev/sda1"
    assert disk["Ebs"] == {"VolumeType": "gp3", "VolumeSize": 77, "Encrypted": True, "DeleteOnTermination": True}


def test_all_names_follow_from_the_run_id() -> None:
    sent = json.dumps(requests(ec2_plan("cats-42")))
    assert sent.count("mtl-cloud-cats-42") > 5
    assert "digits" not in sent


def test_everything_is_tagged_with_run_owner_expiry_and_job_and_the_users_own_tags_hide_none() -> None:
    plan = replace(ec2_plan(), tags={"mtl-cloud:run": "forged", "team": "v"})
    sent: Any = requests(plan)
    expected = {
        "team": "v",
        "Name": "mtl-cloud-digits-1",
        "mtl-cloud:run": "digits-1",
        "mtl-cloud:owner": "ada",
        "mtl-cloud:expires-at": "2026-01-01T11:30:00+00:00",
        "mtl-cloud:spec": plan.spec_digest[:16],
        "mtl-cloud:storage": plan.storage,
    }
    lists = [held["Tags"] for held in sent["create_launch_template"]["TagSpecifications"]]
    lists += [held["Tags"] for held in _machine(plan)["TagSpecifications"]]
    lists.append(sent["create_auto_scaling_group"]["Tags"])
    assert len(lists) == 5
    for tags in lists:
        assert {tag["Key"]: tag["Value"] for tag in tags if tag["Key"] != KEY_TAG} == expected


def test_the_key_is_a_tag_of_group_and_template_and_in_the_script_and_no_instance_is_tagged_with_it() -> None:
    plan = replace(ec2_plan(), tags={KEY_TAG: "forged", KEY_TAG.upper(): "forged"})
    sent: Any = requests(plan, Template(id="lt-7", key=KEY))
    template, group = sent["create_launch_template"], sent["create_auto_scaling_group"]
    (tag,) = [tag for tag in group["Tags"] if tag["Key"] == KEY_TAG]
    assert tag == {"Key": KEY_TAG, "Value": KEY, "PropagateAtLaunch": False}
    (tagged,) = template["TagSpecifications"]
    assert [tag["Value"] for tag in tagged["Tags"] if tag["Key"] == KEY_TAG] == [KEY]
    assert f"\nKEY={KEY}\n".encode() in b64decode(template["LaunchTemplateData"].pop("UserData"))
    assert json.dumps(sent).count(KEY) == 2
    assert "forged" not in json.dumps(sent)


def test_the_group_is_bound_to_the_template_whose_key_it_has_and_not_to_a_name() -> None:
    sent: Any = requests(ec2_plan(), Template(id="lt-7", key=KEY))
    held = sent["create_auto_scaling_group"]["MixedInstancesPolicy"]["LaunchTemplate"]
    assert held["LaunchTemplateSpecification"] == {"LaunchTemplateId": "lt-7", "Version": "1"}


def test_no_key_is_shown_by_what_holds_it() -> None:
    assert KEY not in repr(Template(id="lt-7", key=KEY))


def test_the_group_is_made_closed_and_its_wall_stands_at_the_expiry_before_it_is_opened() -> None:
    sent: Any = requests(ec2_plan())
    assert list(sent)[1:] == [
        "create_auto_scaling_group",
        "put_scheduled_update_group_action",
        "update_auto_scaling_group",
    ]
    assert sent["create_auto_scaling_group"]["MaxSize"] == 0
    assert sent["put_scheduled_update_group_action"]["StartTime"] == "2026-01-01T11:30:00+00:00"
    assert sent["put_scheduled_update_group_action"]["MaxSize"] == 0
    assert sent["update_auto_scaling_group"]["MaxSize"] == 1


def test_the_expiry_leaves_room_for_waiting_the_deadline_and_saving() -> None:
    assert expires_at(ec2_plan(max_hours=5)) == START + timedelta(hours=6, minutes=30)
    assert expires_at(ec2_plan(max_hours=5, capacity_timeout_minutes=None)) == START + timedelta(hours=5, minutes=30)
    assert expires_at(ec2_plan(budget_usd=21.957642)) == START + timedelta(hours=2, minutes=30)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(ec2_plan(), storage="/runs"), "storage: an instance needs a bucket, not /runs"),
        (replace(ec2_plan(), facts={}), "the plan lacks the fact ec2.ami"),
        (ec2_plan(facts={"group_role": None}), "the plan lacks the fact ec2.group_role"),
        (ec2_plan(capacity_reservation="cr-1"), "the plan lacks the fact ec2.reservation"),
        (replace(ec2_plan(), deadline_s=None), "the plan has no deadline"),
        (
            ec2_plan(capacity_reservation="cr-1", facts={"reservation": {"zone": "us-east-1f", "kind": "default"}}),
            "it is in us-east-1f, where the network has no subnet",
        ),
    ],
)
def test_a_plan_without_what_a_machine_needs_is_refused_by_name(plan: PlanRecord, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        requests(plan)


def test_zones_that_do_not_offer_the_type_are_not_asked() -> None:
    plan = ec2_plan()
    offers = [Offer("p4d.24xlarge", zone, "on_demand", None, None) for zone in ("us-east-1b", "us-east-1d")]
    group: Any = requests(replace(plan, facts={**plan.facts, "offers": to_json(offers)}))["create_auto_scaling_group"]
    assert group["VPCZoneIdentifier"] == "subnet-0b"


def test_the_boot_script_is_short_and_holds_no_comment() -> None:
    script = b64decode(_machine(PLANS["spot_types"])["UserData"])
    assert len(script) < 8192
    assert [line for line in script.splitlines() if line.lstrip().startswith(b"#")] == [b"#!/bin/bash"]
