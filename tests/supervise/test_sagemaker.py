"""SageMaker's container contract, kept by real supervisors: `/opt/ml`, SIGTERM, exit codes, several hosts."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from run_harness import FAST, PRELUDE, logged, make_run, no_cloud_environ
from waiting import PATIENCE_S, wait_for

from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.sagemaker.opt_ml import write_opt_ml
from mtl_cloud.names import ENV_INPUTS
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.storage import FolderStorage
from mtl_cloud.supervise.nodes import Nodes
from mtl_cloud.supervise.sagemaker import SageMakerContainer

Start = Callable[..., subprocess.Popen[bytes]]
SUM_RANKS = """
import atexit, torch, torch.distributed as dist
dist.init_process_group("gloo")
atexit.register(dist.destroy_process_group)  # else gloo's threads may abort the process as it ends
def meet(where):  # through torchrun's store: gloo loses a connection whose one end closes while the other still reads
    store = dist.distributed_c10d._get_default_store()
    store.set(f"{where} {dist.get_rank()}", "")
    store.wait([f"{where} {rank}" for rank in range(dist.get_world_size())])
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
print("sum", int(total), "of", dist.get_world_size(), flush=True)
meet("summed")
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a container's process 1; none outlives the test."""
    with ExitStack() as stack:

        def start(run: RunRecord, root: Path) -> subprocess.Popen[bytes]:
            argv = [sys.executable, "-m", "mtl_cloud.supervise", "--storage", run.storage.url, "--run-id", run.run_id]
            argv += ["--sagemaker", str(root), "--scratch", str(root / "tmp"), "--echo", *FAST.to_flags()]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=no_cloud_environ())
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def test_the_hosts_agree_on_who_leads_whatever_order_they_are_told_in(tmp_path: Path) -> None:
    hosts = ["algo-2", "algo-1", "algo-3"]
    nodes = [SageMakerContainer(write_opt_ml(tmp_path, host=host, hosts=hosts)).nodes() for host in sorted(hosts)]
    assert nodes == [Nodes(rank, 3, "algo-1") for rank in range(3)]


def test_a_channel_is_found_where_sagemaker_puts_it_a_single_object_as_a_file(tmp_path: Path) -> None:
    urls = {"input-1": "s3://b/VOCdevkit/", "input-2": "s3://b/w/vgg.pth"}
    root = write_opt_ml(tmp_path, channels=dict.fromkeys(urls, "FastFile"), hyperparameters=urls)
    weights = root / "input/data/input-2/vgg.pth"
    weights.write_bytes(b"")
    environ = SageMakerContainer(root).environ({"A": "1", "NCCL_SOCKET_IFNAME": "mine"})
    inputs = {"s3://b/VOCdevkit/": str(root / "input/data/input-1"), "s3://b/w/vgg.pth": str(weights)}
    assert json.loads(environ.pop(ENV_INPUTS)) == inputs
    assert environ == {"A": "1", "GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "mine"}


def test_a_job_without_channels_has_no_inputs(tmp_path: Path) -> None:
    """SageMaker writes neither file then."""
    root = write_opt_ml(tmp_path)
    for name in ("inputdataconfig.json", "hyperparameters.json"):
        (root / "input/config" / name).unlink(missing_ok=True)
    assert ENV_INPUTS not in SageMakerContainer(root).environ({})


def test_a_folder_that_sagemaker_did_not_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"resourceconfig\.json: does not exist"):
        SageMakerContainer(tmp_path).nodes()
    (write_opt_ml(tmp_path) / "input/config/resourceconfig.json").write_text("{")
    with pytest.raises(LaunchError, match="not JSON"):
        SageMakerContainer(tmp_path).nodes()


def test_a_container_that_is_done_ends_with_0_and_has_printed_its_log(tmp_path: Path, start: Start) -> None:
    run = make_run(FolderStorage(tmp_path / "storage"), "print('metrics round=1 task=detection map=0.5')")
    container = start(run, write_opt_ml(tmp_path / "ml"))
    output, _ = container.communicate(timeout=PATIENCE_S)
    assert container.returncode == 0
    assert b"\nmetrics round=1 task=detection map=0.5\n" in output
    assert output == run.read_log(1)
    assert not (tmp_path / "ml/output/failure").exists()


