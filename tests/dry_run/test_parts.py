"""The parts of a dry run that need no container: the slice, the notice, the estimate, the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_harness import make_run

from mtl_cloud.clock import Clock
from mtl_cloud.dry_run import Evidence, MemoryNeed, check_evidence, memory_need, request, slice_job
from mtl_cloud.dry_run.fake_cloud import stand_in
from mtl_cloud.dry_run.imds import SpotNotice, metadata_service
from mtl_cloud.dry_run.request import check_request
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.planning.plan import gather_facts
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, ExitRecord, ResultRecord
from mtl_cloud.runs.scratch import StopReason
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.supervise.preemption import Ec2Watcher, InstanceMetadata
from mtl_cloud.supervise.sagemaker import SageMakerContainer

A100 = {"backend": "ec2", "instance_type": "p4d.24xlarge", "gpu_count": 8}


def job(**fields: Any) -> JobSpec:
    whole = {"dataset": {"name": "voc", "uri": "s3://b/voc"}, "compute": A100, "storage": "s3://b/runs"}
    return JobSpec.model_validate({**whole, **fields})


# --- the slice ---


def test_the_slice_keeps_network_and_recipe_and_is_small() -> None:
    whole = job(training={"batch_size": 64, "image_size": 416, "precision": "bf16", "optimizer": {"lr": 0.3}})
    small = slice_job(whole, image="mtl-cloud:1", storage="/tmp/r")
    assert small.model == whole.model
    assert small.training.optimizer == whole.training.optimizer
    assert (small.compute.backend, small.processes, small.storage) == ("docker", 1, "/tmp/r")
    assert (small.training.rounds, small.training.batch_size, small.training.precision) == (2, 4, "fp32")
    assert (small.datasets[0].uri, small.datasets[0].max_train_samples) == ("s3://b/voc", 16)


def test_on_gpus_the_step_is_the_jobs_own() -> None:
    small = slice_job(job(training={"batch_size": 64, "precision": "bf16"}), image="i", storage="/r", gpus=8)
    assert (small.training.batch_size, small.training.image_size, small.training.precision) == (64, 416, "bf16")
    assert small.processes == 8


@pytest.mark.parametrize(("data", "name", "uri"), [("embedded", "embedded", None), ("/copy", "voc", "/copy")])
def test_other_data_may_stand_in(data: str, name: str, uri: str | None) -> None:
    (dataset,) = slice_job(job(), image="i", storage="/r", data=data).datasets
    assert (dataset.name, dataset.uri) == (name, uri)


# --- what stands in for the cloud ---


def test_the_supervisors_own_watcher_hears_the_notice_when_it_is_given_and_not_before() -> None:
    notice = SpotNotice()
    with metadata_service(notice) as url:
        metadata = InstanceMetadata({"AWS_EC2_METADATA_SERVICE_ENDPOINT": url})
        watcher = Ec2Watcher(metadata, Clock(), save_early=pytest.fail)
        watcher.look()
        assert watcher.poll() is None
        notice.give()
        watcher.look()
    stop = watcher.poll()
    assert stop is not None
    assert stop.reason is StopReason.SPOT
    assert stop.grace_s is not None
    assert 90 < stop.grace_s < 115


def test_the_supervisor_reads_the_one_host_that_stands_in_for_sagemaker() -> None:
    with stand_in("sagemaker") as around:
        folder = around.options[1].split("source=")[1].split(",")[0]
        assert SageMakerContainer(Path(folder)).nodes().leads
        assert around.flags == ("--sagemaker", "/opt/ml")
    assert not Path(folder).exists()


# --- the memory ---

PROBE = {"train_images": 5717, "val_images": 5823, "state_bytes": 3_758_506_928, "activation_bytes": 1_502_457_876}


def test_memory_follows_from_what_was_counted() -> None:
    whole = job(training={"batch_size": 64, "precision": "bf16"})
    found = memory_need(whole, gather_facts(whole), dict(PROBE))
    assert found.gpu_memory_gib == 40
    assert found.memory_gib == pytest.approx(3.5004 + 8 * 1.39927 / 2 + 1.5, rel=1e-3)


def test_without_a_rented_gpu_nothing_is_claimed_of_it() -> None:
    whole = job(compute={"backend": "local"})
    assert memory_need(whole, gather_facts(whole), dict(PROBE)).gpu_memory_gib is None


# --- the verdict ---

FITS = MemoryNeed(memory_gib=10, gpu_memory_gib=40)


def states(evidence: Evidence, need: MemoryNeed | None = None) -> dict[str, str]:
    return {row.check: row.state for row in check_evidence(job(), evidence, need)}


def failed(evidence: Evidence, need: MemoryNeed | None = None) -> list[str]:
    return [check for check, state in states(evidence, need).items() if state == "failed"]


def ended(outcome: str, exit_code: int, message: str) -> RunRecord:
    run = make_run(MemoryStorage("verdict"))
    at = "2026-01-01T00:00:00+00:00"
    run.claim(AttemptRecord(number=1, started_at=at, host="h", pid=1, backend="docker"))
    run.write_exit(1, ExitRecord(ended_at=at, outcome=outcome, exit_code=exit_code, message=message, seconds=1))
    result = ResultRecord(ended_at=at, outcome=outcome, message=message, attempts=1, rounds=0, seconds=1)
    run.write_result(result, attempt=1)
    return run


def test_nothing_is_reached_without_an_image() -> None:
    assert failed(Evidence()) == ["image"]
    assert set(states(Evidence()).values()) == {"ok", "failed", "not reached"}


@pytest.mark.parametrize(
    ("code", "row"), [(9, "dataset"), (8, "storage"), (137, "memory"), (10, "forward and backward")]
)
def test_a_probe_that_fails_belongs_to_one_row(code: int, row: str) -> None:
    assert failed(Evidence(image="i", probe_error=(code, "why"))) == [row]


@pytest.mark.parametrize(
    ("code", "message", "row"),
    [
        (9, "image 3 is damaged", "dataset"),
        (1, "ValueError: user code", "forward and backward"),
        (-9, "the trainer was ended by SIGKILL (out of memory?)", "memory"),
    ],
)
def test_a_run_that_ends_badly_belongs_to_one_row_with_its_words(code: int, message: str, row: str) -> None:
    evidence = Evidence(image="i", probe={"gpus": 0}, run=ended("user_error", code, message))
    rows = {found.check: found for found in check_evidence(job(), evidence, FITS)}
    assert rows[row].state == "failed"
    assert rows[row].detail == message
    assert [found.check for found in rows.values() if found.state == "failed"] == [row]
    assert not rows["checkpoint"].is_good


def test_a_storage_that_takes_no_record_is_the_storages_row() -> None:
    assert failed(Evidence(image="i", probe={"gpus": 0}, start_error="read-only")) == ["storage"]


def test_a_job_too_large_for_its_gpu_is_the_memorys_row() -> None:
    large = MemoryNeed(memory_gib=50, gpu_memory_gib=40)
    evidence = Evidence(image="i", probe={"gpus": 0}, run=make_run(MemoryStorage("large")))
    assert failed(evidence, large) == ["memory"]


# --- the request ---


@pytest.mark.parametrize(
    ("compute", "operations"),
    [
        (A100, "create_launch_template, create_auto_scaling_group, put_scheduled_update_group_action, update"),
        ({"backend": "ec2", "instance_type": "p4d.24xlarge", "capacity_reservation": "cr-0a1"}, "create_launch"),
        ({"backend": "sagemaker", "instance_type": "ml.p4d.24xlarge", "purchase": "spot"}, "create_training_job"),
    ],
)
def test_what_the_jobs_own_launcher_would_send_is_held_against_awss_model(
    compute: dict[str, Any], operations: str
) -> None:
    found = check_request(job(compute=compute), now=Clock().now())
    assert (found.fits, found.words.partition(operations)[1]) == (True, operations)


def test_what_a_backend_would_not_take_is_the_requests_row_and_hides_nothing_else() -> None:
    long = job(compute={"backend": "sagemaker", "instance_type": "ml.g5.xlarge"}, storage=f"s3://b/{'x' * 300}")
    found = check_request(long, now=Clock().now())
    assert (found.fits, "SageMaker takes arguments of 256 characters" in found.words) == (False, True)
    broken = Evidence(request=found, image="i", probe_error=(9, "no such folder"))
    assert failed(broken) == ["request", "dataset"]


def test_a_request_of_another_form_is_refused_in_botocores_words() -> None:
    (words,) = request._misfits({"create_training_job": {"TrainingJobName": 7, "Image": "i"}})
    assert words.startswith("CreateTrainingJob: Missing required parameter")
    assert 'Unknown parameter in input: "Image"' in words


def test_a_job_that_rents_no_machine_asks_for_none() -> None:
    assert check_request(job(compute={"backend": "local"}), now=Clock().now()).fits is None
