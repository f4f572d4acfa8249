"""SageMaker's contract kept by the real image: two hosts are two containers, which meet by their names, over gloo.

The containers are given what SageMaker gives: the request's entry point, arguments and environment, ``/opt/ml``, and a
SIGTERM to all of them. Both share this machine's loopback, where each is known by its host's name.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from container_engine import base_image, built
from s3_servers import BUCKET, CREDENTIALS, moto
from sagemaker_harness import COMPUTE
from trainer_harness import facts_of, small_job
from waiting import wait_for

from mtl_cloud.clock import Clock
from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import image_content
from mtl_cloud.errors import EngineError
from mtl_cloud.jobspec.job import SageMakerCompute
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.launch.sagemaker import SageMakerLauncher
from mtl_cloud.launch.sagemaker.opt_ml import write_opt_ml
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.storage import open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NETWORK = ["--network", "host", "--add-host", "algo-1:127.0.0.1", "--add-host", "algo-2:127.0.0.2", "--shm-size", "1g"]
CLOSELY = SupervisorOptions(poll_s=0.2, first_s=0.1, last_s=0.2, tick_s=0.05).to_flags()
LONGEST_S = 600.0
Start = Callable[[RunRecord, list[str]], list[str]]


@pytest.fixture
def image(engine: Engine) -> str:
    return built(image_content({}, base=base_image(engine)), engine)


@pytest.fixture(autouse=True)
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """SageMaker's containers have a bucket, and no folder in common."""
    with moto() as url:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        yield url


@pytest.fixture
def start(engine: Engine, image: str, s3: str, tmp_path: Path) -> Iterator[Start]:
    """A function from a run and its hosts to the names of their containers, started; none outlives the test."""
    around = {**CREDENTIALS, "AWS_ENDPOINT_URL": s3, "OMP_NUM_THREADS": "1"}
    names: list[str] = []

    def start(run: RunRecord, hosts: list[str]) -> list[str]:
        job: Any = SageMakerLauncher().prepare(run.plan()).request["create_training_job"]
        command = [*job["AlgorithmSpecification"]["ContainerEntrypoint"]]
        command += [*job["AlgorithmSpecification"]["ContainerArguments"], *CLOSELY]
        environ = [f"--env={name}={value}" for name, value in {**job["Environment"], **around}.items()]
        for host in hosts:
            names.append(f"{run.run_id}-{host}-{secrets.token_hex(2)}")
            root = _open_to_all(write_opt_ml(tmp_path / names[-1], host=host, hosts=hosts, interface="lo"))
            place = ["--name", names[-1], "--hostname", host, "--volume", f"{root}:/opt/ml", *NETWORK]
            engine.ask("run", "--detach", *place, *environ, "--entrypoint", command[0], image, *command[1:])
        return names[-len(hosts) :]

    yield start
    for name in names:
        with suppress(EngineError):
            engine.ask("rm", "--force", name)


def _open_to_all(root: Path) -> Path:
    """The image's user is nobody on this machine."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o777)
    return root


def make_run(name: str, *, hosts: int = 2) -> RunRecord:
    """Two processes that learn the embedded scenes together, on one host or on two."""
    compute = SageMakerCompute.model_validate({**COMPUTE, "instance_count": hosts})
    job = small_job(rounds=2, epochs_per_round=6, image_size=32)
    job = job.model_copy(update={"compute": compute, "storage": f"s3://{BUCKET}/{name}"})
    # A port of its own to meet at comes of the id.
    plan = plan_run(job, gather_facts(job), run_id=f"{name}-{secrets.token_hex(3)}", now=Clock().now())
    run = RunRecord(open_storage(job.storage), plan.run_id)
    run.create(replace(plan, processes=2), spec_yaml=b"", spec_json=job_to_json(job))
    return run


def ended(engine: Engine, names: list[str]) -> list[int]:
    """The containers' exit codes, once all have ended."""
    codes = [int(engine.ask("wait", name, timeout_s=LONGEST_S)) for name in names]
    print(*(engine.ask("logs", "--tail", "20", name) for name in names if any(codes)), sep="\n")
    return codes


def is_training(run: RunRecord) -> bool:
    beat = run.heartbeat(1)
    return beat is not None and bool(beat.progress.get("step"))


def learnt(run: RunRecord) -> tuple[int, list[tuple[str, str]], list[object]]:
    """The last checkpoint's step and its parts with their checksums; the rounds without their times."""
    last = run.manifest(run.checkpoints()[-1])
    parts = [(part["key"].rpartition("/")[2], part["crc64nvme"]) for part in last.parts]
    return last.step, parts, [facts_of(record) for record in run.rounds()]


def test_two_hosts_learn_what_one_learns_and_after_sigterm_to_both_go_on_to_the_same(
    engine: Engine, start: Start, tmp_path: Path
) -> None:
    alone, together, stopped = make_run("alone", hosts=1), make_run("together"), make_run("stopped")
    assert ended(engine, start(alone, ["algo-1"])) == [0]
    assert ended(engine, start(together, ["algo-1", "algo-2"])) == [0, 0]
    assert learnt(together) == learnt(alone)

    hosts = start(stopped, ["algo-1", "algo-2"])
    wait_for(lambda: is_training(stopped), LONGEST_S, every_s=0.2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda host: engine.ask("stop", "--time", "120", host, timeout_s=LONGEST_S), hosts))
    assert ended(engine, hosts) == [75, 75]
    assert (tmp_path / hosts[0] / "output" / "failure").read_text().startswith("interrupted: ")
    saved = learnt(stopped)[0]
    assert 0 < saved < learnt(alone)[0]
    assert ended(engine, start(stopped, ["algo-1", "algo-2"])) == [0, 0]
    outcomes = [end.outcome for attempt in stopped.attempts() if (end := stopped.exit(attempt.number))]
    assert outcomes == [Outcome.INTERRUPTED, Outcome.DONE]
    went_on = stopped.start(2)
    assert went_on is not None
    assert (went_on.checkpoint_step, went_on.checkpoint_attempt) == (saved, 1)
    assert learnt(stopped) == learnt(alone)
