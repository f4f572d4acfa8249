"""A loaded checkpoint is the state, bit for bit; damaged ones are not loaded; only the owner of a run commits."""

from __future__ import annotations

import logging
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.errors import DatasetError, RunTakenOverError, StorageError
from mtl_cloud.runs.record import CheckpointId, RunRecord
from mtl_cloud.runs.schema import AttemptRecord, StartRecord
from mtl_cloud.storage import Data, FolderStorage, MemoryStorage
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer, Restored, lineage
from mtl_cloud.train.checkpoint.snapshot import restore_snapshot, take_snapshot

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
DTYPES += [torch.float8_e4m3fn, torch.complex64]


def claim(run: RunRecord, number: int) -> None:
    run.claim(AttemptRecord(number=number, started_at="15:00", host="h", pid=number, backend="local"))


@pytest.fixture
def run() -> RunRecord:
    run = RunRecord(MemoryStorage(), "voc-3fa1c9")
    claim(run, 1)
    return run


def state_at(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "network": {"w": torch.randn(40, 10, generator=generator), "b": torch.ones(3) * step}}


def save(run: RunRecord, *steps: int, attempt: int = 1, keep: int = 9) -> None:
    for step in steps:
        saver = Checkpointer(run, attempt, keep=keep, part_bytes=1000)
        saver.save(state_at(step), step=step, round=step // 10, reason="time")


def loaded_step(run: RunRecord, attempt: int) -> int | None:
    """Load as ``attempt``, check that the state is that of the manifest's step, and return the step."""
    restored = Checkpointer(run, attempt, keep=9).load_latest()
    if restored is None:
        return None
    assert_same(restored.state, state_at(restored.manifest.step))
    return restored.manifest.step


def save_as_zombie(run: RunRecord, step: int, *, attempt: int) -> None:
    """The attempt checks its ownership just before it is replaced, and commits just after."""
    zombie = RunRecord(run.storage, run.run_id)
    require_owner, asked = zombie.require_owner, []

    def ask(attempt: int) -> None:
        asked.append(attempt)
        if len(asked) > 1:
            require_owner(attempt)

    zombie.require_owner = ask  # type: ignore[method-assign]
    with pytest.raises(RunTakenOverError):
        save(zombie, step, attempt=attempt, keep=1)
    assert CheckpointId(step, attempt) in run.checkpoints()


def assert_same(left: Any, right: Any) -> None:
    """Equal in type, structure and every bit; a tuple comes back as a list."""
    if isinstance(right, Tensor):
        assert (left.dtype, left.shape, left.device.type) == (right.dtype, right.shape, "cpu")
        assert bits(left) == bits(right)
    elif isinstance(right, dict):
        assert list(left) == list(right)
        assert [type(key) for key in left] == [type(key) for key in right]
        for key in right:
            assert_same(left[key], right[key])
    elif isinstance(right, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(right, float):
        assert struct.pack("d", left) == struct.pack("d", right)
    else:
        assert (type(left), left) == (type(right), right)


def bits(tensor: Tensor) -> bytes:
    whole = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return bytes(whole.view(torch.uint8).tolist()) if tensor.numel() else b""


# --- the state, bit for bit ---


@st.composite
def a_tensor(draw: st.DrawFn) -> Tensor:
    """Any bits, any of the data types; contiguous, empty, 0-dim, transposed, strided or expanded."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    data = bytearray(draw(st.randoms()).randbytes(dtype.itemsize * math.prod(shape)))
    data = bytearray(byte & 1 for byte in data) if dtype is torch.bool else data
    whole = torch.frombuffer(data, dtype=dtype).clone() if data else torch.empty(0, dtype=dtype)
    tensor = whole.view(shape)
    if not shape:
        return tensor
    views: list[Callable[[Tensor], Tensor]] = [
        lambda t: t,
        lambda t: t.transpose(0, -1),
        lambda t: t[::2],
        lambda t: t.unsqueeze(0).expand(3, *t.shape),
    ]
    return draw(st.sampled_from(views))(tensor)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5)
KEYS = st.text(st.sampled_from("a/~$#.0"), max_size=3) | st.integers(-2, 2) | st.none() | st.floats(allow_nan=False)
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS | a_tensor(),
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(max_examples=120, deadline=None)
@given(state=STATES, part_bytes=st.sampled_from([1, 7, 64, 2**20]))
def test_any_state_comes_back_bit_for_bit(state: dict[Any, Any], part_bytes: int) -> None:
    run = RunRecord(MemoryStorage(), "x-1")
    claim(run, 1)
    Checkpointer(run, 1, keep=1, part_bytes=part_bytes).save(state, step=1, round=0, reason="stop")
    restored = Checkpointer(run, 1, keep=1).load_latest()
    assert restored is not None
    assert_same(restored.state, state)


def test_a_restored_optimizer_continues_as_if_it_had_not_stopped(run: RunRecord) -> None:
    def trained(steps: int, state: dict[str, Any] | None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = torch.nn.Linear(5, 2)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        if state:
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.randn(3, 5)).square().sum().backward()
            optimizer.step()
        return net, optimizer

    straight, _ = trained(6, None)
    net, optimizer = trained(2, None)
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    Checkpointer(run, 1, keep=1).save(state, step=2, round=0, reason="time")
    restored = Checkpointer(run, 1, keep=1).load_latest()
    assert restored is not None
    resumed, _ = trained(4, restored.state)
    assert_same(resumed.state_dict(), straight.state_dict())


def test_a_snapshot_shares_no_memory_with_the_state() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    snapshot = take_snapshot({"w": weight, "view": weight[::2]})
    with torch.no_grad():
        weight.add_(1)
    assert_same(restore_snapshot(snapshot), {"w": torch.zeros(4), "view": torch.zeros(2)})
    assert not any(tensor.requires_grad for tensor in snapshot.tensors.values())


def test_tied_tensors_are_stored_once_and_stay_tied() -> None:
    big, small = torch.arange(100), torch.arange(3)
    snapshot = take_snapshot({"a": big, "b": {"c": big, "d": small, "e": small[:]}, "f": big[:50]}, part_bytes=100)
    assert sum(tensor.nbytes for tensor in snapshot.tensors.values()) == (100 + 3 + 50) * 8
    state = restore_snapshot(snapshot)
    assert state["a"] is state["b"]["c"]
    assert state["b"]["d"] is state["b"]["e"]


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), 1j, torch.float32])
def test_values_that_cannot_be_stored_exactly_are_refused_with_their_place(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^/optimizer/0/a~1b: a {type(value).__name__} cannot be part"):
        take_snapshot({"optimizer": [{"a/b": value}]})


def test_parts_are_no_larger_than_asked_even_for_one_large_tensor(run: RunRecord) -> None:
    state = {"large": torch.arange(1000), "small": [torch.zeros(10) for _ in range(50)]}
    manifest = Checkpointer(run, 1, keep=1, part_bytes=1000).save(state, step=1, round=0, reason="time")
    assert sum(part["size"] for part in manifest.parts) > 10_000
    assert all(part["size"] < 1000 + 3000 for part in manifest.parts)  # a header names up to 25 tensors
    restored = Checkpointer(run, 1, keep=1).load_latest()
    assert restored is not None
    assert_same(restored.state, state)


# --- the commit ---


def test_the_manifest_comes_after_all_parts() -> None:
    written = []

    class Recording(MemoryStorage):
        def write(self, key: str, data: Data) -> None:
            super().write(key, data)
            written.append(key)

        def create(self, key: str, data: bytes) -> None:
            super().create(key, data)
            written.append(key)

    run = RunRecord(Recording(), "x-1")
    save(run, 1)
    assert written[-1] == run.paths.manifest(1, 1)
    assert sorted(written) == [entry.key for entry in run.storage.list(run.paths.checkpoints)]
    assert len(written) == len(run.manifest(CheckpointId(1, 1)).parts) + 1


def test_a_save_that_fails_commits_nothing_and_the_next_one_is_complete() -> None:
    class Failing(MemoryStorage):
        writes_left = 1

        def write(self, key: str, data: Data) -> None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise StorageError("the bucket is on fire")
            super().write(key, data)

    storage = Failing()
    run = RunRecord(storage, "x-1")
    claim(run, 1)
    with pytest.raises(StorageError, match="on fire"):
        save(run, 1)
    assert run.checkpoints() == []
    assert loaded_step(run, 1) is None
    storage.writes_left = 99
    save(run, 1)
    assert loaded_step(run, 1) == 1


def test_a_step_is_committed_once(run: RunRecord) -> None:
    saver = Checkpointer(run, 1, keep=3)
    first = saver.save(state_at(1), step=1, round=0, reason="time")
    assert saver.save(state_at(1), step=1, round=0, reason="stop") == first
    assert first.reason == "time"


def test_a_replaced_attempt_commits_no_checkpoint(run: RunRecord) -> None:
    save(run, 1)
    claim(run, 2)
    with pytest.raises(RunTakenOverError, match="attempt 1 was replaced by attempt 2"):
        save(run, 2)
    assert run.checkpoints() == [CheckpointId(1, 1)]


def test_the_newest_checkpoints_are_kept_and_orphans_are_deleted(run: RunRecord) -> None:
    run.storage.write(run.paths.checkpoint(1, 1) + "part-0001.safetensors", b"of a save that was killed")
    run.storage.write(run.paths.checkpoint(9, 2) + "part-0001.safetensors", b"of a later attempt")
    save(run, 2, 3, 4, keep=2)
    assert run.started_checkpoints() == [CheckpointId(3, 1), CheckpointId(4, 1), CheckpointId(9, 2)]


def test_a_folder_holds_nothing_of_a_removed_checkpoint(tmp_path: Any) -> None:
    run = RunRecord(FolderStorage(tmp_path), "x-1")
    save(run, 1, 2, keep=1)
    assert [path.name for path in (tmp_path / run.paths.checkpoints).iterdir()] == ["0000000002-0001"]


# --- damage ---


def damage(run: RunRecord, key: str, how: Callable[[bytes], bytes | None]) -> None:
    data = how(run.storage.read(key))
    run.storage.delete(key) if data is None else run.storage.write(key, data)


def flipped(data: bytes) -> bytes:
    bit = random.Random(len(data)).randrange(8 * len(data))
    return bytes(byte ^ (1 << bit % 8) if index == bit // 8 else byte for index, byte in enumerate(data))


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": flipped,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b" \0",
    "missing": lambda data: None,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("what", ["manifest.json", "part-0002.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    run: RunRecord, caplog: pytest.LogCaptureFixture, what: str, how: str
) -> None:
    save(run, 10, 20)
    damage(run, run.paths.checkpoint(20, 1) + what, DAMAGE[how])
    with caplog.at_level(logging.WARNING):
        assert loaded_step(run, 1) == 10
    if (what, how) != ("manifest.json", "missing"):  # without a manifest there was no checkpoint
        assert "skipping the checkpoint of step 20 by attempt 1" in caplog.text
        assert what in caplog.text


def test_when_all_are_damaged_training_begins_anew(run: RunRecord, caplog: pytest.LogCaptureFixture) -> None:
    save(run, 10, 20)
    for step in (10, 20):
        damage(run, run.paths.checkpoint(step, 1) + "part-0001.safetensors", flipped)
    assert loaded_step(run, 1) is None
    assert caplog.text.count("skipping the checkpoint") == 2


def test_an_attempt_replaces_its_own_damaged_checkpoint(run: RunRecord) -> None:
    save(run, 10, 20)
    damage(run, run.paths.checkpoint(20, 1) + "part-0001.safetensors", flipped)
    again = Checkpointer(run, 1, keep=9, part_bytes=1000)
    assert again.load_latest() is not None
    again.save(state_at(20), step=20, round=2, reason="time")
    assert loaded_step(run, 1) == 20


def test_damage_in_transit_costs_no_checkpoint(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 10, 20)
    read, spoilt = run.storage.read, []

    def spoiling(key: str) -> bytes:
        data = read(key)
        if key not in spoilt and key.startswith(run.paths.checkpoint(20, 1)):
            spoilt.append(key)
            return flipped(data) if len(spoilt) == 2 else data
        return data

    monkeypatch.setattr(run.storage, "read", spoiling)
    assert loaded_step(run, 1) == 20
    assert len(spoilt) > 1


@pytest.mark.parametrize("times", [600, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_no_random_damage_goes_undetected(times: int) -> None:
    chance = random.Random(0)
    run = RunRecord(MemoryStorage(), "x-1")
    save(run, 1)
    keys = [entry.key for entry in run.storage.list(run.paths.checkpoints)]
    for _ in range(times):
        key = chance.choice(keys)
        whole = run.storage.read(key)
        bit = chance.randrange(8 * len(whole))
        torn = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        if len(torn) == len(whole):
            torn[bit // 8] ^= 1 << bit % 8
        run.storage.write(key, bytes(torn))
        assert loaded_step(run, 1) in (None, 1)  # `loaded_step` checks the state
        run.storage.write(key, whole)


def test_an_outage_is_not_taken_for_damage(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 10, 20)
    read = run.storage.read

    def failing(key: str) -> bytes:
        if "part-0002" in key:
            raise StorageError("no route to host")
        return read(key)

    monkeypatch.setattr(run.storage, "read", failing)
    with pytest.raises(StorageError, match="no route"):
        Checkpointer(run, 1, keep=9).load_latest()
    assert run.checkpoints() == [CheckpointId(10, 1), CheckpointId(20, 1)]


def test_if_a_checkpoint_is_deleted_while_it_is_read_the_newer_one_is_loaded(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    read, parts = run.storage.read, []

    def overtaken(key: str) -> bytes:
        if key.endswith("part-0001.safetensors"):
            parts.append(key)
            if len(parts) == 1:
                save(run, 20, keep=1)
        return read(key)

    monkeypatch.setattr(run.storage, "read", overtaken)
    assert loaded_step(run, 1) == 20
    assert len(parts) == 2


# --- attempts ---


def test_an_attempt_resumes_from_the_previous_one_and_records_it(run: RunRecord) -> None:
    save(run, 10, 20)
    claim(run, 2)
    assert loaded_step(run, 2) == 20
    assert run.start(2) == StartRecord(checkpoint_step=20, checkpoint_attempt=1)


def test_a_commit_during_the_takeover_is_no_ancestor(run: RunRecord) -> None:
    save(run, 10)
    claim(run, 2)
    assert loaded_step(run, 2) == 10
    save_as_zombie(run, 90, attempt=1)
    claim(run, 3)
    assert loaded_step(run, 3) == 10
    save(run, 20, attempt=3)
    claim(run, 4)
    assert loaded_step(run, 4) == 20


def test_all_processes_of_an_attempt_load_what_the_first_one_chose(run: RunRecord) -> None:
    save(run, 10, 20)
    claim(run, 2)
    run.write_start(2, StartRecord(checkpoint_step=10, checkpoint_attempt=1))
    assert loaded_step(run, 2) == 10


def test_a_later_process_loads_the_checkpoint_that_the_first_one_chose(run: RunRecord) -> None:
    save(run, 10, 20)
    claim(run, 2)
    late = Checkpointer(run, 2, keep=9)
    newest = late._newest_intact

    def meanwhile(upto: float = math.inf) -> Restored | None:
        found = newest(upto)
        run.write_start(2, StartRecord(checkpoint_step=10, checkpoint_attempt=1))
        return found

    late._newest_intact = meanwhile  # type: ignore[method-assign]
    restored = late.load_latest()
    assert restored is not None
    assert restored.manifest.step == 10


def test_a_restart_within_an_attempt_resumes_from_its_own_newest_checkpoint(run: RunRecord) -> None:
    save(run, 10)
    claim(run, 2)
    assert loaded_step(run, 2) == 10
    save(run, 20, attempt=2)
    assert loaded_step(run, 2) == 20


def test_an_abandoned_checkpoint_is_used_before_training_starts_over(run: RunRecord) -> None:
    save(run, 10, 20)
    claim(run, 2)
    run.write_start(2, StartRecord(checkpoint_step=10, checkpoint_attempt=1))
    damage(run, run.paths.checkpoint(10, 1) + "part-0001.safetensors", flipped)
    assert loaded_step(run, 2) == 20


def test_the_lineage_includes_attempts_that_chose_and_skips_those_that_did_not(run: RunRecord) -> None:
    save(run, 10, 20, 30)
    for number in (2, 3, 4):
        claim(run, number)
    run.write_start(2, StartRecord(checkpoint_step=20, checkpoint_attempt=1))
    save(RunRecord(run.storage, run.run_id), 99, attempt=4)
    assert lineage(run, 4) == [CheckpointId(99, 4), CheckpointId(20, 1), CheckpointId(10, 1)]
    run.write_start(4, StartRecord(checkpoint_step=None, checkpoint_attempt=None))
    assert lineage(run, 4) == [CheckpointId(99, 4)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sequence_of_attempts_resumes_from_the_work_of_the_newest(data: st.DataObject) -> None:
    """Each attempt resumes, saves some steps, and may commit one too late as a zombie."""
    run, expected, step = RunRecord(MemoryStorage(), "x-1"), None, 0
    for attempt in range(1, data.draw(st.integers(2, 5)) + 1):
        claim(run, attempt)
        assert loaded_step(run, attempt) == expected
        step = expected or 0
        if attempt > 1 and data.draw(st.booleans(), label="zombie"):
            save_as_zombie(run, step + 50, attempt=attempt - 1)
        for _ in range(data.draw(st.integers(0, 3), label="saves")):
            step += data.draw(st.integers(1, 9))
            save(run, step, attempt=attempt, keep=data.draw(st.integers(1, 3), label="keep"))
            expected = step


# --- the dataset of a run --------------------------------------------------------------------------------------------


def on_data(run: RunRecord, attempt: int, *digests: str | None) -> Checkpointer:
    return Checkpointer(run, attempt, keep=9, datasets=[DatasetInfo("voc", "train", {}, digest=d) for d in digests])


def test_an_attempt_states_the_digests_of_its_data(run: RunRecord) -> None:
    on_data(run, 1, "abc", None).load_latest()
    start = run.start(1)
    assert start is not None
    assert start.datasets == [{"name": "voc", "digest": "abc"}, {"name": "voc", "digest": None}]


def test_a_run_never_resumes_with_other_data(run: RunRecord) -> None:
    on_data(run, 1, "abc").load_latest()
    save(run, 10)
    claim(run, 2)
    with pytest.raises(DatasetError, match=r"voc is not the data that the run began with .* is xyz, and was abc"):
        on_data(run, 2, "xyz").load_latest()
    assert on_data(run, 2, None).load_latest() is not None
    restored = on_data(run, 2, "abc").load_latest()
    assert restored is not None
    assert restored.manifest.step == 10
