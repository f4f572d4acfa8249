"""Commands that are killed before and after every request, and started again: never two machines, nothing left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from crash_harness import Killed, Mortal, kills
from ec2_harness import World, ec2_plan, end_run
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.base import BackendState, RunHandle
from mtl_cloud.launch.ec2.sweep import find_leftovers, remove_leftovers
from mtl_cloud.launch.submit import cancel_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import CancelRecord

PLAN = ec2_plan()
HANDLE = RunHandle.of(PLAN)
GROUP = "mtl-cloud-digits-1"


def submit(world: World, clients: Any) -> None:
    launcher = world.launcher(clients)
    launcher.submit(launcher.prepare(PLAN))


def cancel(world: World, clients: Any) -> None:
    run, launcher = RunRecord(world.storage, PLAN.run_id), world.launcher(clients)
    run.request_cancel(CancelRecord(at="2026-01-01T00:00:00+00:00", by="ada"))
    launcher.stop(HANDLE)
    cancel_run(run, CancelRecord(at="2026-01-01T00:00:00+00:00", by="ada"), launcher=launcher)


def gc(world: World, clients: Any) -> None:
    def is_over(run_id: str, _storage: str) -> bool:
        return RunRecord(world.storage, run_id).result() is not None

    maker = clients("us-east-1")
    found = find_leftovers(maker, now=world.clock.now(), is_over=is_over)
    list(remove_leftovers(found, lambda _: maker, world.clock))


def assert_keys_agree(world: World) -> None:
    """A group has the key that its machines' script has: else nothing of the run's own could close it."""
    keys = world.keys()
    assert len(set(keys)) <= 1, keys
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


def fresh(**account: Any) -> World:
    world = World(**account)
    world.make_run(PLAN)
    return world


def begun() -> World:
    """An earlier submit has died after its first request."""
    world = fresh()
    begin(world, world.cloud.clients)
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
    killed = 0
    for world in kills(fresh, submit):
        world.pass_time(minutes=5)
        submit(world, world.cloud.clients)
        world.pass_time(minutes=5)
        assert len(world.cloud.alive()) == 1
        assert world.cloud.most_alive[GROUP] == 1
        assert_keys_agree(world)
        killed += 1
    assert killed == 10  # before and after each of the five requests


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
    killed = 0
    for world in kills(running, cancel):
        cancel(world, world.cloud.clients)
        assert world.cloud.what_is_left() == []
        result = RunRecord(world.storage, PLAN.run_id).result()
        assert result is not None
        assert result.outcome == "cancelled"
        killed += 1
    assert killed > 10


def test_nothing_starts_again_after_a_killed_cancel_even_if_nobody_cancels_again() -> None:
    for world in kills(running, cancel):
        before = len(world.cloud.alive())
        submit(world, world.cloud.clients)
        assert_keys_agree(world)
        world.pass_time(minutes=10)
        assert len(world.cloud.alive()) <= before
        world.pass_time(hours=12)
        gc(world, world.cloud.clients)
        assert world.cloud.what_is_left() == []


@pytest.mark.parametrize("start", [expired, over])
def test_a_killed_gc_is_finished_by_the_next(start: Any) -> None:
    killed = 0
    for world in kills(start, gc):
        gc(world, world.cloud.clients)
        assert world.cloud.what_is_left() == []
        killed += 1
    assert killed > 10


def test_gc_leaves_a_run_alone_that_may_go_on() -> None:
    world = running()
    made = world.cloud.what_is_left()
    world.pass_time(hours=8)
    gc(world, world.cloud.clients)
    assert world.cloud.what_is_left() == made
    assert world.launcher().describe(HANDLE) is BackendState.RUNNING


# --- two at once: one command comes to its end in the midst of another ---


def remove(world: World, clients: Any) -> None:
    """What cancel and gc end in."""
    world.launcher(clients).stop(HANDLE)


def remove_and_begin(world: World, clients: Any) -> None:
    """All is removed, and another submit gets as far as its template."""
    remove(world, clients)
    with suppress(Killed):
        submit(world, Mortal(clients, 2, before=False))


def begin(world: World, clients: Any) -> None:
    """Another submit, which dies before it makes the group."""
    with suppress(Killed):
        submit(world, Mortal(clients, 2, before=False))


def meddled(start: Callable[[], World], command: Any, other: Any) -> Iterator[World]:
    """Worlds in each of which ``other`` ran whole just before one request of ``command``: its first, its second, ..."""
    for at in count(1):
        world, happened = start(), list[bool]()

        def meddle(world: World = world, happened: list[bool] = happened) -> None:
            happened.append(True)
            other(world, world.cloud.clients)

        with suppress(LaunchError):  # it may say that what it made is gone, or that something is there still
            command(world, Mortal(world.cloud.clients, at, before=True, happen=meddle))
        if not happened:
            return
        yield world


@pytest.mark.parametrize("start", [fresh, begun])
@pytest.mark.parametrize("other", [submit, begin, cancel, remove, remove_and_begin])
def test_whatever_another_command_does_in_the_midst_of_a_submit_the_keys_agree(start: Any, other: Any) -> None:
    for world in meddled(start, submit, other):
        assert_keys_agree(world)
        submit(world, world.cloud.clients)
        assert_keys_agree(world)
        world.pass_time(minutes=5)
        assert len(world.cloud.alive()) == 1 or other is cancel
        assert world.cloud.most_alive[GROUP] <= 1


@pytest.mark.parametrize("other", [submit, begin])
def test_whatever_a_submit_does_in_the_midst_of_a_removal_the_keys_agree(other: Any) -> None:
    for world in meddled(running, remove, other):
        submit(world, world.cloud.clients)
        assert_keys_agree(world)


@pytest.mark.parametrize("lag_s", [4.0, 20.0])
def test_the_next_submit_waits_until_aws_tells_of_the_template_that_a_killed_one_made(lag_s: float) -> None:
    world = fresh(lag_s=lag_s)
    begin(world, world.cloud.clients)
    submit(world, world.cloud.clients)
    assert world.keys() == 2 * [f"{1:032x}"]


def test_a_template_without_a_key_gets_no_group_and_a_word_on_what_to_do() -> None:
    world = fresh()
    begin(world, world.cloud.clients)
    world.cloud.state.templates[GROUP]["Tags"].clear()
    with pytest.raises(LaunchError, match="digits-1: AWS has a launch template mtl-cloud-digits-1, but does not show"):
        submit(world, world.cloud.clients)
    assert world.cloud.state.groups == {}


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
        assert_keys_agree(world)
        world.pass_time(minutes=minutes)
    world.pass_time(hours=12)
    gc(world, world.cloud.clients)
    assert world.cloud.what_is_left() == []
    assert world.cloud.most_alive[GROUP] <= 1
