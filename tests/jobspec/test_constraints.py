"""What fields mean together: each rule on the smallest job that breaks it."""

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
        "f:3:65: compute.gpu_count: p4d.24xlarge has 8 GPUs, and the job asks for 9; write gpu_count: 8"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, gpu_count: 2}": (
        "f:3:62: compute.gpu_count: g5.xlarge has 1 GPU, and the job asks for 2; write gpu_count: 1"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: c5.9xlarge}": (
        "f:3:1: compute.gpu_count: c5.9xlarge has no GPU, and the job asks for 1; write gpu_count: 0"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarg}": (
        "f:3:40: compute.instance_type: unknown instance type 'g5.xlarg'; did you mean g5.xlarge?"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: z}": (
        "f:3:40: compute.instance_type: unknown instance type 'z'; the catalogue of 2026-11-23 does not hold it"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: [ml.g5.xlarge]}": (
        "f:3:41: compute.instance_type[0]: ml.g5.xlarge is SageMaker's name; on EC2 it is g5.xlarge"
    ),
    ON_SAGEMAKER + "instance_type: g5.xlarge}": (
        "f:3:90: compute.instance_type: g5.xlarge is EC2's name; on SageMaker it is ml.g5.xlarge"
    ),
    ON_SAGEMAKER + "instance_type: [ml.g5.xlarge, ml.g6.xlarge], purchase: spot}": (
        "f:3:75: compute.instance_type: managed spot takes one instance type, and here are 2; "
        "leave ml.g5.xlarge alone, or buy on demand"
    ),
    ON_SAGEMAKER + "instance_type: [ml.g5.xlarge, ml.g5.xlarge]}": (
        "f:3:75: compute.instance_type: a list of preferences holds up to 5 types, each once"
    ),
    ON_SAGEMAKER + "instance_type: ml.g5.xlarge, purchase: spot, keep_alive_minutes: 9}": (
        "f:3:140: compute.keep_alive_minutes: managed spot keeps no instance warm; leave it out, or buy on demand"
    ),
    ON_SAGEMAKER + "instance_type: ml.g5.xlarge, subnets: [subnet-1]}": (
        "f:3:1: compute.security_groups: a VPC is named by subnets and security groups together"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: [g5.xlarge, g6.xlarge], capacity_reservation: cr-1}": (
        "f:3:86: compute.capacity_reservation: a reservation holds one instance type; name that one alone"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, purchase: spot, capacity_reservation: cr-1}": (
        "f:3:89: compute.capacity_reservation: spot instances do not run in a reservation; write purchase: on_demand"
    ),
    EMBEDDED + "compute: {gpu_count: 2, processes: 4}": (
        "f:2:36: compute.processes: one process drives one GPU: 4 processes, 2 GPUs; leave `processes` out"
    ),
    EMBEDDED + "compute: {processes: 3}": (
        "f:1:1: training.batch_size: 16 images do not divide over 3 processes; nearest: 15 or 18"
    ),
    EMBEDDED + "compute: {processes: 32}": (
        "f:1:1: training.batch_size: 16 images do not divide over 32 processes; nearest: 32"
    ),
    "dataset: {name: voc}": "f:1:1: dataset.uri: voc needs the folder or archive that holds it",
    "dataset: {name: cifar10, uri: c, tasks: [classification, segmentation]}": (
        "f:1:58: dataset.tasks[1]: cifar10 has no labels for segmentation; it labels classification"
    ),
    CIFAR + "model: {name: yolov3}": (
        "f:1:17: dataset.name: cifar10 teaches nothing here: it labels classification; yolov3 is trained for detection"
    ),
    EMBEDDED + "model: {name: mtl_lite, tasks: [classification, detection]}": (
        "f:2:49: model.tasks[1]: mtl_lite cannot learn detection; it learns classification"
    ),
    CIFAR + "model: {tasks: [classification, detection]}": (
        "f:2:33: model.tasks[1]: no dataset labels detection; labelled: classification"
    ),
    EMBEDDED + "model: {name: vgg16, sharing: {1: gate, 2: none}}": (
        "f:2:35: model.sharing.1: vgg16 is a single network and has nothing to share with; sharing is for mtl_net"
    ),
    EMBEDDED + "model: {name: vgg16, fusion: {enabled: true}}": (
        "f:2:22: model.fusion: vgg16 is a single network and has nothing to fuse; fusion is for mtl_net"
    ),
    EMBEDDED + "model: {sharing: {1: hard, 3: hard}}": (
        "f:2:31: model.sharing.3: one trunk shares from the input on: stage 2 before it is not hard; "
        "share 2 hard too, or not 3"
    ),
    EMBEDDED + "model: {name: yolov3, pretrained: {classification: vgg.pth}}": (
        "f:2:52: model.pretrained.classification: yolov3 has no network for classification; it has detection"
    ),
    EMBEDDED + "model: {anchors: [[1, 2]]}": (
        "f:2:9: model.anchors: YOLOv3 has nine anchors, three a scale; here are 1"
    ),
    EMBEDDED + "training: {fit: crop}": (
        "f:2:17: training.fit: a centre crop would hide part of the truth for detection and segmentation; "
        "`crop` is for classifiers alone"
    ),
    EMBEDDED + "training: {precision: fp16}": (
        "f:2:23: training.precision: fp16 needs a GPU; on the CPU: bf16 or fp32"
    ),
    EMBEDDED + "training: {loss_weighting: {weights: {detection: 2}}}": (
        "f:2:29: training.loss_weighting.weights: weights belong to `name: fixed`, not to equal; write `name: fixed`"
    ),
    CIFAR + "training: {loss_weighting: {name: fixed, weights: {detection: 2}}}": (
        "f:2:63: training.loss_weighting.weights.detection: detection is not trained here; trained: classification"
    ),
    EMBEDDED + "training: {multi_scale: [608, 320]}": (
        "f:2:12: training.multi_scale: 608 is more than 320; write [320, 608]"
    ),
    EMBEDDED + "training: {divergence: {max_rewinds: 5}}": (
        "f:2:38: training.divergence.max_rewinds: nothing is rewound with `on_divergence: fail`; "
        "write `on_divergence: rewind`"
    ),
    EMBEDDED + "checkpoint: {keep_best: {metric: detection/mpa}}": (
        "f:2:34: checkpoint.keep_best.metric: 'detection/mpa' is not measured here; did you mean detection/map?"
    ),
    CIFAR + "checkpoint: {keep_best: {metric: detection/map}}": (
        "f:2:34: checkpoint.keep_best.metric: 'detection/map' is not measured here; "
        "measured: classification/top1, classification/top5, classification/map, classification/recall_macro, "
        "classification/precision_macro, classification/loss"
    ),
    EMBEDDED + "training: {mixing: {schedule: round_robin}}": (
        "f:2:12: training.mixing: there is one dataset, and nothing to mix it with; "
        "leave `mixing` out, or list several datasets"
    ),
    EMBEDDED + "compute: {processes: 2}\ntraining: {norm: local, loss_weighting: {name: pcgrad}}": (
        "f:3:18: training.norm: with pcgrad, each of the 2 processes would keep batch statistics of its own; "
        "write `norm: sync`"
    ),
    TWO + "training: {mixing: {ratio: sqrt, temperature: 3}}": (
        "f:2:47: training.mixing.temperature: a temperature belongs to `ratio: temperature`, not to sqrt; "
        "write `ratio: temperature`"
    ),
    EMBEDDED + "compute: {backend: ec2, instance_type: g5.xlarge}": (
        "f:1:1: storage: 'mtl-runs' is a folder, and the instance's folders vanish with it; "
        "name a bucket: s3://bucket/prefix"
    ),
    "compute: {backend: ec2, instance_type: g5.xlarge}\nstorage: s3://b/r\ndataset: {name: voc, uri: /data/voc}": (
        "f:3:27: dataset.uri: /data/voc lies on this machine, where the instance cannot read it; "
        "copy it to S3 and name its s3:// URL"
    ),
}

