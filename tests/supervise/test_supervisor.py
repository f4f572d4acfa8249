"""Real supervisor processes over stand-in trainers: every way in which an attempt can end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from narrowing import present
from run_harness import is_running, logged, make_run, start_supervisor, supervisor_argv
from waiting import PATIENCE_S, wait_for

from mtl_cloud.errors import RecordError
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import CancelRecord, Outcome
from mtl_cloud.storage import FolderStorage

Start = Callable[..., subprocess.Popen[str]]
CANCEL = CancelRecord(at="2026-01-01T00:00:00+00:00", by="ann", reason="wrong data")
SAY_PID = "print('pid', os.getpid(), flush=True)\n"


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "storage")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a supervisor; none outlives the test."""
    with ExitStack() as stack:

        def start(run: RunRecord, *flags: str, attempt: int = 1) -> subprocess.Popen[str]:
            process = stack.enter_context(start_supervisor(run, tmp_path / "scratch", *flags, attempt=attempt))
            stack.callback(process.kill)
            return process

        yield start


def _outcomes(run: RunRecord) -> list[str]:
    ends = [run.exit(attempt.number) for attempt in run.attempts()]
    return [end.outcome if end else "none" for end in ends]


def _trainer_pid(run: RunRecord) -> int:
    log = wait_for(lambda: b"pid " in run.read_log(1) and run.read_log(1))
    return int(log.split(b"pid ")[1].split()[0])


def test_a_trainer_that_ends_with_0_is_done(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "scratch.write_progress('training', step=7); print('hello')", usd_per_hour=36.0)
    assert start(run).wait(PATIENCE_S) == 0
    result, beat = run.result(), run.heartbeat(1)
    assert result is not None
    assert (result.outcome, result.attempts, result.message) == (Outcome.DONE, 1, "all rounds are done")
    assert result.usd == pytest.approx(result.seconds / 100, abs=1e-4)
    assert beat is not None
    assert (beat.phase, beat.progress) == ("training", {"step": 7})
    assert {"memory_total_gib", "disk_free_gib", "gpus"} <= set(beat.host)
    assert b"\nhello\n" in run.read_log(1)


def test_an_unknown_python_error_is_the_users_and_is_quoted(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "{}['classes']")
    assert start(run).wait(PATIENCE_S) == 7
    result = run.result()
    assert result is not None
    assert result.outcome == Outcome.USER_ERROR
    assert result.message == "the trainer ended with code 1: KeyError: 'classes'"
    assert _outcomes(run) == ["user_error"]


HANG = """
from mtl_cloud.train.control import ControlChannel
channel = ControlChannel(scratch, leads=True)
channel.listen(hang_s=float(os.environ["MTL_CLOUD_HANG_S"]))
channel.report("training", step=attempt)
for _ in range(30):
    time.sleep(0.1)
    channel.heartbeat()
def wait_for_a_packet_that_never_comes():
    time.sleep(600)
wait_for_a_packet_that_never_comes()
"""


def test_a_trainer_that_hangs_leaves_its_stack_traces_and_is_killed_as_the_machines_fault(
    storage: FolderStorage, start: Start
) -> None:
    run = make_run(storage, HANG, max_restarts=0)
    assert start(run, "--hang-s", "2").wait(PATIENCE_S) == 7
    log, result = run.read_log(1).decode(), run.result()
    assert "Timeout (0:00:02)!" in log
    assert "in wait_for_a_packet_that_never_comes" in log
    assert result is not None
    assert result.outcome == Outcome.MACHINE_ERROR
    assert result.message.startswith("the trainer made no progress for 0.0333 minutes")


def test_a_failure_that_the_trainer_explains_is_passed_on(storage: FolderStorage, start: Start) -> None:
    run = make_run(
        storage, "scratch.write_failure(Failure(exit_code=9, message='no images', hint='look')); sys.exit(1)"
    )
    assert start(run).wait(PATIENCE_S) == 7
    end = run.exit(1)
    assert end is not None
    assert (end.outcome, end.exit_code, end.message) == ("user_error", 9, "no images; look")


def test_a_killed_trainer_is_started_again_under_the_next_number(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "print('attempt', attempt, flush=True); attempt == 1 and os.kill(os.getpid(), 9)")
    assert start(run).wait(PATIENCE_S) == 0
    assert _outcomes(run) == ["machine_error", "done"]
    first, result = run.exit(1), run.result()
    assert first is not None
    assert (first.exit_code, first.message) == (-9, "the trainer was ended by SIGKILL (out of memory?)")
    assert result is not None
    assert result.attempts == 2
    assert b"attempt 2\n" in run.read_log(2)


