"""Dataclasses to JSON and back, and the facts of a plan, which are read this way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_harness import PLAN

from mtl_cloud.catalog import InstanceType, Price
from mtl_cloud.errors import RecordError
from mtl_cloud.json_types import Json
from mtl_cloud.names import SupervisorFlag
from mtl_cloud.runs.dataclass_json import FieldPath, from_json, to_json
from mtl_cloud.runs.plan_facts import (
    Candidate,
    Check,
    Ec2Account,
    Estimate,
    MachineImage,
    Offer,
    PlanFacts,
    Quota,
    Reservation,
    Resume,
    SageMakerAccount,
)
from mtl_cloud.runs.schema import PlanRecord

AT = FieldPath("a.json", "Thing")
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
FLOAT_OR_NONE = st.none() | FLOATS
RANGES = st.tuples(FLOATS, FLOATS)
PRICES = st.builds(Price, FLOATS)
MACHINES = st.builds(InstanceType, memory_gib=FLOATS, gpu_memory_gib=FLOATS)
ESTIMATES = st.builds(
    Estimate,
    gflop_per_image=FLOATS,
    images_per_s=RANGES,
    download_hours=FLOATS,
    hours=RANGES,
    usd=st.dictionaries(st.text(), st.tuples(FLOAT_OR_NONE, FLOAT_OR_NONE), max_size=2),
)


def several(some: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(some, max_size=2).map(tuple)


FACTS = st.builds(
    PlanFacts,
    collected=...,
    candidates=several(st.builds(Candidate, MACHINES, st.none() | PRICES)),
    offers=several(st.builds(Offer, price=st.none() | PRICES, worst_usd_per_hour=FLOAT_OR_NONE, score=...)),
    quotas=several(st.builds(Quota, need=FLOATS, code=..., have=FLOAT_OR_NONE)),
    checks=several(st.builds(Check, hint=...)),
    resume=st.none() | st.builds(Resume, images_per_s=FLOAT_OR_NONE),
    looked_up_at=st.none() | st.text(min_size=1),
    identity=st.none() | st.text(min_size=1),
    ec2=...,
    sagemaker=...,
    estimates=several(ESTIMATES),
)
P4D = InstanceType(
    name="p4d.24xlarge",
    vcpus=96,
    memory_gib=1152.0,
    gpu="A100",
    gpu_count=8,
    gpu_memory_gib=40.0,
    nvme_count=8,
    nvme_gb=1000,
    network="4x 100 Gigabit",
    efa=4,
)
PRICE = Price(21.9, "us-east-1", "2026-01-21", "a table")
EXAMPLE = PlanFacts(
    collected="2026-11-23",
    candidates=(Candidate(P4D, PRICE),),
    offers=(Offer("p4d.24xlarge", "us-east-1a", "spot", PRICE, 21.9, 7),),
    quotas=(Quota("P instances", "on_demand", "vCPUs", 96.0, "L-417A185B", 192.0),),
    checks=(Check("storage", "failed", "denied", "ask for s3:PutObject"),),
    resume=Resume("r-1", rounds=3, step=400, images_per_s=99.5),
    looked_up_at="2026-11-23T15:00:00+00:00",
    identity="arn:aws:iam::123456789012:user/ada",
    ec2=Ec2Account(
        ami=MachineImage(id="ami-1", name="dlami", root_device="/dev/sda1", parameter="/aws/x"),
        subnets={"us-east-1a": "subnet-1"},
        security_group="sg-1",
        instance_profile="mtl-cloud-instance",
        group_role="arn:aws:iam::123456789012:role/group",
        image="mtl-cloud@sha256:1",
        reservation=Reservation(zone="us-east-1a", kind="default", free=1, ends_at="2026-12-01T00:00:00+00:00"),
    ),
    sagemaker=SageMakerAccount(role="arn:aws:iam::123456789012:role/sagemaker", image="mtl-cloud@sha256:1"),
    estimates=(
        Estimate(
            "p4d.24xlarge", 4096, 1062.6, (123.0, 205.3), "gpu", 0.1, (5.7, 9.4), "2026-11-23", {"spot": (1.0, 2.0)}
        ),
    ),
)
"""No field of it is empty."""

Keys: TypeAlias = tuple[str | int, ...]


def nodes(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """All values below, each with its keys from the root."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in below:
        yield (*keys, key), inner
        yield from nodes(inner, (*keys, key))


NODES = dict(nodes(EXAMPLE.document()))
OBJECTS = [keys for keys, value in NODES.items() if isinstance(value, dict) and keys[-1] not in {"subnets", "usd"}]
"""Those two are maps: any key is one that they know."""


def path_of(keys: Keys) -> str:
    return "facts" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def parent(document: Any, keys: Keys) -> Any:
    for key in keys[:-1]:
        document = document[key]
    return document


def plan_file(facts: Any) -> bytes:
    return replace(PLAN, facts=facts).encode()


# --- a plan's facts ---


@settings(deadline=None)
@given(FACTS)
def test_any_facts_survive_the_way_through_a_plan_s_file(facts: PlanFacts) -> None:
    plan = PlanRecord.decode(plan_file(facts.document()), source="plan.json")
    assert plan.parsed_facts == facts
    assert plan.facts == facts.document()
    assert plan == replace(PLAN, facts=facts.document())