WARNINGS = {
    EMBEDDED + "env: {WANDB_API_KEY: abc, MONKEY: b}": (
        "f:2:22: env.WANDB_API_KEY: WANDB_API_KEY looks like a secret, and will stand in the run record in clear; "
        "write {ssm: /mtl-cloud/…}, and put it there"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge}\nenv: {A: {ssm: /mtl-cloud/a}, B: {ssm: /other/b}}": (
        "f:4:31: env.B: the role of `mtl-cloud bootstrap` cannot read /other/b; "
        "name it /mtl-cloud/… (ssm) or mtl-cloud/… (secretsmanager), or allow it to the role"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: p4d.24xlarge}": (
        "f:3:1: compute.gpu_count: p4d.24xlarge has 8 GPUs and the job uses 1: 7 are paid and idle; "
        "use them all, or a smaller type"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, gpu_count: 0}": (
        "f:3:62: compute.gpu_count: g5.xlarge has 1 GPU and the job uses 0: 1 is paid and idle; "
        "use them all, or a smaller type"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge, region: us-esat-1}": (
        "f:3:59: compute.region: region 'us-esat-1' is not in the catalogue of 2026-11-23; did you mean us-east-1?"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g5.xlarge}\ntraining: {loader_workers: 8}": (
        "f:4:28: training.loader_workers: 8 loader workers in all, on the 4 vCPUs of g5.xlarge"
    ),
    ON_EC2 + "compute: {backend: ec2, instance_type: g4dn.xlarge}\ntraining: {precision: bf16}": (
        "f:4:23: training.precision: g4dn.xlarge's T4 has no bf16 units: it is slower than fp32 there; use fp16"
    ),
    TWO + "model: {sharing: {1: gate}}\ntraining: {mixing: {schedule: round_robin}}": (
        "f:3:1: training.norm: round_robin: shared layers see one dataset at a time, and their batch statistics swing "
        "between them; write `norm: frozen` (with pretrained weights), or `schedule: mixed`"
    ),
    TWO + "training: {mixing: {schedule: round_robin}}": (
        "f:1:1: model.fusion: round_robin: no dataset labels all tasks, so the joint layers never learn; "
        "write `fusion: {enabled: false}`, or `schedule: mixed`"
    ),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.items(), ids=ERRORS.values())
def test_a_contradiction_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(("text", "message"), WARNINGS.items(), ids=WARNINGS.values())
def test_a_doubt_is_a_warning(text: str, message: str) -> None:
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
def test_what_goes_together_is_accepted_in_silence(text: str) -> None:
    assert load(text).warnings == ()


def test_every_type_of_a_list_is_held_against_the_job() -> None:
    text = ON_EC2 + "compute: {backend: ec2, instance_type: [g5.xlarge, p4d.24xlarge, g5.12xlarge], gpu_count: 4}"
    with pytest.raises(SpecError, match=r"g5.xlarge has 1 GPU, and the job asks for 4") as caught:
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
def test_the_tasks_trained_are_those_that_network_data_and_job_agree_on(text: str, tasks: tuple[str, ...]) -> None:
    assert trained_tasks(load(text).job) == tasks
