"""Secrets reach the trainer's environment, and nothing else: not the record, not the log, not an error."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
import s3_servers
from hypothesis import given, settings
from hypothesis import strategies as st
from run_harness import PRELUDE, supervisor_argv

from mtl_cloud.errors import LaunchError
from mtl_cloud.jobspec.load import job_to_json, parse_job
from mtl_cloud.planning.plan import Facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import open_storage
from mtl_cloud.supervise import log
from mtl_cloud.supervise.log import LogShipper
from mtl_cloud.supervise.secrets import Secrets, read_secrets

PLANTED = 'pl4nted "secret"\\with/every+kind of=quoting'
KEY_FILE = "-----BEGIN KEY-----\nAAAAC3NzaC1lZDI1\nNTE5AAAAIPl4nt3d\n-----END KEY-----"
JOB = """
dataset: {name: embedded}
env:
  MODE: careful
  WANDB_API_KEY: {ssm: /mtl-cloud/wandb}
  DEPLOY_KEY: {secretsmanager: mtl-cloud/deploy, key: private}
"""
TELLS_ALL = """
import json, hashlib
from urllib.parse import quote
key, deploy = os.environ["WANDB_API_KEY"], os.environ["DEPLOY_KEY"]
print(key, repr(key), json.dumps({"key": key}), quote(key, safe=""), flush=True)
print(deploy, repr(deploy), file=sys.stderr, flush=True)
print("digest", hashlib.sha256((key + deploy).encode()).hexdigest(), os.environ["MODE"], flush=True)
scratch.write_progress("training", step=1)
"""
FAILS = TELLS_ALL + "scratch.write_failure(Failure(exit_code=9, message=f'bad {key}', hint=deploy)); sys.exit(9)"
RAISES = TELLS_ALL + "raise ValueError(key)"


@pytest.fixture(scope="module")
def cloud() -> Iterator[str]:
    """A moto server with S3, the Parameter Store and Secrets Manager, and the planted secrets in it."""
    with s3_servers.moto() as url:
        options = {
            "endpoint_url": url,
            "region_name": "us-east-1",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "secret",
        }
        boto3.client("ssm", **options).put_parameter(Name="/mtl-cloud/wandb", Value=PLANTED, Type="SecureString")
        secret = json.dumps({"private": KEY_FILE, "public": "p"})
        boto3.client("secretsmanager", **options).create_secret(Name="mtl-cloud/deploy", SecretString=secret)
        yield url


@pytest.fixture
def environ(cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**s3_servers.CREDENTIALS, "AWS_ENDPOINT_URL": cloud}.items():
        monkeypatch.setenv(name, value)


def run_of(job_yaml: str, code: str, run_id: str) -> RunRecord:
    """A run planned from a job file, whose trainer is the code."""
    job = parse_job(job_yaml.encode(), source="job.yaml", base=Path("/")).job
    job = job.model_copy(update={"storage": f"s3://{s3_servers.BUCKET}/runs"})
    plan = plan_run(job, Facts(), run_id=run_id, now=datetime(2026, 1, 1, tzinfo=UTC))
    run = RunRecord(open_storage(plan.storage), run_id)
    run.create(
        replace(plan, command=["python", "-c", PRELUDE + code]),
        spec_yaml=job_yaml.encode(),
        spec_json=job_to_json(job),
    )
    return run


def leaks(data: bytes) -> list[str]:
    """What of the planted secrets is in the data, in any writing that a program may choose."""
    texts = [PLANTED, *KEY_FILE.splitlines()[1:3]]
    forms = {form for text in texts for form in (text, json.dumps(text)[1:-1], repr(text)[1:-1], quote(text, safe=""))}
    return [form for form in forms if form.encode() in data]


@pytest.mark.parametrize(("code", "outcome"), [(TELLS_ALL, "done"), (FAILS, "user_error"), (RAISES, "user_error")])
def test_a_whole_run_holds_no_trace_of_a_planted_secret(environ: None, tmp_path: Path, code: str, outcome: str) -> None:
    run = run_of(JOB, code, f"spill-{hashlib.sha256(code.encode()).hexdigest()[:6]}")
    done = subprocess.run(supervisor_argv(run, tmp_path), capture_output=True, check=False, env=os.environ)
    result = run.result()
    assert result is not None
    assert result.outcome == outcome
    entries = run.storage.list(f"runs/{run.run_id}")
    assert {Path(entry.key).name for entry in entries} >= {"plan.json", "spec.json", "exit.json", "result.json"}
    record = {entry.key: run.storage.read(entry.key) for entry in entries}
    assert [(key, leaks(data)) for key, data in record.items() if leaks(data)] == []
    assert leaks(done.stdout + done.stderr) == []
    digest = hashlib.sha256((PLANTED + KEY_FILE).encode()).hexdigest()
    assert f"digest {digest} careful" in run.read_log(1).decode()
    assert b"***WANDB_API_KEY***" in run.read_log(1)


def test_a_parameter_that_is_not_there_ends_the_run_before_its_trainer_starts(environ: None, tmp_path: Path) -> None:
    run = run_of(JOB.replace("/mtl-cloud/wandb", "/mtl-cloud/absent"), "print('started')", "absent-1")
    assert subprocess.run(supervisor_argv(run, tmp_path), stderr=subprocess.DEVNULL, check=False).returncode == 7
    result = run.result()
    assert result is not None
    assert (result.outcome, result.attempts) == ("user_error", 1)
    assert result.message.startswith("env.WANDB_API_KEY: ssm GetParameter: ")
    assert b"started" not in run.read_log(1)


@pytest.mark.parametrize(
    ("secret", "key", "words"), [("no json", "k", "not a JSON object with the key 'k'"), ('{"a": 1}', "k", "key 'k'")]
)
def test_a_secret_without_the_key_is_told_without_quoting_it(
    environ: None, cloud: str, secret: str, key: str, words: str
) -> None:
    name = f"mtl-cloud/{hashlib.sha256(secret.encode()).hexdigest()[:6]}"
    boto3.client("secretsmanager").create_secret(Name=name, SecretString=secret)
    with pytest.raises(Exception, match=words) as caught:
        read_secrets({"X": {"secretsmanager": name, "key": key, "region": "us-east-1"}})
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_secret_is_read_whole_where_no_key_is_given_and_a_binary_one_is_refused(environ: None, cloud: str) -> None:
    secrets_manager = boto3.client("secretsmanager")
    secrets_manager.create_secret(Name="mtl-cloud/whole", SecretString=PLANTED)
    secrets_manager.create_secret(Name="mtl-cloud/binary", SecretBinary=b"\0")
    whole, binary = (
        {"X": {"secretsmanager": f"mtl-cloud/{name}", "region": "us-east-1"}} for name in ("whole", "binary")
    )
    assert read_secrets(whole).values == {"X": PLANTED}
    with pytest.raises(LaunchError, match=r"^env\.X: the secret is binary"):
        read_secrets(binary)


def test_without_references_nothing_is_asked() -> None:
    def nobody(_region: str | None) -> Any:
        raise AssertionError

    assert read_secrets({}, nobody).values == {}


def test_values_are_not_shown_by_repr() -> None:
    assert repr(Secrets({"TOKEN": "hush-hush"})) == "Secrets(TOKEN)"


@given(
    before=st.text("ab\n", max_size=30),
    after=st.text("ab\n", max_size=30),
    secret=st.text("abc", min_size=4, max_size=9).filter(lambda text: "c" in text),
)
@settings(max_examples=60, deadline=None)
def test_no_cut_between_segments_lets_a_secret_through(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str, secret: str
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.txt"
    path.write_text(f"{before}{secret}{after}\n")
    sent: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "SEGMENT_BYTES", 12)
        LogShipper(path, lambda _, data: sent.append(data), Secrets({"X": secret})).ship(last=True)
    assert secret.encode() not in b"".join(sent)
    assert b"".join(sent).replace(b"***X***", secret.encode()) == path.read_bytes()
