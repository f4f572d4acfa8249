"""The files of a run's record: what is written is read back, and what cannot be understood is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.errors import RecordError
from mtl_cloud.runs import schema as records
from mtl_cloud.runs.schema import (
    AttemptRecord,
    CheckpointManifest,
    Outcome,
    PlanRecord,
    Record,
    RoundRecord,
    StartRecord,
)

KINDS = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Record)]
KINDS.remove(Record)

TEXT = st.text(st.characters(codec=None), max_size=20)  # lone surrogates too: a file name need not be UTF-8
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
FIELDS = {
    "str": TEXT,
    "int": st.integers(),
    "float": FLOATS,
    "float | None": st.none() | FLOATS,
    "int | None": st.none() | st.integers(),
    "str | None": st.none() | TEXT,
    "list[str]": st.lists(TEXT, max_size=3),
    "dict[str, str]": st.dictionaries(TEXT, TEXT, max_size=3),
}


def a_value(hint: str) -> st.SearchStrategy[Any]:
    if hint.startswith("list") and hint not in FIELDS:
        return st.lists(JSON, max_size=3)
    return FIELDS.get(hint, st.dictionaries(TEXT, JSON, max_size=3))


def a_record(kind: type[Record]) -> st.SearchStrategy[Record]:
    own = {f.name: a_value(str(f.type)) for f in dataclasses.fields(kind) if f.name != "extra"}
    return st.builds(kind, **own)


AN_ATTEMPT = AttemptRecord(number=2, started_at="2026-11-23T15:00:00+00:00", host="gpu", pid=1, backend="ec2")
A_MANIFEST = CheckpointManifest(
    step=7, attempt=1, round=1, created_at="now", reason="round", parts=[{"key": "p", "size": 1}], meta={"lr": 0.1}
).sealed()


def test_there_are_records_to_test() -> None:
    assert {PlanRecord, AttemptRecord, RoundRecord, CheckpointManifest, StartRecord} <= set(KINDS)


@settings(max_examples=60, deadline=None)
@given(record=st.sampled_from(KINDS).flatmap(a_record))
def test_any_record_survives_the_way_through_its_bytes(record: Record) -> None:
    data = record.encode()
    assert type(record).decode(data, source="a") == record
    assert data.decode("utf-8").endswith("}\n")


def test_a_file_is_json_that_people_can_read() -> None:
    lines = AN_ATTEMPT.encode().decode().splitlines()
    assert lines[:4] == ["{", ' "schema_version": 1,', ' "number": 2,', ' "started_at": "2026-11-23T15:00:00+00:00",']


def test_fields_of_a_newer_writer_are_kept() -> None:
    newer = {**json.loads(AN_ATTEMPT.encode()), "spot_price_usd": 1.5}
    record = AttemptRecord.decode(json.dumps(newer).encode(), source="a")
    assert record.extra == {"spot_price_usd": 1.5}
    assert json.loads(record.encode()) == newer


def test_a_field_with_a_default_may_be_absent() -> None:
    older = {name: value for name, value in json.loads(AN_ATTEMPT.encode()).items() if name != "device"}
    assert AttemptRecord.decode(json.dumps(older).encode(), source="a").device is None


@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_another_schema_version_is_refused(version: object) -> None:
    data = json.dumps({**json.loads(AN_ATTEMPT.encode()), "schema_version": version}).encode()
    with pytest.raises(RecordError, match=r"runs/x/a\.json: schema version .* reads 1") as caught:
        AttemptRecord.decode(data, source="runs/x/a.json")
    assert "newer" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[1]", "a JSON object is expected, not a list"),
        (b"null", "a JSON object is expected, not a NoneType"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(RecordError, match=f"^s3://b/a.json: {says}"):
        AttemptRecord.decode(data, source="s3://b/a.json")


def test_a_missing_field_is_named_with_its_file() -> None:
    data = json.dumps({"schema_version": 1, "number": 1}).encode()
    with pytest.raises(RecordError, match=r"a\.json: the field 'started_at' of a AttemptRecord is missing"):
        AttemptRecord.decode(data, source="a.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("number", "1"), ("number", 1.5), ("number", True), ("host", None), ("host", ["gpu"]), ("device", 1)],
)
def test_a_field_of_another_kind_is_named_with_its_value(field: str, value: object) -> None:
    data = json.dumps({**json.loads(AN_ATTEMPT.encode()), field: value}).encode()
    with pytest.raises(RecordError, match=rf"a\.json: the field '{field}' of a AttemptRecord cannot be"):
        AttemptRecord.decode(data, source="a.json")


def test_a_whole_number_is_a_float_too() -> None:
    record = records.ExitRecord(ended_at="now", outcome="done", exit_code=0, message="", seconds=60.0)
    data = record.encode().replace(b"60.0", b"60")
    assert records.ExitRecord.decode(data, source="a").seconds == 60


def test_a_number_that_json_lacks_is_refused_by_the_writer() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        records.ExitRecord(ended_at="", outcome="", exit_code=0, message="", seconds=float("nan")).encode()


def test_only_faults_of_the_machine_are_worth_another_attempt() -> None:
    assert {outcome for outcome in Outcome if outcome.may_retry} == {Outcome.MACHINE_ERROR, Outcome.INTERRUPTED}


# --- a manifest vouches for itself ---


def test_a_sealed_manifest_is_intact_after_the_way_through_its_bytes() -> None:
    assert CheckpointManifest.decode(A_MANIFEST.encode(), source="a") == A_MANIFEST
    assert A_MANIFEST.is_intact


def test_a_manifest_with_fields_of_a_newer_writer_is_intact() -> None:
    newer = dataclasses.replace(A_MANIFEST, extra={"another": 1, "zone": [2]}).sealed()
    document = dict(reversed(json.loads(newer.encode()).items()))  # a newer writer may order them otherwise
    assert CheckpointManifest.decode(json.dumps(document).encode(), source="a").is_intact


def test_no_flipped_bit_of_a_manifest_goes_unseen() -> None:
    data = A_MANIFEST.encode()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            manifest = CheckpointManifest.decode(bytes(damaged), source="a")
        except RecordError:
            continue
        assert not manifest.is_intact or manifest == A_MANIFEST  # equal when the bit was in blank space