def test_the_example_has_every_field_and_they_stand_in_order_of_declaration() -> None:
    assert len(NODES) > 70
    assert all(value not in (None, [], {}, "") for value in NODES.values())
    assert list(EXAMPLE.document())[:3] == ["collected", "candidates", "offers"]


def test_they_are_parsed_once() -> None:
    plan = PlanRecord.decode(plan_file(EXAMPLE.document()), source="plan.json")
    assert plan.parsed_facts is plan.parsed_facts
    assert replace(plan, facts={}).parsed_facts == PlanFacts()


@pytest.mark.parametrize("keys", NODES, ids=path_of)
def test_a_value_of_another_kind_is_one_error_that_names_the_file_and_the_field(keys: Keys) -> None:
    document = deepcopy(EXAMPLE.document())
    wrong = 3 if isinstance(NODES[keys], dict) else {"a": 1}
    parent(document, keys)[keys[-1]] = wrong
    with pytest.raises(RecordError) as caught:
        PlanRecord.decode(plan_file(document), source="runs/r-1/plan.json")
    expected = f"runs/r-1/plan.json: the field {path_of(keys)!r} of a PlanRecord cannot be {json.dumps(wrong)}"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("offers", 0, "market"), "auction"),
        (("checks", 0, "status"), "maybe"),
        (("estimates", 0, "hours"), [1.0]),
        (("estimates", 0, "usd", "spot"), [1.0, 2.0, 3.0]),
        (("quotas", 0, "need"), True),
        (("resume", "rounds"), 1.5),
    ],
)
def test_a_value_that_its_type_does_not_have_is_named_too(keys: Keys, value: object) -> None:
    document = deepcopy(EXAMPLE.document())
    parent(document, keys)[keys[-1]] = value
    with pytest.raises(RecordError) as caught:
        PlanRecord.decode(plan_file(document), source="plan.json")
    assert f"the field {path_of(keys)!r} of a PlanRecord cannot be" in str(caught.value)


def test_a_nested_field_that_is_missing_is_named() -> None:
    document = deepcopy(EXAMPLE.document())
    del parent(document, ("offers", 0, "price"))["price"]
    with pytest.raises(RecordError, match=r"plan\.json: the field 'facts\.offers\[0\]\.price' of a PlanRecord is miss"):
        PlanRecord.decode(plan_file(document), source="plan.json")


@pytest.mark.parametrize("keys", [(), *OBJECTS], ids=path_of)
def test_a_field_of_a_newer_writer_is_kept_at_any_depth_and_hides_nothing(keys: Keys) -> None:
    document = deepcopy(EXAMPLE.document())
    parent(document, (*keys, ""))["newer"] = [{"a": 1}]
    data = plan_file(document)
    plan = PlanRecord.decode(data, source="plan.json")
    assert plan.encode() == data
    assert plan.parsed_facts == EXAMPLE


def test_a_record_older_than_the_facts_has_none() -> None:
    prices = {"prices": {"source": "shipped table", "date": "2026-08-01"}}
    assert PlanRecord.decode(plan_file(prices), source="plan.json").parsed_facts == PlanFacts()


def test_a_whole_number_is_a_float_too() -> None:
    document = deepcopy(EXAMPLE.document())
    parent(document, ("quotas", 0, "need"))["need"] = 96
    assert PlanRecord.decode(plan_file(document), source="plan.json").parsed_facts == EXAMPLE


# --- other types ---


@dataclass(frozen=True)
class Box:
    side: int
    label: str | int | None = None


@dataclass(frozen=True)
class Thing:
    boxes: list[Box]
    pair: tuple[int, Box]
    rest: Json
    anything: Any = None


def test_a_member_of_an_enumeration_is_written_as_its_value() -> None:
    (flag,) = to_json((SupervisorFlag.STORAGE,))
    assert (flag, type(flag)) == ("--storage", str)
    assert from_json(tuple[str, ...], [flag], AT) == ("--storage",)


def test_lists_pairs_unions_and_free_json_survive_the_way() -> None:
    thing = Thing([Box(1, "a"), Box(2, 3)], (4, Box(5)), {"free": [None, {"x": 1.5}]}, [True])
    document = json.loads(json.dumps(to_json(thing)))
    assert document["pair"] == [4, {"side": 5, "label": None}]
    assert from_json(Thing, document, AT) == thing


def test_a_member_of_an_enumeration_is_its_value() -> None:
    """Without the way through a file too: a launcher reads its own submission."""
    document = to_json(Box(1, SupervisorFlag.STORAGE))
    assert type(document["label"]) is str
    assert from_json(Box, document, AT) == Box(1, "--storage")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"boxes": {}}, "boxes"),
        ({"boxes": [{"side": 1}, 2]}, r"boxes\[1\]"),
        ({"pair": [1]}, "pair"),
        ({"pair": [1, {"side": 1, "label": 1.5}]}, r"pair\[1\]\.label"),
        ({"pair": [1, {}]}, r"pair\[1\]\.side"),
    ],
)
def test_the_first_wrong_value_is_named(change: dict[str, Any], path: str) -> None:
    document = {"boxes": [], "pair": [1, {"side": 1}], "rest": None, **change}
    with pytest.raises(RecordError, match=rf"^a\.json: the field '{path}' of a Thing "):
        from_json(Thing, document, AT)
