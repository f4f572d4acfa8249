"""What EC2 says of its instance, from a metadata service that speaks IMDSv2 over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fake_imds import MAINTENANCE, REBALANCE, SPOT, FakeImds
from run_harness import FakeClock, logged, make_run, start_supervisor
from waiting import PATIENCE_S, wait_for

from mtl_cloud.runs.scratch import Scratch, StopReason
from mtl_cloud.storage import FolderStorage
from mtl_cloud.supervise.preemption import Ec2Watcher, InstanceMetadata
from mtl_cloud.supervise.stop_conditions import Stop

TERMINATE = {"action": "terminate", "time": "2026-01-01T00:02:00Z"}
RECOMMENDATION = {"noticeTime": "2026-01-01T00:00:30Z"}


def reboot(state: str) -> dict[str, str]:
    """As in the EC2 user guide, "View scheduled events"."""
    return {
        "NotBefore": "1 Jan 2026 01:00:00 GMT",
        "Code": "system-reboot",
        "Description": "scheduled reboot",
        "EventId": "instance-event-0d59937288b749b32",
        "NotAfter": "1 Jan 2026 02:00:00 GMT",
        "State": state,
    }


@pytest.fixture
def imds() -> Iterator[FakeImds]:
    with FakeImds().serving() as service:
        yield service


class Watched:
    """A watcher whose clock says 2026-01-01T00:00:00Z, with the saves that it asked for."""

    def __init__(self, imds: FakeImds) -> None:
        self.clock = FakeClock()
        self.saves: list[str] = []
        self.watcher = Ec2Watcher(InstanceMetadata(imds.environ), self.clock, save_early=self.saves.append)

    def look(self) -> Stop | None:
        self.watcher.look()
        return self.watcher.poll()


def test_an_instance_without_notices_is_left_alone_and_one_token_serves(imds: FakeImds) -> None:
    watched = Watched(imds)
    assert (watched.look(), watched.look(), watched.saves, imds.tokens) == (None, None, [], 1)


def test_a_spot_notice_leaves_its_time_less_a_margin(imds: FakeImds) -> None:
    watched = Watched(imds)
    imds.documents[SPOT] = TERMINATE
    message = "EC2 takes the spot instance back at 2026-01-01T00:02:00Z (terminate)"
    assert watched.look() == Stop(StopReason.SPOT, message, grace_s=110.0)


def test_a_token_that_expired_is_renewed(imds: FakeImds) -> None:
    watched = Watched(imds)
    watched.look()
    imds.tokens += 1
    imds.documents[SPOT] = TERMINATE
    assert watched.look() is not None


def test_a_rebalance_recommendation_has_the_run_saved_once_and_it_goes_on(imds: FakeImds) -> None:
    watched = Watched(imds)
    imds.documents[REBALANCE] = RECOMMENDATION
    assert (watched.look(), watched.look()) == (None, None)
    assert watched.saves == ["EC2 recommended at 2026-01-01T00:00:30Z to leave this instance"]
    imds.documents[REBALANCE] = {"noticeTime": "2026-01-01T06:00:00Z"}
    watched.look()
    assert len(watched.saves) == 2


def test_a_spot_notice_stops_though_the_rest_of_the_service_fails(imds: FakeImds) -> None:
    watched = Watched(imds)
    imds.documents |= {SPOT: TERMINATE, REBALANCE: "no object"}
    with pytest.raises(TypeError):
        watched.look()
    assert watched.watcher.poll() is not None


def test_maintenance_in_an_hour_stops_the_run_five_minutes_before(imds: FakeImds) -> None:
    watched = Watched(imds)
    imds.documents[MAINTENANCE] = [reboot("active")]
    assert watched.look() is None
    watched.clock.sleep(54 * 60)
    assert watched.look() is None
    watched.clock.sleep(60)
    message = "EC2 has maintenance of the instance from 1 Jan 2026 01:00:00 GMT on (system-reboot)"
    assert watched.look() == Stop(StopReason.MAINTENANCE, message, grace_s=290.0)


@pytest.mark.parametrize("state", ["completed", "canceled"])
def test_maintenance_that_is_over_or_called_off_stops_nothing(imds: FakeImds, state: str) -> None:
    watched = Watched(imds)
    imds.documents[MAINTENANCE] = [reboot(state)]
    watched.clock.sleep(59 * 60)
    assert watched.look() is None


def test_an_answer_that_is_not_json_is_an_error_to_try_again(imds: FakeImds) -> None:
    imds.documents[SPOT] = b"<html>a proxy's page</html>"
    with pytest.raises(OSError, match="spot/instance-action is not JSON"):
        Watched(imds).look()


def test_no_metadata_service_is_an_error_to_try_again(imds: FakeImds) -> None:
    elsewhere = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "/elsewhere"}
    with pytest.raises(OSError, match="400"):
        Ec2Watcher(InstanceMetadata(elsewhere), FakeClock(), save_early=print).look()


def test_a_wish_to_save_is_heard_once(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    assert not scratch.take_save_request()
    scratch.request_save()
    assert (scratch.take_save_request(), scratch.take_save_request()) == (True, False)


def test_a_recommendation_reaches_the_trainer_and_a_notice_ends_the_attempt(
    imds: FakeImds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in imds.environ.items():
        monkeypatch.setenv(name, value)
    code = (
        "print('up', flush=True)\nwhile not scratch.take_save_request(): time.sleep(0.01)\nprint('early', flush=True)"
    )
    run = make_run(FolderStorage(tmp_path / "storage"), f"{code}\nwork()")
    with start_supervisor(run, tmp_path / "scratch", "--spot-notices") as process:
        wait_for(logged(run, "\nup\n"))
        imds.documents[REBALANCE] = RECOMMENDATION
        wait_for(logged(run, "\nearly\n"))
        imds.documents[SPOT] = {"action": "stop", "time": (datetime.now(UTC) + timedelta(minutes=2)).isoformat()}
        assert process.wait(PATIENCE_S) == 75
    end = run.exit(1)
    assert end is not None
    assert (end.outcome, end.exit_code, run.result()) == ("interrupted", 75, None)
