"""Commands that are killed before and after every request, and started again: never two machines, nothing left."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from crash_harness import Killed, Mortal, kills
from ec2_harness import World, ec2_plan, end_run
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.ec2 import Ec2Launcher
from mtl_cloud.launch.ec2.sweep import find_leftovers, remove_leftovers
from mtl_cloud.records import CancelRecord
from mtl_cloud.run_record import RunRecord
from mtl_cloud.submit import cancel_run

PLAN = ec2_plan()
HANDLE = RunHandle.of(PLAN)
GROUP = "mtl-cloud-digits-1"


def _launcher(world: World, clients: Any) -> Ec2Launcher:
    return Ec2Launcher(clients=clients, storages=lambda _: world.storage, clock=world.clock)


def submit(world: World, clients: Any) -> None:
    launcher = _launcher(world, clients)
    launcher.submit(launcher.prepare(PLAN))


def cancel(world: World, clients: Any) -> None:
    run, launcher = RunRecord(world.storage, PLAN.run_id), _launcher(world, clients)
    run.request_cancel(CancelRecord(at="2026-01-01T00:00:00+00:00", by="ada"))
    launcher.stop(HANDLE)
    cancel_run(run, CancelRecord(at="2026-01-01T00:00:00+00:00", by="ada"), launcher=launcher)


def gc(world: World, clients: Any) -> None:
    def is_over(run_id: str, _storage: str) -> bool:
        return RunRecord(world.storage, run_id).result() is not None

    maker = clients("us-east-1")
    found = find_leftovers(maker, now=world.clock.now(), is_over=is_over)
    list(remove_leftovers(found, maker, world.clock))


def fresh() -> World:
    world = World()
    world.make_run(PLAN)
    return world


def running() -> World:
    world = fresh()
    submit(world, world.cloud.clients)
    world.pass_time(minutes=2)
    return world


def expired() -> World:
    world = running()
    world.pass_time(hours=12)
    return world


def over() -> World:
    world = running()
    end_run(RunRecord(world.storage, PLAN.run_id))
    return world


def test_a_killed_submit_is_adopted_by_the_next_and_asks_for_one_machine() -> None:
    count = 0
    for world in kills(fresh, submit):
        world.pass_time(minutes=5)
        submit(world, world.cloud.clients)
        world.pass_time(minutes=5)
        assert len(world.cloud.alive()) == 1
        assert world.cloud.most_alive[GROUP] == 1
        count += 1
    assert count == 10  # before and after each of the five requests


def test_a_killed_submit_never_leaves_a_machine_without_its_wall() -> None:
    for world in kills(fresh, submit):
        world.pass_time(hours=12)
        assert world.cloud.alive() == []


def test_what_a_killed_submit_left_is_swept_within_hours_and_past_its_expiry_for_certain() -> None:
    for world in kills(fresh, submit):
        world.pass_time(hours=12)
        gc(world, world.cloud.clients)
        assert world.cloud.what_is_left() == []


def test_a_killed_cancel_is_finished_by_the_next() -> None:
    count = 0
    for world in kills(running, cancel):
        cancel(world, world.cloud.clients)
        assert world.cloud.what_is_left() == []
        result = RunRecord(world.storage, PLAN.run_id).result()
        assert result is not None
        assert result.outcome == "cancelled"
        count += 1
    assert count > 10


def test_nothing_starts_again_after_a_killed_cancel_even_if_nobody_cancels_again() -> None:
    for world in kills(running, cancel):
        before = len(world.cloud.alive())
        submit(world, world.cloud.clients)
        world.pass_time(minutes=10)
        assert len(world.cloud.alive()) <= before
        world.pass_time(hours=12)
        gc(world, world.cloud.clients)
        assert world.cloud.what_is_left() == []


@pytest.mark.parametrize("start", [expired, over])
def test_a_killed_gc_is_finished_by_the_next(start: Any) -> None:
    count = 0
    for world in kills(start, gc):
        gc(world, world.cloud.clients)
        assert world.cloud.what_is_left() == []
        count += 1
    assert count > 10


def test_gc_leaves_a_run_alone_that_may_go_on() -> None:
    world = running()
    made = world.cloud.what_is_left()
    world.pass_time(hours=8)
    gc(world, world.cloud.clients)
    assert world.cloud.what_is_left() == made
    assert _launcher(world, world.cloud.clients).describe(HANDLE) is BackendState.RUNNING


COMMANDS = {"submit": submit, "cancel": cancel, "gc": gc}
DEATHS = st.tuples(st.sampled_from(sorted(COMMANDS)), st.integers(1, 12), st.booleans(), st.integers(0, 90))


@settings(max_examples=40, deadline=None)
@given(st.lists(DEATHS, max_size=6), st.sampled_from([0.0, 4.0, 8.0]))
def test_whatever_is_killed_in_whatever_order(deaths: list[tuple[str, int, bool, int]], lag_s: float) -> None:
    world = World(lag_s=lag_s)
    world.make_run(PLAN)
    for name, at, before, minutes in deaths:
        with suppress(Killed):
            COMMANDS[name](world, Mortal(world.cloud.clients, at, before=before))
        assert world.cloud.most_alive[GROUP] <= 1
        world.pass_time(minutes=minutes)
    world.pass_time(hours=12)
    gc(world, world.cloud.clients)
    assert world.cloud.what_is_left() == []
    assert world.cloud.most_alive[GROUP] <= 1