def test_a_users_error_ends_with_7_and_stands_in_the_failure_file(tmp_path: Path, start: Start) -> None:
    run = make_run(FolderStorage(tmp_path / "storage"), "raise ValueError('é' * 3000)")
    assert start(run, write_opt_ml(tmp_path / "ml")).wait(PATIENCE_S) == 7
    failure = (tmp_path / "ml/output/failure").read_bytes()
    assert failure.startswith("user_error: the trainer ended with code 1: ValueError: éé".encode())
    assert len(failure) == 1024


def test_sigterm_is_obeyed_with_a_save_and_the_next_container_goes_on(tmp_path: Path, start: Start) -> None:
    """StopTrainingJob and a spot interruption both look like this; SageMaker restarts the latter's container."""
    run = make_run(FolderStorage(tmp_path / "storage"), "print('up', flush=True); attempt == 1 and work()")
    first = start(run, write_opt_ml(tmp_path / "ml"))
    wait_for(logged(run, "up"))
    first.terminate()
    assert first.wait(PATIENCE_S) == 75
    assert b"saved" in run.read_log(1)
    assert start(run, write_opt_ml(tmp_path / "ml")).wait(PATIENCE_S) == 0
    ends = [run.exit(attempt.number) for attempt in run.attempts()]
    assert [end.outcome for end in ends if end] == [Outcome.INTERRUPTED, Outcome.DONE]


def _two_hosts(run: RunRecord, folder: Path, start: Start) -> list[subprocess.Popen[bytes]]:
    hosts = ("127.0.0.1", "127.0.0.2")  # all of 127.0.0.0/8 is this machine
    return [start(run, write_opt_ml(folder / host, host=host, hosts=hosts, interface="lo")) for host in hosts]


def _run_of_two(folder: Path, code: str) -> RunRecord:
    """Its id is its own: the port that the hosts meet at comes of it."""
    (folder / "trainer.py").write_text(PRELUDE + code)
    command = ["python", str(folder / "trainer.py")]  # torchrun knows no -c
    run_id = f"two-{secrets.token_hex(4)}"
    return make_run(FolderStorage(folder / "storage"), command=command, processes=2, run_id=run_id)


def test_two_hosts_train_as_one_and_only_the_first_writes(tmp_path: Path, start: Start) -> None:
    run = _run_of_two(tmp_path, SUM_RANKS)
    containers = _two_hosts(run, tmp_path, start)
    outputs = [container.communicate(timeout=PATIENCE_S)[0] for container in containers]
    assert [container.returncode for container in containers] == [0, 0]
    assert all(b"sum 3 of 2" in output for output in outputs)
    assert [attempt.pid for attempt in run.attempts()] == [containers[0].pid]
    assert run.read_log(1) == outputs[0]


@pytest.mark.slow
def test_sigterm_to_all_hosts_ends_in_one_save_and_one_exit(tmp_path: Path, start: Start) -> None:
    code = SUM_RANKS + (
        "while True:\n"
        "    stop = torch.tensor(float(scratch.stop_reason() is not None)); dist.all_reduce(stop)\n"
        "    if stop: meet('stop'); print('saved', flush=True); sys.exit(75)\n"
        "    time.sleep(0.05)\n"
    )
    run = _run_of_two(tmp_path, code)
    leader, follower = _two_hosts(run, tmp_path, start)
    wait_for(logged(run, "sum 3 of 2"))
    for container in (follower, leader):
        os.kill(container.pid, 15)
    assert [leader.wait(PATIENCE_S), follower.wait(PATIENCE_S)] == [75, 75]
    end = run.exit(1)
    assert end is not None
    assert (end.outcome, end.exit_code) == (Outcome.INTERRUPTED, 75)


@pytest.mark.slow
def test_a_machines_fault_restarts_all_hosts_together(tmp_path: Path, start: Start) -> None:
    code = SUM_RANKS + "if attempt == 1: scratch.write_progress('training', step=1); os.kill(os.getpid(), 9)\n"
    run = _run_of_two(tmp_path, code)
    containers = _two_hosts(run, tmp_path, start)
    outputs = [container.communicate(timeout=PATIENCE_S)[0] for container in containers]
    assert [container.returncode for container in containers] == [0, 0]
    assert all(output.count(b"sum 3 of 2") == 2 for output in outputs)
    assert len(run.attempts()) == 2
