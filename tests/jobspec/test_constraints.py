"""Constraints across fields: each rule, with the smallest job that breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtl_cloud.errors import SpecError
from mtl_cloud.jobspec.constraints import trained_tasks
from mtl_cloud.jobspec.load import LoadedJob, parse_job

EMBEDDED = "dataset: {name: embedded}\n"
CIFAR = "dataset: {name: cifar10, uri: c}\n"
TWO = "dataset: [{name: embedded, tasks: [detection, segmentation]}, {name: cifar10, uri: c}]\n"
ON_EC2 = "storage: s3://b/r\n" + EMBEDDED
ON_SAGEMAKER = ON_EC2 + "compute: {backend: sagemaker, role: 'arn:aws:iam::123456789012:role/mtl', "


def load(text: str) -> LoadedJob:
    return parse_job(text.encode(), source="f", base=Path("/"))


ERRORS = {
    ON_EC2 + "compute: {backend: ec2, instance_type: p4d.24xlarge, gpu_count: 9}\ntraining: {batch_size: 18}": (
        "f:3:65: compute.gpu_count: p4d.24xlarge has 8 GPUs, but the job requests 9; use gpu_count: 8"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, gpu_count: 2}": (
        "f:3:62: compute.gpu_count: g5.xlarge has 1 GPU, but the job requests 2; use gpu_count: 1"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: c5.9xlarge}": (
        "f:3:1: compute.gpu_count: c5.9xlarge has no GPU, but the job requests 1; use gpu_count: 0"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarg}": (
        "f:3:40: compute.instance_type: unknown instance type 'g5.xlarg'; did you mean g5.xlarge?"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: z}": (
        "f:3:40: compute.instance_type: unknown instance type 'z'; it is not in the catalogue of 2026-11-23"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: [ml.g5.xlarge]}": (
        "f:3:41: compute.instance_type[0]: ml.g5.xlarge is a SageMaker instance type; on EC2 use g5.xlarge"
    ),
    ON_SAGEMAKER + "instance_type: g5.xlarge}": (
        "f:3:90: compute.instance_type: g5.xlarge is an EC2 instance type; on SageMaker use ml.g5.xlarge"
    ),
    ON_SAGEMAKER + "instance_type: [ml.g5.xlarge, ml.g6.xlarge], purchase: spot}": (
        "f:3:75: compute.instance_type: managed spot training accepts one instance type, not 2; "
        "name only ml.g5.xlarge, or use purchase: on_demand"
    ),
    ON_SAGEMAKER + "instance_type: [ml.g5.xlarge, ml.g5.xlarge]}": (
        "f:3:75: compute.instance_type: list at most 5 instance types, without duplicates"
    ),
    ON_SAGEMAKER + "instance_type: ml.g5.xlarge, purchase: spot, keep_alive_minutes: 9}": (
        "f:3:140: compute.keep_alive_minutes: managed spot training has no warm pools; "
        "remove it, or use purchase: on_demand"
    ),
    ON_SAGEMAKER + "instance_type: ml.g5.xlarge, subnets: [subnet-1]}": (
        "f:3:1: compute.security_groups: a VPC needs both subnets and security groups"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: [g5.xlarge, g6.xlarge], capacity_reservation: cr-1}": (
        "f:3:86: compute.capacity_reservation: a reservation is for one instance type; name only that type"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, purchase: spot, capacity_reservation: cr-1}": (
        "f:3:89: compute.capacity_reservation: spot instances cannot use a reservation; use purchase: on_demand"
    ),
    EMBEDDED + "compute: {gpu_count: 2, processes: 4}": (
        "f:2:36: compute.processes: each GPU needs one process: 4 processes, 2 GPUs; remove `processes`"
    ),
    EMBEDDED + "compute: {processes: 3}": (
        "f:1:1: training.batch_size: 16 is not divisible by the number of processes, 3; nearest: 15 or 18"
    ),
    EMBEDDED + "compute: {processes: 32}": (
        "f:1:1: training.batch_size: 16 is not divisible by the number of processes, 32; nearest: 32"
    ),
    "dataset: {name: voc}": "f:1:1: dataset.uri: voc needs the path or URL of its files",
    "dataset: {name: cifar10, uri: c, tasks: [classification, segmentation]}": (
        "f:1:58: dataset.tasks[1]: cifar10 has no labels for segmentation; it labels classification"
    ),
    CIFAR + "model: {name: yolov3}": (
        "f:1:17: dataset.name: cifar10 has no labels for a trained task: it labels classification; "
        "yolov3 trains detection"
    ),
    EMBEDDED + "model: {name: mtl_lite, tasks: [classification, detection]}": (
        "f:2:49: model.tasks[1]: mtl_lite does not support detection; it supports classification"
    ),
    CIFAR + "model: {tasks: [classification, detection]}": (
        "f:2:33: model.tasks[1]: no dataset labels detection; labelled: classification"
    ),
    EMBEDDED + "model: {name: vgg16, sharing: {1: gate, 2: none}}": (
        "f:2:35: model.sharing.1: vgg16 is a single network and cannot share layers; sharing is for mtl_net"
    ),
    EMBEDDED + "model: {name: vgg16, fusion: {enabled: true}}": (
        "f:2:22: model.fusion: vgg16 is a single network and has no fusion layers; fusion is for mtl_net"
    ),
    EMBEDDED + "model: {sharing: {1: hard, 3: hard}}": (
        "f:2:31: model.sharing.3: hard sharing must start at stage 1, but stage 2 is not hard; "
        "set stage 2 to hard, or stage 3 to another kind"
    ),
    EMBEDDED + "model: {name: yolov3, pretrained: {classification: vgg.pth}}": (
        "f:2:52: model.pretrained.classification: yolov3 has no network for classification; it has detection"
    ),
    EMBEDDED + "model: {anchors: [[1, 2]]}": (
        "f:2:9: model.anchors: YOLOv3 needs nine anchors, three per scale, not 1"
    ),
    EMBEDDED + "training: {fit: crop}": (
        "f:2:17: training.fit: a centre crop would remove labels of detection and segmentation; "
        "use `crop` for classification only"
    ),
    EMBEDDED + "training: {precision: fp16}": (
        "f:2:23: training.precision: fp16 needs a GPU; on the CPU: bf16 or fp32"
    ),
    EMBEDDED + "training: {loss_weighting: {weights: {detection: 2}}}": (
        "f:2:29: training.loss_weighting.weights: weights only apply to `name: fixed`, not to equal; use `name: fixed`"
    ),
    CIFAR + "training: {loss_weighting: {name: fixed, weights: {detection: 2}}}": (
        "f:2:63: training.loss_weighting.weights.detection: detection is not trained in this job; "
        "trained: classification"
    ),
    EMBEDDED + "training: {multi_scale: [608, 320]}": (
        "f:2:12: training.multi_scale: 608 is more than 320; use [320, 608]"
    ),
    EMBEDDED + "training: {divergence: {max_rewinds: 5}}": (
        "f:2:38: training.divergence.max_rewinds: it has no effect with `on_divergence: fail`; "
        "use `on_divergence: rewind`"
    ),
    EMBEDDED + "checkpoint: {keep_best: {metric: detection/mpa}}": (
        "f:2:34: checkpoint.keep_best.metric: unknown metric 'detection/mpa'; did you mean detection/map?"
    ),
    CIFAR + "checkpoint: {keep_best: {metric: detection/map}}": (
        "f:2:34: checkpoint.keep_best.metric: unknown metric 'detection/map'; "
        "metrics of this job: classification/top1, classification/top5, classification/map, "
        "classification/recall_macro, classification/precision_macro, classification/loss"
    ),
    EMBEDDED + "training: {mixing: {schedule: round_robin}}": (
        "f:2:12: training.mixing: mixing needs several datasets; remove `mixing`, or list several datasets"
    ),
    EMBEDDED + "compute: {processes: 2}\ntraining: {norm: local, loss_weighting: {name: pcgrad}}": (
        "f:3:18: training.norm: with pcgrad, each of the 2 processes would keep its own batch statistics; "
        "use `norm: sync`"
    ),
    TWO + "training: {mixing: {ratio: sqrt, temperature: 3}}": (
        "f:2:47: training.mixing.temperature: a temperature only applies to `ratio: temperature`, not to sqrt; "
        "use `ratio: temperature`"
    ),
    EMBEDDED + "compute: {backend: ec2, instance_type: g5.xlarge}": (
        "f:1:1: storage: 'mtl-runs' is a folder, which is lost with the instance; use a bucket: s3://bucket/prefix"
    ),
    "compute: {backend: ec2, instance_type: g5.xlarge}\nstorage: s3://b/r\ndataset: {name: voc, uri: /data/voc}": (
        "f:3:27: dataset.uri: /data/voc is a local path, which the instance cannot read; "
        "copy it to S3 and give its s3:// URL"
    ),
}

WARNINGS = {
    EMBEDDED + "env: {WANDB_API_KEY: abc, MONKEY: b}": (
        "f:2:22: env.WANDB_API_KEY: WANDB_API_KEY looks like a secret, and would be stored in the run record in plain "
        "text; store it in Parameter Store, and write {ssm: /mtl-cloud/…}"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge}\nenv: {A: {ssm: /mtl-cloud/a}, B: {ssm: /other/b}}": (
        "f:4:31: env.B: the role of `mtl-cloud bootstrap` cannot read /other/b; "
        "rename it to /mtl-cloud/… (ssm) or mtl-cloud/… (secretsmanager), or grant the role access"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: p4d.24xlarge}": (
        "f:3:1: compute.gpu_count: p4d.24xlarge has 8 GPUs and the job uses 1: 7 are paid for but idle; "
        "use them all, or a smaller type"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, gpu_count: 0}": (
        "f:3:62: compute.gpu_count: g5.xlarge has 1 GPU and the job uses 0: 1 is paid for but idle; "
        "use them all, or a smaller type"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, region: us-esat-1}": (
        "f:3:59: compute.region: region 'us-esat-1' is not in the catalogue of 2026-11-23; did you mean us-east-1?"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge}\ntraining: {loader_workers: 8}": (
        "f:4:28: training.loader_workers: 8 loader workers in total, but g5.xlarge has 4 vCPUs"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g4dn.xlarge}\ntraining: {precision: bf16}": (
        "f:4:23: training.precision: the T4 of g4dn.xlarge has no bf16 hardware, so bf16 is slower than fp32; use fp16"
    ),
    TWO + "model: {sharing: {1: gate}}\ntraining: {mixing: {schedule: round_robin}}": (
        "f:3:1: training.norm: round_robin: shared layers see one dataset at a time, so their batch statistics "
        "alternate between datasets; use `norm: frozen` (with pretrained weights), or `schedule: mixed`"
    ),
    TWO + "training: {mixing: {schedule: round_robin}}": (
        "f:1:1: model.fusion: round_robin: no dataset labels all tasks, so the fusion layers are never trained; "
        "use `fusion: {enabled: false}`, or `schedule: mixed`"
    ),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.items(), ids=ERRORS.values())
def test_a_broken_constraint_is_an_error(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(("text", "message"), WARNINGS.items(), ids=WARNINGS.values())
def test_a_questionable_value_is_a_warning(text: str, message: str) -> None:
    assert [str(warning) for warning in load(text).warnings] == [message]


@pytest.mark.parametrize(
    "text",
    [
        EMBEDDED + "training: {precision: bf16}",
        EMBEDDED + "training: {on_divergence: rewind, divergence: {max_rewinds: 5}, ema: 0.999}",
        EMBEDDED + "checkpoint: {keep: 1, keep_rounds: true, keep_best: {metric: segmentation/loss}}",
        EMBEDDED + "compute: {gpu_count: 1}\ntraining: {precision: fp16}",
        EMBEDDED + "compute: {gpu_count: 4, processes: 4}",
        EMBEDDED + "model: {name: vgg16, fusion: {enabled: false}, sharing: {1: none}}",
        EMBEDDED + "model: {sharing: {1: hard, 2: hard, 4: cross_stitch}}",
        EMBEDDED + "model: {name: mtl_lite}\ntraining: {image_size: 64}",
        ON_EC2 + "compute: {backend: ec2, instance_type: c5.9xlarge, gpu_count: 0}",
        ON_SAGEMAKER + "instance_type: ml.g5.xlarge, instance_count: 2, subnets: [s-1], security_groups: [sg-1]}",
        CIFAR + "model: {name: mtl_net}",
        "dataset: [{name: cifar10, uri: c}, {name: voc, uri: v}]\nmodel: {tasks: [classification, detection]}",
    ],
)
def test_valid_combinations_are_accepted_without_warnings(text: str) -> None:
    assert load(text).warnings == ()


def test_every_type_of_a_list_is_checked() -> None:
    text = ON_EC2 + "compute: {backend: ec2, instance_type: [g5.xlarge, p4d.24xlarge, g5.12xlarge], gpu_count: 4}"
    with pytest.raises(SpecError, match=r"g5.xlarge has 1 GPU, but the job requests 4") as caught:
        load(text)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        (EMBEDDED, ("classification", "detection", "segmentation")),
        (CIFAR, ("classification",)),
        (EMBEDDED + "model: {name: yolov3}", ("detection",)),
        ("dataset: {name: voc, uri: v, tasks: [segmentation, detection]}", ("detection", "segmentation")),
        (EMBEDDED + "model: {tasks: [segmentation, classification]}", ("classification", "segmentation")),
    ],
)
def test_the_trained_tasks_are_common_to_network_data_and_job(text: str, tasks: tuple[str, ...]) -> None:
    assert trained_tasks(load(text).job) == tasks