def test_the_last_lines_of_a_killed_trainer_are_in_the_record(storage: FolderStorage, start: Start) -> None:
    code = "for i in range(20000): print('line', i)\nprint('no newline', end='', flush=True); os.kill(os.getpid(), 9)"
    run = make_run(storage, code, max_restarts=0)
    assert start(run).wait(PATIENCE_S) == 7
    lines = run.read_log(1).decode().splitlines()
    assert [line for line in lines if line.startswith("line ")] == [f"line {i}" for i in range(20000)]
    assert lines[-2] == "no newline"


def test_a_crash_loop_ends_the_run_with_the_reason(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "scratch.write_progress('training', step=40); os.kill(os.getpid(), signal.SIGSEGV)")
    assert start(run).wait(PATIENCE_S) == 7
    result = run.result()
    assert _outcomes(run) == ["machine_error", "machine_error"]
    assert result is not None
    assert "SIGSEGV; crash loop: attempts 1 and 2 failed" in result.message


def test_restarts_are_counted(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "scratch.write_progress('training', step=attempt); os.kill(os.getpid(), 9)", max_restarts=2)
    assert start(run).wait(PATIENCE_S) == 7
    result = run.result()
    assert _outcomes(run) == ["machine_error"] * 3
    assert result is not None
    assert result.message.endswith("no restarts left (max_restarts: 2)")


def test_a_cancelled_trainer_saves_and_the_run_is_over(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, SAY_PID + "work()")
    process = start(run)
    _trainer_pid(run)
    run.request_cancel(CANCEL)
    assert process.wait(PATIENCE_S) == 7
    result, beat = run.result(), run.heartbeat(1)
    assert result is not None
    assert result.outcome == Outcome.CANCELLED
    assert result.message == "cancelled by ann: wrong data; the trainer saved and stopped"
    assert beat is not None
    assert beat.phase == "stopping"
    assert b"saved\n" in run.read_log(1)


def test_a_run_cancelled_before_it_starts_never_starts_its_trainer(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "print('started')")
    run.request_cancel(CANCEL)
    assert start(run).wait(PATIENCE_S) == 7
    assert _outcomes(run) == ["cancelled"]
    assert b"attempt 1 starts" not in run.read_log(1)


def test_sigterm_interrupts_and_the_run_goes_on_with_the_next_attempt(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, SAY_PID + "attempt == 1 and work()")
    process = start(run)
    _trainer_pid(run)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 75
    assert run.result() is None
    assert start(run, attempt=2).wait(PATIENCE_S) == 0
    assert _outcomes(run) == ["interrupted", "done"]


def test_a_sigterm_after_a_cancel_is_a_cancel(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, SAY_PID + "work()")
    process = start(run, "--poll-s", "600")
    _trainer_pid(run)
    run.request_cancel(CANCEL)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 7
    assert _outcomes(run) == ["cancelled"]


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [({"deadline_s": 1.0}, "out_of_time"), ({"budget_usd": 0.01, "usd_per_hour": 36.0}, "out_of_budget")],
)
def test_a_limit_that_is_reached_ends_the_run(
    limit: dict[str, Any], outcome: str, storage: FolderStorage, start: Start
) -> None:
    run = make_run(storage, "work()", **limit)
    assert start(run).wait(PATIENCE_S) == 7
    result = run.result()
    assert result is not None
    assert result.outcome == outcome
    assert 1.0 <= result.seconds < 600  # which the trainer would have worked for


def test_a_trainer_that_ignores_the_wish_is_killed_after_the_grace(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "signal.signal(15, signal.SIG_IGN)\n" + SAY_PID + "time.sleep(600)")
    process = start(run, "--grace-s", "0.6")
    pid = _trainer_pid(run)
    run.request_cancel(CANCEL)
    assert process.wait(PATIENCE_S) == 7
    end = run.exit(1)
    assert end is not None
    assert (end.outcome, end.exit_code) == ("cancelled", -9)
    assert end.message.endswith("work since its last checkpoint is lost")
    assert not is_running(pid)


def test_of_two_supervisors_of_one_attempt_one_leaves_quietly(
    storage: FolderStorage, start: Start, tmp_path: Path
) -> None:
    over = tmp_path / "over"
    run = make_run(storage, f"print('once', flush=True); stay_until({str(over)!r})")
    processes = [start(run), start(run)]
    wait_for(lambda: any(process.poll() is not None for process in processes))
    over.touch()
    assert sorted(process.wait(PATIENCE_S) for process in processes) == [0, 73]
    winner, loser = sorted(processes, key=lambda process: process.returncode)
    assert f"digits-1: attempt 1 was claimed by process {winner.pid} on" in loser.communicate()[1]
    assert run.read_log(1).count(b"\nonce\n") == 1


