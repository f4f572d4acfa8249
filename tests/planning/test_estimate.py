"""Hours and FLOPs of a job: against torch's own count, published counts, and arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mtl_cloud import catalog
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import load_job
from mtl_cloud.planning.estimate import estimate, forward_gflop, training_images
from mtl_cloud.tasks import NETWORK_TASKS
from mtl_cloud.train.nets import build_network

ARTICLE = Path(__file__).parents[2] / "jobs" / "article"
P4D = catalog.instance_type("p4d.24xlarge")


def job(
    model: dict[str, Any] | str = "vgg16", dataset: str = "voc", compute: dict[str, Any] | None = None, **training: Any
) -> JobSpec:
    named = {"name": model} if isinstance(model, str) else model
    rented = {"backend": "ec2", "instance_type": "p4d.24xlarge", "gpu_count": 1, **(compute or {})}
    return JobSpec.model_validate(
        {"model": named, "dataset": {"name": dataset, "uri": "s3://b/d"}, "compute": rented, "training": training}
    )


def counted(spec: JobSpec) -> float:
    """GFLOP of a forward pass as torch counts them, on tensors without storage."""
    classes = {task: tuple(map(str, range(20))) for task in NETWORK_TASKS[spec.model.name]}
    with torch.device("meta"):
        network = build_network(spec.model, classes).eval()
    side = spec.training.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops() / 1e9)


@pytest.mark.parametrize(
    ("model", "side"),
    [
        ("vgg16", 224),
        ("vgg16", 416),
        ("alexnet", 224),
        ("alexnet", 416),
        ("mtl_lite", 224),
        ("yolov3", 416),
        ("fcn_resnet50", 512),
        ("mtl_net", 416),
        ({"name": "mtl_net", "width": 0.5}, 416),
        ({"name": "mtl_net", "sharing": {1: "hard", 2: "hard", 3: "hard"}}, 416),
        ({"name": "mtl_net", "sharing": {1: "gate", 2: "gate"}}, 416),
    ],
)
def test_flops_are_those_that_torch_counts(model: dict[str, Any] | str, side: int) -> None:
    spec = job(model, image_size=side)
    assert forward_gflop(spec) == pytest.approx(counted(spec), rel=0.06)


# torchvision's weights (GFLOPS there are multiply-adds) and darknet's `yolov3.cfg` (BFLOPs are operations).
@pytest.mark.parametrize(
    ("model", "side", "gflop"), [("vgg16", 224, 2 * 15.47), ("alexnet", 224, 2 * 0.714), ("yolov3", 416, 65.86)]
)
def test_flops_are_the_published_ones(model: str, side: int, gflop: float) -> None:
    spec = job(model, image_size=side)
    assert counted(spec) == pytest.approx(gflop, rel=0.03)
    assert forward_gflop(spec) == pytest.approx(gflop, rel=0.03)


def test_a_task_that_nobody_labels_costs_nothing_unless_it_shares() -> None:
    alone = forward_gflop(job("mtl_net", "imagenet", image_size=224))
    shared = forward_gflop(job({"name": "mtl_net", "sharing": {5: "gate"}}, "imagenet", image_size=224))
    assert alone == pytest.approx(forward_gflop(job("vgg16", "imagenet", image_size=224)))
    assert shared > 3 * alone


def test_several_sizes_count_as_their_mean() -> None:
    one, many = job("yolov3", image_size=416), job("yolov3", image_size=416, multi_scale=(320, 608))
    sides = range(320, 609, 32)
    mean = sum(side**2 for side in sides) / len(sides)
    assert forward_gflop(many) / forward_gflop(one) == pytest.approx(mean / 416**2)


def test_a_thousand_epochs_on_imagenet_take_weeks_and_thousands_of_dollars() -> None:
    """By hand: 1,000 x 1,281,167 images x 3 x 30.9 GFLOP, on an A100 at 40 to 55 % of its 156 TFLOP/s of TF32."""
    found = estimate(load_job(ARTICLE / "imagenet_vgg16_4_workers.yaml").job, P4D)
    assert found
    flop = 1000 * 1281167 * 3 * 30.94e9
    slow, fast = (flop / (156e12 * share) / 3600 for share in (0.40, 0.55))
    assert found.images == 1_281_167_000
    assert found.hours == pytest.approx((fast, slow), rel=0.02)
    assert found.limit == "gpu"
    assert 380 < found.hours[0] < found.hours[1] < 540


def test_one_loader_worker_holds_the_gpu_up() -> None:
    """A core decodes 359 images a second through Pillow: four feed an A100 that trains VGG16, one does not."""
    found = estimate(load_job(ARTICLE / "imagenet_vgg16_1_worker.yaml").job, P4D)
    assert found
    assert (found.limit, found.images_per_s) == ("loader", (359, 359))


def test_small_images_are_held_up_by_the_steps() -> None:
    found = estimate(job("vgg16", "cifar10", image_size=32, batch_size=16), P4D)
    assert found
    assert found.limit == "steps"
    assert found.images_per_s[1] == pytest.approx(16 / 5e-3)


def test_what_the_run_has_shown_replaces_all_guesses_and_what_is_done_is_not_paid_again() -> None:
    spec = job("vgg16", "imagenet", rounds=50, image_size=224)
    whole = estimate(spec, P4D, measured_images_per_s=500.0)
    half = estimate(spec, P4D, measured_images_per_s=500.0, rounds_done=25)
    assert whole
    assert half
    assert whole.images_per_s == (500, 500)
    assert half.images * 2 == whole.images
    validated = 50 * 50_000 / 3
    assert whole.hours[0] - whole.download_hours == pytest.approx((whole.images + validated) / 500 / 3600, abs=0.2)


def test_eight_gpus_do_less_than_eight_times_the_work() -> None:
    """NVIDIA measured 6.72 times one A100's images/s on eight, in mixed precision."""
    one = estimate(job("fcn_resnet50", precision="bf16", batch_size=512, loader_workers=8), P4D)
    eight = estimate(
        job("fcn_resnet50", precision="bf16", batch_size=512, loader_workers=8, compute={"gpu_count": 8}), P4D
    )
    assert one
    assert eight
    assert eight.images_per_s[0] / one.images_per_s[0] == pytest.approx(6.72, abs=0.01)


