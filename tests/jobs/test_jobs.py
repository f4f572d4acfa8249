"""Every job file that is shipped is valid, short, planned, and fits the schema that editors use."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.jobspec.constraints import trained_tasks
from mtl_cloud.jobspec.load import load_job
from mtl_cloud.jobspec.schema import job_schema
from mtl_cloud.jobspec.tree import read_yaml
from mtl_cloud.planning.plan import gather_facts, plan_run, worst_case_usd
from mtl_cloud.tasks import NETWORK_TASKS, TASKS

JOBS = Path(__file__).parents[2] / "jobs"
FILES = sorted(JOBS.rglob("*.yaml"))
ARTICLE = sorted((JOBS / "article").glob("*.yaml"))
every_job = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(job_schema())


@every_job
def test_it_is_planned_offline_for_what_its_dataset_and_network_have_in_common(path: Path) -> None:
    job = load_job(path).job
    plan = plan_run(job, gather_facts(job), run_id="r", now=datetime(2026, 11, 23, tzinfo=UTC))
    assert trained_tasks(job)
    assert plan.backend == "local" or worst_case_usd(plan)


@every_job
def test_it_warns_of_nothing_but_the_article_s_idle_gpus(path: Path) -> None:
    said = [warning.message for warning in load_job(path).warnings]
    idle = ["p4d.24xlarge has 8 GPUs and the job uses 1: 7 are paid for but idle"]
    assert said == (idle if path in ARTICLE else [])


@every_job
def test_it_fits_the_json_schema(path: Path, validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(read_yaml(path.read_bytes(), path.name).data)) == []


@every_job
def test_it_is_under_12_lines_and_says_in_a_comment_what_it_is(path: Path) -> None:
    first, *rest = path.read_text().splitlines()
    assert first.startswith("# ")
    assert len(rest) < 12


@every_job
def test_its_name_tells_what_it_is(path: Path) -> None:
    job = load_job(path).job
    stem = f"article-{path.stem}" if path in ARTICLE else path.stem
    assert job.name.replace("-", "_").replace("_network", "") == stem.replace("-", "_")


def test_there_is_one_for_each_dataset_and_the_quickstart_needs_nothing() -> None:
    assert {path.name for path in FILES if path not in ARTICLE} == {
        "quickstart.yaml",
        "voc_mtl_net.yaml",
        "cifar10_mtl_net.yaml",
        "imagenet_mtl_net.yaml",
        "imagenet_voc_mtl_net.yaml",
        "mtl_lite.yaml",
    }
    quickstart = load_job(JOBS / "quickstart.yaml").job
    assert (quickstart.compute.backend, quickstart.compute.gpu_count) == ("local", 0)
    assert (quickstart.datasets[0].name, trained_tasks(quickstart)) == ("embedded", TASKS)


def test_the_article_is_there_whole() -> None:
    """Three datasets; each sub-network that the dataset labels, MTL-Net and MTLLite; one loader worker and four."""
    networks = ("vgg16", "yolov3", "fcn_resnet50", "mtl_net", "mtl_lite")
    wanted = {
        (dataset, network, workers)
        for dataset in ("imagenet", "voc", "cifar10")
        for network in networks
        if set(NETWORK_TASKS[network]) & set(DATASETS[dataset].tasks)
        for workers in (1, 4)
    }
    jobs = [load_job(path).job for path in ARTICLE]
    assert {(job.datasets[0].name, job.model.name, job.training.loader_workers) for job in jobs} == wanted
    assert len(jobs) == len(wanted) == 22


@pytest.mark.parametrize("path", ARTICLE, ids=lambda path: path.stem)
def test_the_article_s_recipe_is_literal(path: Path) -> None:
    job = load_job(path).job
    training = job.training
    assert (training.batch_size, training.sampling) == (16, "random")
    assert (training.rounds, training.epochs_per_round, training.max_steps_per_epoch) == (50, 20, None)
    assert job.compute.model_dump(include={"backend", "instance_type", "gpu_count"}) == {
        "backend": "ec2",
        "instance_type": "p4d.24xlarge",
        "gpu_count": 1,
    }