def test_an_attempt_that_was_replaced_kills_its_trainer_and_writes_no_result(
    storage: FolderStorage, start: Start, tmp_path: Path
) -> None:
    over = tmp_path / "over"
    run = make_run(storage, f"{SAY_PID}work() if attempt == 1 else stay_until({str(over)!r})")
    first = start(run)
    pid = _trainer_pid(run)
    second = start(run, attempt=2)
    assert first.wait(PATIENCE_S) == 75
    over.touch()
    assert second.wait(PATIENCE_S) == 0
    assert not is_running(pid)
    assert _outcomes(run) == ["interrupted", "done"]


def test_a_trainer_that_finds_itself_replaced_is_no_users_error(
    storage: FolderStorage, start: Start, tmp_path: Path
) -> None:
    replaced = tmp_path / "replaced"
    run = make_run(storage, f"{SAY_PID}stay_until({str(replaced)!r}); sys.exit(8)")
    process = start(run, "--poll-s", "600")
    _trainer_pid(run)
    run.claim(replace(run.attempts()[0], number=2, nonce=""))
    replaced.touch()
    assert process.wait(PATIENCE_S) == 75
    end = run.exit(1)
    assert end is not None
    assert end.outcome == Outcome.INTERRUPTED
    assert "attempt 1 was replaced by attempt 2" in end.message


def test_a_run_that_is_over_is_not_begun_again(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "print('done')")
    assert start(run).wait(PATIENCE_S) == 0
    assert start(run, attempt=2).wait(PATIENCE_S) == 0
    assert len(run.attempts()) == 1


def test_a_supervisor_that_cannot_read_the_plan_says_so_and_claims_nothing(
    storage: FolderStorage, start: Start
) -> None:
    run = make_run(storage, "work()")
    storage.write(run.paths.plan, b"{")
    process = start(run)
    assert process.wait(PATIENCE_S) == RecordError.exit_code
    assert "plan.json: not JSON" in present(process.stderr).read()
    assert run.owner() is None


def test_a_killed_supervisor_leaves_no_trainer(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, SAY_PID + "work()")
    process = start(run)
    pid = _trainer_pid(run)
    process.kill()
    wait_for(lambda: not is_running(pid))
    assert _outcomes(run) == ["none"]


def test_the_first_log_lines_are_there_within_a_second(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "while True: print(time.time(), flush=True); time.sleep(0.2)")
    start(run, "--first-s", "0.5", "--last-s", "600")

    def shipped_in_time(number: int) -> bool:
        segment = Path(storage.url) / run.paths.log_segment(1, number)
        printed = [float(line) for line in segment.read_text().splitlines() if line[0].isdigit()]
        return bool(printed) and segment.stat().st_mtime - printed[0] < 1.5

    wait_for(lambda: any(map(shipped_in_time, run.log_segments(1))))  # a busy machine may delay some


ORPHAN = """
if os.fork() == 0:
    os._exit(os.fork() and 0)
os.wait()
def zombies():
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return [open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] for pid in pids].count("Z")
while zombies():
    time.sleep(0.01)
print("zombies 0")
"""


def _can_unshare() -> bool:
    return subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not shutil.which("unshare") or not _can_unshare(), reason="needs leave to make a PID namespace")
def test_process_1_of_a_container_hears_sigterm_and_leaves_no_zombies(storage: FolderStorage, tmp_path: Path) -> None:
    run = make_run(storage, f"{ORPHAN}{SAY_PID}work()")
    argv = ["unshare", "--pid", "--fork", "--mount-proc", *supervisor_argv(run, tmp_path / "scratch")]
    with subprocess.Popen(argv) as container:
        wait_for(logged(run, "pid "))
        (process_1,) = map(int, subprocess.check_output(["pgrep", "-P", str(container.pid)]).split())
        os.kill(process_1, signal.SIGTERM)
        assert container.wait(PATIENCE_S) == 75
    assert run.attempts()[0].pid == 2  # process 1 is its init
    assert b"zombies 0\n" in run.read_log(1)
    assert _outcomes(run) == ["interrupted"]


def test_what_dead_processes_left_unfinished_is_swept(storage: FolderStorage, start: Start) -> None:
    run = make_run(storage, "print('done')")
    left = Path(storage.url) / ".partial" / "left"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert start(run).wait(PATIENCE_S) == 0
    assert not left.exists()
    assert b"removed the remains of 1 unfinished uploads from the storage" in run.read_log(1)