@pytest.mark.parametrize(("machine", "gpus"), [("c5.9xlarge", 0), ("p6-b300.48xlarge", 8), ("p4d.24xlarge", 0)])
def test_a_speed_that_no_table_knows_is_not_guessed(machine: str, gpus: int) -> None:
    spec = job(compute={"instance_type": machine, "gpu_count": gpus}, batch_size=16)
    assert estimate(spec, catalog.instance_type(machine)) is None


@pytest.mark.parametrize("gpu", ["V100", "T4", "A10G", "L4", "L40S", "A100", "H100", "H200"])
def test_each_gpu_of_the_table_is_one_of_the_catalogue_s(gpu: str) -> None:
    (machine, *_) = catalog.instances(gpu=gpu)
    assert estimate(job(compute={"instance_type": machine.name}), machine)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), st.integers(1, 50), st.sampled_from(["fp32", "bf16"]), st.integers(1, 8))
def test_more_work_never_takes_less_time(rounds: int, epochs: int, precision: str, gpus: int) -> None:
    settings_: dict[str, Any] = {
        "precision": precision,
        "batch_size": 64 * gpus,
        "compute": {"gpu_count": gpus},
        "epochs_per_round": epochs,
    }
    less, more = (estimate(job(rounds=count, **settings_), P4D) for count in (rounds, rounds + 1))
    assert less
    assert more
    assert less.hours[0] <= less.hours[1]
    assert less.hours < more.hours


def test_epochs_that_are_cut_short_are_counted_so() -> None:
    spec = job(rounds=2, epochs_per_round=3, max_steps_per_epoch=5, batch_size=16)
    assert training_images(spec) == 2 * 3 * 5 * 16
