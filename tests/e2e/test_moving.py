"""A run moves from this machine to SageMaker's double and back, and learns what it would have learnt in one go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from run_harness import no_cloud_environ
from s3_servers import BUCKET, CREDENTIALS, moto
from sagemaker_harness import COMPUTE
from trainer_harness import facts_of, small_job
from waiting import wait_for

from mtl_cloud.clock import Clock
from mtl_cloud.jobspec.job import JobSpec, SageMakerCompute
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.launch import Launcher
from mtl_cloud.launch.local import LocalLauncher
from mtl_cloud.launch.resume import resume_run
from mtl_cloud.launch.sagemaker import SageMakerLauncher
from mtl_cloud.launch.submit import submit_run
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.storage import FolderStorage
from mtl_cloud.testing.sagemaker import SageMakerDouble

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def _has_rounds(run: RunRecord, count: int) -> Callable[[], bool]:
    return lambda: len(run.rounds()) >= count


def _plan(job: JobSpec, run_id: str) -> Any:
    return plan_run(job, gather_facts(job), run_id=run_id, now=NOW)


def _final_state(run: RunRecord) -> list[tuple[str, str]]:
    """Names and checksums of the last checkpoint's parts."""
    parts = run.manifest(run.checkpoints()[-1]).parts
    return [(part["key"].rpartition("/")[2], part["crc64nvme"]) for part in parts]


def test_local_sagemaker_local_equals_a_straight_run_bit_for_bit(
    tmp_path: Path, sagemaker_double: SageMakerDouble
) -> None:
    environ = {**no_cloud_environ(), "XDG_STATE_HOME": str(tmp_path / "state")}
    launchers: dict[str, Launcher] = {"local": LocalLauncher(environ=environ), "sagemaker": SageMakerLauncher()}
    storage = FolderStorage(tmp_path / "storage")
    job = small_job(rounds=4, epochs_per_round=8).model_copy(update={"storage": storage.url})
    on_sagemaker = job.model_copy(update={"compute": SageMakerCompute.model_validate(COMPUTE)})

    def start(run_id: str) -> RunRecord:
        submit_run(
            _plan(job, run_id), spec_yaml=b"", spec_json=job_to_json(job), storage=storage, launcher=launchers["local"]
        )
        return RunRecord(storage, run_id)

    straight, moved = start("straight-1"), start("moved-1")
    for number, there in enumerate((on_sagemaker, job), 1):
        wait_for(_has_rounds(moved, number))
        resume_run(moved, there, _plan(there, "moved-1"), get_launcher=launchers.__getitem__, clock=Clock())
    for run in (moved, straight):
        result = wait_for(run.result, 240)
        assert result.outcome == Outcome.DONE, result.message
    assert [attempt.backend for attempt in moved.attempts()] == ["local", "sagemaker", "local"]
    starts = [moved.start(attempt.number) for attempt in moved.attempts()]
    assert [start.checkpoint_attempt for start in starts if start] == [None, 1, 2]
    assert _final_state(moved) == _final_state(straight)
    assert [facts_of(record) for record in moved.rounds()] == [facts_of(record) for record in straight.rounds()]


def test_the_command_moves_a_run_in_a_bucket(tmp_path: Path) -> None:
    with moto() as url:
        environ = {**no_cloud_environ(), **CREDENTIALS, "AWS_ENDPOINT_URL_S3": url}
        double = SageMakerDouble(tmp_path / "sagemaker", environ=environ)
        cli = _cli(tmp_path, {**environ, "AWS_ENDPOINT_URL_SAGEMAKER": double.url})
        run_id = "small-1"
        job = small_job(rounds=3, epochs_per_round=8).model_dump(
            mode="json", exclude={"compute", "storage"}, exclude_defaults=True
        )
        (tmp_path / "job.yaml").write_text(json.dumps({**job, "storage": f"s3://{BUCKET}/moving"}))
        cli("submit", "job.yaml", "--run-id", run_id, "--detach")
        wait_for(lambda: '"round": 0' not in cli("status", run_id, "--json"))
        options = [f"--set=compute.{name}={value}" for name, value in COMPUTE.items() if name != "backend"]
        with double:
            cli("submit", "--resume", run_id, "--backend", "sagemaker", *options)
        assert "resumed at step" in cli("logs", run_id)
        assert '"state": "done"' in cli("status", run_id, "--json")
        assert cli("submit", "--resume", run_id, "--json", expect=5) == ""


def _cli(folder: Path, environ: dict[str, str]) -> Callable[..., str]:
    def run(*arguments: str, expect: int = 0) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "mtl_cloud", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**environ, "XDG_STATE_HOME": str(folder / "state")},
        )
        assert ended.returncode == expect, ended.stderr
        return ended.stdout

    return run
