"""Facts from AWS: moto where it answers as AWS does, our own answers in botocore's shapes where it does not.

moto has no DLAMI parameter, no EC2 quotas, no Price List, no placement scores and no reservations, and invents spot
prices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from aws_harness import Answers, moto_clients
from aws_stack import make_stack

from mtl_cloud import catalog
from mtl_cloud.aws import AwsClients
from mtl_cloud.container.image import CLOUD_PLATFORM, image_content
from mtl_cloud.errors import PlanError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.launch.submit import with_requests
from mtl_cloud.planning.facts import Facts
from mtl_cloud.planning.lookup import check_permission, look_up, look_up_prices
from mtl_cloud.planning.plan import plan_run, require_launchable
from mtl_cloud.runs.plan_facts import Check, Ec2Account, Reservation, SageMakerAccount
from mtl_cloud.runs.schema import PlanRecord

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)
QUOTA = {"QuotaCode": "L-417A185B", "QuotaName": "Running On-Demand P instances", "Value": 96.0}


SERVICES = ("cloudformation", "ec2", "ecr", "pricing", "s3", "service-quotas", "ssm", "sts")
BUCKET = "mtl-cloud-123456789012-us-east-1"
REPOSITORY = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mtl-cloud"


@dataclass
class Account:
    """An account with the stack, an image, a dataset."""

    clients: AwsClients
    answers: Answers
    machine_image: dict[str, Any]


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with moto_clients() as clients:
        answers = Answers(clients, SERVICES)
        make_stack(clients("cloudformation"))
        push(clients, image_content({}, platform=CLOUD_PLATFORM).tag)
        clients("s3").put_object(Bucket=BUCKET, Key="mtl-cloud/voc/a.jpg", Body=b"jpeg")
        yield Account(clients, answers, clients("ec2").describe_images(Owners=["amazon"])["Images"][0])


@pytest.fixture
def aws(account: Account) -> Iterator[Answers]:
    """What moto lacks, answered so that all is well; a test answers otherwise what it is about."""
    answers = account.answers
    answers.forget()
    answers.give("ssm", "GetParameter", {"Parameter": {"Value": account.machine_image["ImageId"]}})
    answers.give("service-quotas", "GetServiceQuota", {"Quota": QUOTA})
    answers.give("pricing", "GetProducts", {"PriceList": [product("p4d.24xlarge", 20.5)]})
    yield answers
    answers.forget()


@pytest.fixture
def clients(account: Account, aws: Answers) -> AwsClients:
    return account.clients


def push(clients: AwsClients, tag: str) -> str:
    """An image in the stack's repository; its digest."""
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": {"digest": f"sha256:{tag}"}, "layers": []})
    pushed = clients("ecr").put_image(repositoryName="mtl-cloud", imageManifest=manifest, imageTag=tag)
    return str(pushed["image"]["imageId"]["imageDigest"])


def product(name: str, usd: float, key: str = "instanceType", unit: str = "Hrs") -> str:
    """An entry of the Price List as the API documents it: a JSON document in a string."""
    dimension = {"unit": unit, "pricePerUnit": {"USD": f"{usd:.10f}"}}
    terms = {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": dimension}}}}
    return json.dumps({"product": {"attributes": {key: name}}, "terms": terms})


def on_ec2(storage: str = "", uri: str = "", **compute: Any) -> JobSpec:
    fields = {"backend": "ec2", "instance_type": "p4d.24xlarge", "gpu_count": 8, **compute}
    return JobSpec.model_validate(
        {
            "dataset": {"name": "voc", "uri": uri or f"s3://{BUCKET}/mtl-cloud/voc"},
            "compute": fields,
            "storage": storage or f"s3://{BUCKET}/mtl-cloud",
        }
    )


def facts_of(clients: AwsClients, job: JobSpec, **settings: Any) -> Facts:
    return look_up(job, clients, now=NOW, inputs=[str(job.datasets[0].uri)], **settings)


def check(facts: Facts, name: str) -> Check:
    (found,) = [one for one in facts.checks if one.name == name]
    return found


def test_an_account_in_which_all_is_well(clients: AwsClients) -> None:
    facts = facts_of(clients, on_ec2())
    assert {(one.name, one.status) for one in facts.checks} == {("dataset", "ok"), ("storage", "ok")}
    assert [(quota.code, quota.have, quota.is_short) for quota in facts.quotas] == [("L-417A185B", 96.0, False)]
    assert facts.candidates[0].price == catalog.Price(20.5, "us-east-1", "2026-11-23", "AWS Price List API")
    assert facts.identity == "arn:aws:sts::123456789012:user/moto"
    assert facts.looked_up_at == "2026-11-23T15:00:00+00:00"
    require_launchable(facts)


def test_the_account_s_facts_are_those_that_the_requests_need(clients: AwsClients, aws: Answers) -> None:
    account = facts_of(clients, on_ec2()).account
    assert isinstance(account, Ec2Account)
    assert sorted(asdict(account)) == [
        "ami", "group_role", "image", "instance_profile", "reservation", "security_group", "subnets",
    ]  # fmt: skip
    assert account.ami.id.startswith("ami-")
    assert account.ami.root_device in {"/dev/sda1", "/dev/xvda"}
    assert account.image.startswith("123456789012.dkr.ecr.us-east-1.amazonaws.com/mtl-cloud@sha256:")


def test_the_plan_has_its_requests_and_their_dry_run_is_allowed(clients: AwsClients, aws: Answers) -> None:
    from mtl_cloud.launch import get_launcher

    job = on_ec2()
    plan = plan_run(job, facts_of(clients, job), run_id="r-1", now=NOW)
    plan = with_requests(plan, get_launcher("ec2"))
    assert PlanRecord.decode(plan.encode(), source="plan.json") == plan
    assert check_permission(clients, plan).status == "ok"
    aws.refuse("ec2", "RunInstances", "UnauthorizedOperation", "You are not authorized.", 403)
    denied = check_permission(clients, plan)
    assert denied.status == "failed"
    assert denied.hint
    assert "ec2:RunInstances" in denied.hint


def test_an_image_is_pinned_by_its_digest(clients: AwsClients) -> None:
    digest = push(clients, "v2")
    account = facts_of(clients, on_ec2(image=f"{REPOSITORY}:v2")).account
    assert account
    assert account.image == f"{REPOSITORY}@{digest}"


def test_an_image_that_is_not_there_fails_before_it_costs(clients: AwsClients, aws: Answers) -> None:
    found = facts_of(clients, on_ec2(image="123456789012.dkr.ecr.us-east-1.amazonaws.com/mtl-cloud:gone"))
    assert found.account is None
    assert (check(found, "account").status, check(found, "account").hint) == (
        "failed",
        "the repository has no such image; `mtl-cloud image push`",
    )


def test_zones_are_those_that_offer_the_type(clients: AwsClients) -> None:
    zones = {offer.zone for offer in facts_of(clients, on_ec2()).offers}
    pages = clients("ec2").get_paginator("describe_instance_type_offerings").paginate(LocationType="availability-zone")
    offered = [row for page in pages for row in page["InstanceTypeOfferings"]]
    assert zones == {row["Location"] for row in offered if row["InstanceType"] == "p4d.24xlarge"}
    assert len(zones) >= 3


def test_a_spot_job_sees_each_zone_s_price_and_score_the_cheapest_first(clients: AwsClients, aws: Answers) -> None:
    zones = clients("ec2").describe_availability_zones()["AvailabilityZones"]
    ids = {zone["ZoneName"]: zone["ZoneId"] for zone in zones}
    history = [point("us-east-1b", "9.50"), point("us-east-1d", "8.25"), point("us-east-1b", "7.00", hour=9)]
    aws.give("ec2", "DescribeSpotPriceHistory", {"SpotPriceHistory": history})
    score = {"Region": "us-east-1", "AvailabilityZoneId": ids["us-east-1d"], "Score": 7}
    aws.give("ec2", "GetSpotPlacementScores", {"SpotPlacementScores": [score]})
    offers = facts_of(clients, on_ec2(purchase="spot")).offers
    priced = [(offer.zone, offer.price.usd_per_hour, offer.score) for offer in offers if offer.price]
    assert priced == [("us-east-1d", 8.25, 7), ("us-east-1b", 9.5, None)]
    assert {offer.worst_usd_per_hour for offer in offers} == {20.5}


def point(zone: str, usd: str, hour: int = 12) -> dict[str, Any]:
    when = datetime(2026, 11, 23, hour, tzinfo=UTC)
    return {"AvailabilityZone": zone, "InstanceType": "p4d.24xlarge", "SpotPrice": usd, "Timestamp": when}


def test_a_short_quota_stops_the_launch_with_its_code_have_and_need(clients: AwsClients, aws: Answers) -> None:
    aws.give("service-quotas", "GetServiceQuota", {"Quota": {**QUOTA, "Value": 0.0}})
    with pytest.raises(PlanError, match=r"\(L-417A185B\) is 0 vCPUs, and the job needs 96"):
        require_launchable(facts_of(clients, on_ec2()))


@pytest.mark.parametrize(
    ("service", "operation", "name"),
    [
        ("pricing", "GetProducts", "prices"),
        ("service-quotas", "GetServiceQuota", "quota"),
        ("ec2", "DescribeInstanceTypeOfferings", "zones"),
    ],
)
def test_what_aws_does_not_tell_stays_as_the_tables_have_it(
    clients: AwsClients, aws: Answers, service: str, operation: str, name: str
) -> None:
    aws.refuse(service, operation, "AccessDeniedException", "Access denied.", 403)
    facts = facts_of(clients, on_ec2())
    found = check(facts, name)
    assert found.status == "unknown"
    assert found.hint
    assert f"{service.replace('-', '')}:{operation}" in found.hint
    assert facts.usd_per_hour == (21.957642 if name == "prices" else 20.5)
    assert facts.offers
    require_launchable(facts)


def test_without_credentials_one_check_says_so_and_the_tables_stand(clients: AwsClients, aws: Answers) -> None:
    aws.refuse("sts", "GetCallerIdentity", "ExpiredToken", "The security token has expired", 403)
    facts = facts_of(clients, on_ec2())
    assert [(one.name, one.status) for one in facts.checks] == [("identity", "failed")]
    assert (facts.usd_per_hour, facts.looked_up_at) == (21.957642, None)


def test_a_region_without_the_stack_says_how_to_make_it(clients: AwsClients, aws: Answers) -> None:
    message = "Stack with id mtl-cloud does not exist"
    aws.refuse("cloudformation", "DescribeStacks", "ValidationError", message)
    found = check(facts_of(clients, on_ec2()), "account")
    assert (found.status, found.hint) == ("failed", "mtl-cloud bootstrap --region us-east-1")


def test_a_disk_smaller_than_the_machine_image_is_refused(clients: AwsClients, aws: Answers, account: Account) -> None:
    image = account.machine_image
    disk = {"DeviceName": image["RootDeviceName"], "Ebs": {"VolumeSize": 75}}
    aws.give("ec2", "DescribeImages", {"Images": [{**image, "BlockDeviceMappings": [disk]}]})
    found = check(facts_of(clients, on_ec2(disk_gib=30)), "account")
    assert "30 GiB is less than the 75 GiB" in found.detail
    assert found.hint == "write disk_gib: 75 or more"


@pytest.mark.parametrize(
    ("job", "name", "words"),
    [
        ({"uri": "s3://mtl-cloud-123456789012-us-east-1/mtl-cloud/nothing"}, "dataset", "nothing is there"),
        ({"uri": "s3://no-such-bucket/voc"}, "dataset", "NoSuchBucket"),
        ({"storage": "s3://no-such-bucket/runs"}, "storage", "NoSuchBucket"),
    ],
)
def test_a_dataset_or_storage_out_of_reach_fails_before_it_costs(
    clients: AwsClients, job: dict[str, str], name: str, words: str
) -> None:
    found = check(facts_of(clients, on_ec2(**job)), name)
    assert found.status == "failed"
    assert words in found.detail


def test_trying_the_storage_leaves_nothing(clients: AwsClients) -> None:
    s3 = clients("s3")
    before = s3.list_objects_v2(Bucket=BUCKET)["KeyCount"]
    facts_of(clients, on_ec2())
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == before
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


def test_a_reservation_tells_its_zone_and_kind_and_must_be_active(clients: AwsClients, aws: Answers) -> None:
    reserved = {"CapacityReservationId": "cr-1", "State": "active", "AvailabilityZone": "us-east-1b"}
    reserved |= {"AvailableInstanceCount": 1, "ReservationType": "capacity-block", "EndDate": NOW}  # type: ignore[dict-item]
    aws.give("ec2", "DescribeCapacityReservations", {"CapacityReservations": [reserved]})
    account = facts_of(clients, on_ec2(capacity_reservation="cr-1")).account
    assert isinstance(account, Ec2Account)
    assert account.reservation == Reservation(
        zone="us-east-1b",
        kind="capacity-block",
        free=1,
        ends_at=NOW.isoformat(),
    )


def test_an_expired_reservation_is_refused(clients: AwsClients, aws: Answers) -> None:
    reserved = {"CapacityReservationId": "cr-1", "State": "expired", "AvailabilityZone": "us-east-1b"}
    aws.give("ec2", "DescribeCapacityReservations", {"CapacityReservations": [reserved]})
    found = check(facts_of(clients, on_ec2(capacity_reservation="cr-1")), "account")
    assert "cr-1 is expired" in found.detail


def test_sagemaker_s_role_image_price_and_quota(clients: AwsClients, aws: Answers) -> None:
    name = "ml.p4d.24xlarge for training job usage"
    aws.give("service-quotas", "ListServiceQuotas", {"Quotas": [{"QuotaName": name, "Value": 1.0}]})
    priced = product("ml.p4d.24xlarge", 25.0, "instanceName", "Hours")
    aws.give("pricing", "GetProducts", {"PriceList": [priced]})
    facts = facts_of(clients, on_ec2(backend="sagemaker", instance_type="ml.p4d.24xlarge"))
    assert facts.usd_per_hour == 25.0
    assert [(quota.name, quota.have, quota.need) for quota in facts.quotas] == [(name, 1.0, 1)]
    assert isinstance(facts.account, SageMakerAccount)
    assert facts.account.role.startswith("arn:aws:iam::123456789012:role/")
    assert sorted(asdict(facts.account)) == ["image", "role"]


def test_a_launch_asks_for_no_more_than_it_needs(clients: AwsClients, aws: Answers) -> None:
    facts = facts_of(clients, on_ec2(), thorough=False)
    assert sorted(aws.asked) == [
        "DescribeImages",
        "DescribeImages",
        "DescribeStacks",
        "GetCallerIdentity",
        "GetParameter",
        "GetProducts",
    ]
    assert facts.checks == ()


def test_prices_of_a_region_are_looked_up_with_30_days_of_spot(clients: AwsClients, aws: Answers) -> None:
    history = [point("us-east-1b", "9.00"), point("us-east-1d", "8.00"), point("us-east-1b", "7.00", hour=9)]
    aws.give("ec2", "DescribeSpotPriceHistory", {"SpotPriceHistory": history})
    book = look_up_prices(clients, ["p4d.24xlarge"], now=NOW)
    assert book.on_demand["p4d.24xlarge", "us-east-1"].usd_per_hour == 20.5
    spot = book.spot["p4d.24xlarge", "us-east-1"]
    assert (spot.least, spot.mean, spot.most, spot.days, spot.date) == (7.0, 8.0, 9.0, 30, "2026-11-23")


def test_a_job_on_one_s_own_machine_asks_nobody() -> None:
    job = JobSpec.model_validate({"dataset": {"name": "embedded"}})
    assert look_up(job, None, now=NOW) == Facts()  # type: ignore[arg-type]  # nobody there to be asked
