"""The job file as frozen pydantic models, from which validation, JSON schema and reference are derived.

Each field is checked here by itself; ``mtl_cloud.jobspec.constraints`` checks combinations of fields, also against the
catalogue (a p4d has eight GPUs). Paths are kept as written; ``load_job`` makes them absolute.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from mtl_cloud.catalog.datasets import DatasetName
from mtl_cloud.tasks import Task

__all__ = [
    "GRADIENT_METHODS",
    "PATTERNS",
    "BestSpec",
    "CheckpointSpec",
    "Compute",
    "ComputeSpec",
    "DatasetSpec",
    "DivergenceSpec",
    "DockerCompute",
    "Ec2Compute",
    "Fit",
    "JobSpec",
    "LocalCompute",
    "LossWeightingSpec",
    "MixingSpec",
    "ModelSpec",
    "OptimizerSpec",
    "SageMakerCompute",
    "ScheduleSpec",
    "SharingKind",
    "TrainingSpec",
]

Stage: TypeAlias = Annotated[int, Field(ge=1, le=5)]
SharingKind: TypeAlias = Literal["none", "hard", "cross_stitch", "gate"]
PositiveInt: TypeAlias = Annotated[int, Field(gt=0)]
PositiveFloat: TypeAlias = Annotated[float, Field(gt=0)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Fit: TypeAlias = Literal["letterbox", "crop"]
Side: TypeAlias = Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
LossMethod: TypeAlias = Literal["equal", "fixed", "uncertainty", "dwa", "rlw", "geometric", "famo"]
GradientMethod: TypeAlias = Literal["pcgrad", "cagrad", "mgda", "imtl_g", "nash", "aligned", "upgrad", "gradnorm"]
_JOB_NAME = r"^[a-z][a-z0-9-]{0,39}$"
_ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_RESERVATION_ID = r"^cr-[0-9a-f]+$"
_ROLE_ARN = r"^arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+$"
PATTERNS = {
    _JOB_NAME: "use lower-case letters, digits and dashes, at most 40, starting with a letter",
    _ENV_NAME: "use letters, digits and underscores, not starting with a digit",
    _RESERVATION_ID: "use an id such as cr-0123456789abcdef0",
    _ROLE_ARN: "use an ARN such as arn:aws:iam::123456789012:role/NAME",
}
"""Pattern of a field -> what its value must be, for messages."""
GRADIENT_METHODS: tuple[str, ...] = get_args(GradientMethod)
"""Loss weightings that need a separate gradient for each task: one backward pass per task."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


# --- compute: where it runs ------------------------------------------------------------------------------------------


class _Compute(_Spec):
    max_hours: PositiveFloat | None = Field(
        None, description="Wall-clock hours over all attempts; then the run saves and stops."
    )
    budget_usd: PositiveFloat | None = Field(
        None, description="Dollars over all attempts; then the run saves and stops."
    )
    max_restarts: Count = Field(3, description="Restarts after a machine's fault.")


InstanceTypes: TypeAlias = Annotated[
    Annotated[str, Tag("one")] | Annotated[tuple[str, ...], Tag("several"), Field(min_length=1)],
    Discriminator(_one_or_several),
]


class LocalCompute(_Compute):
    """This machine: a detached process, which survives the terminal."""

    backend: Literal["local"] = "local"
    gpu_count: Count = Field(0, description="GPUs to use; 0 trains on the CPU.")
    processes: PositiveInt | None = Field(
        None, description="Trainer processes; default: one per GPU, or one on the CPU."
    )


class DockerCompute(_Compute):
    """A container on this machine."""

    backend: Literal["docker"]
    gpu_count: Count = Field(0, description="GPUs to use; 0 trains on the CPU.")
    image: str | None = Field(
        None, description="Image reference; default: this version's image, built by `mtl-cloud image build`."
    )


class Ec2Compute(_Compute):
    """One EC2 instance, kept running by an Auto Scaling group of one."""

    backend: Literal["ec2"]
    instance_type: InstanceTypes = Field(..., description="One type, or several in order of preference.")
    gpu_count: Count = Field(1, description="GPUs of the instance to use; 0 trains on the CPU.")
    purchase: Literal["on_demand", "spot", "spot_then_on_demand"] = Field("on_demand", description="Purchase option.")
    on_demand_after: PositiveInt = Field(
        2, description="spot_then_on_demand: buy on demand after this many interruptions."
    )
    capacity_reservation: Annotated[str, Field(pattern=_RESERVATION_ID)] | None = Field(
        None, description="Id of a capacity reservation or capacity block to run in."
    )
    capacity_timeout_minutes: PositiveFloat | None = Field(
        60.0,
        description="Minutes to wait for the first instance before `submit` stops waiting; null: until the deadline.",
    )
    region: str = Field("us-east-1", description="AWS region.")
    disk_gib: Annotated[int, Field(ge=30, le=16384)] = Field(200, description="Root disk, GiB (encrypted gp3).")
    image: str | None = Field(None, description="Image reference; default: the one pushed by `mtl-cloud image push`.")
    max_hours: PositiveFloat = Field(
        24.0, description="Wall-clock hours over all attempts; then the run saves and stops."
    )

    @property
    def instance_types(self) -> tuple[str, ...]:
        """Accepted instance types, in order of preference."""
        return (self.instance_type,) if isinstance(self.instance_type, str) else self.instance_type


class SageMakerCompute(_Compute):
    """A SageMaker training job."""

    backend: Literal["sagemaker"]
    instance_type: InstanceTypes = Field(
        ..., description="One type (ml.…), or up to five in order of preference (on demand)."
    )
    instance_count: PositiveInt = Field(1, description="Number of instances; torchrun connects several.")
    gpu_count: Count = Field(1, description="GPUs of each instance to use; 0 trains on the CPU.")
    purchase: Literal["on_demand", "spot"] = Field(
        "on_demand", description="On-demand instances, or managed spot training."
    )
    region: str = Field("us-east-1", description="AWS region.")
    role: Annotated[str, Field(pattern=_ROLE_ARN)] | None = Field(
        None, description="ARN of the job's IAM role; default: the one that `mtl-cloud bootstrap` created."
    )
    disk_gib: Annotated[int, Field(ge=30, le=16384)] = Field(
        200, description="Training volume, GiB, for types without local disks."
    )
    image: str | None = Field(None, description="Image reference; default: the one pushed by `mtl-cloud image push`.")
    input_mode: Literal["s3", "fast_file", "file"] = Field(
        "s3", description="s3:// data: read from S3 by the trainer, streamed as files, or copied before the start."
    )
    subnets: Annotated[tuple[str, ...], Field(max_length=16)] = Field((), description="Subnets of your own VPC.")
    security_groups: Annotated[tuple[str, ...], Field(max_length=5)] = Field(
        (), description="Security groups in that VPC; several instances must reach each other."
    )
    kms_key: str | None = Field(None, description="KMS key (id or ARN) for the volume and SageMaker's own output.")
    keep_alive_minutes: Annotated[int, Field(ge=0, le=360)] = Field(
        0, description="Keep the instances warm for the next job, at full price."
    )
    max_hours: Annotated[float, Field(gt=0, le=672)] = Field(
        24.0, description="Wall-clock hours; SageMaker allows 28 days."
    )
    max_wait_hours: PositiveFloat = Field(
        24.0, description="spot: hours to wait for capacity, in addition to max_hours."
    )
    max_pending_hours: Annotated[float, Field(ge=0.5, le=672)] = Field(
        24.0, description="Give up after this many hours without capacity (GPU types)."
    )

    @property
    def instance_types(self) -> tuple[str, ...]:
        """Accepted instance types, in order of preference."""
        return (self.instance_type,) if isinstance(self.instance_type, str) else self.instance_type


def _backend(value: object) -> object:
    return value.get("backend", "local") if isinstance(value, dict) else getattr(value, "backend", None)


Compute: TypeAlias = LocalCompute | DockerCompute | Ec2Compute | SageMakerCompute
ComputeSpec: TypeAlias = Annotated[
    Annotated[LocalCompute, Tag("local")]
    | Annotated[DockerCompute, Tag("docker")]
    | Annotated[Ec2Compute, Tag("ec2")]
    | Annotated[SageMakerCompute, Tag("sagemaker")],
    Discriminator(_backend),
]


# --- dataset: what it learns from ------------------------------------------------------------------------------------


class SplitsSpec(_Spec):
    """Names of the dataset's splits."""

    train: str = Field("train", description="Split to train on.")
    val: str = Field("val", description="Split to evaluate on after each round.")


class DatasetSpec(_Spec):
    """One dataset. Several in a list are trained jointly; each labels some of the tasks."""

    name: DatasetName = Field(..., description="Name of the dataset.")
    uri: str | None = Field(
        None, description="Its folder or archive, or a dataset prepared by `mtl-cloud data prepare`."
    )
    splits: SplitsSpec = Field(SplitsSpec(), description="Names of the splits.")
    tasks: tuple[Task, ...] | None = Field(None, description="Labels to use; default: all labels of the dataset.")
    on_bad_sample: Literal["fail", "skip"] = Field(
        "fail", description="On a damaged or mislabelled sample: stop, or skip it."
    )
    max_train_samples: PositiveInt | None = Field(
        None, description="Use this many samples, spread over the train split."
    )
    max_val_samples: PositiveInt | None = Field(None, description="Use this many samples, spread over the val split.")


DatasetSpecs: TypeAlias = Annotated[
    Annotated[DatasetSpec, Tag("one")] | Annotated[tuple[DatasetSpec, ...], Tag("several"), Field(min_length=1)],
    Discriminator(_one_or_several),
]


# --- model: what is trained ------------------------------------------------------------------------------------------


class PretrainedSpec(_Spec):
    """Pretrained weights: a path or URL each."""

    classification: str | None = Field(None, description="torchvision VGG16 or AlexNet state_dict.")
    detection: str | None = Field(None, description="Darknet-53 or YOLOv3 darknet .weights.")
    segmentation: str | None = Field(None, description="torchvision FCN-ResNet50 or ResNet-50 state_dict.")


class FusionSpec(_Spec):
    """The final fully connected layers, which combine the outputs of the three sub-networks."""

    enabled: bool = Field(True, description="Add the joint layers' correction to the classifier's logits.")
    hidden: PositiveInt = Field(1024, description="Width of the hidden fully connected layer.")
    dropout: Share = Field(0.5, description="Dropout before the last layer.")
    detach: bool = Field(False, description="Stop the fusion's gradient at the sub-networks' outputs.")


class ModelSpec(_Spec):
    """The network."""

    name: Literal["mtl_net", "mtl_lite", "vgg16", "alexnet", "yolov3", "fcn_resnet50"] = Field(
        "mtl_net", description="Name of the network."
    )
    tasks: tuple[Task, ...] | None = Field(None, description="Tasks to train; default: all tasks of the network.")
    sharing: dict[Stage, SharingKind] = Field(
        {},
        description="Sharing after each encoder stage (1..5); unnamed stages share nothing.",
        json_schema_extra={"propertyNames": {"enum": ["1", "2", "3", "4", "5"]}},
    )
    fusion: FusionSpec = Field(FusionSpec(), description="Joint final layers (mtl_net).")
    width: Annotated[float, Field(gt=0, le=2)] = Field(
        1.0, description="Multiplies every channel count; 1 is the published network."
    )
    batch_norm: bool = Field(True, description="VGG with batch normalisation.")
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Weight of the newest batch in running statistics; default: that of each network (torchvision 0.1, "
        "darknet 0.01, which evaluates well only after hundreds of steps).",
    )
    box_loss: Literal["darknet", "giou", "ciou"] = Field("darknet", description="YOLOv3's box loss.")
    ignore_threshold: Share = Field(
        0.5, description="Predictions above this IoU get no `no object` loss (VOC 0.5, COCO 0.7)."
    )
    anchors: tuple[tuple[PositiveFloat, PositiveFloat], ...] | None = Field(
        None, description="Nine (width, height), pixels of the input (see `mtl-cloud anchors`); default darknet's."
    )
    pretrained: PretrainedSpec = Field(PretrainedSpec(), description="Pretrained weights.")


# --- training: how ---------------------------------------------------------------------------------------------------


class OptimizerSpec(_Spec):
    """The optimizer. Weight decay acts on weights only, not on biases and normalisation."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="Name of the optimizer.")
    lr: PositiveFloat = Field(0.01, description="Peak learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD momentum, or AdamW's first beta.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="Weight decay, on weights only.")
    clip_norm: PositiveFloat | None = Field(10.0, description="Clip the gradient's norm; null for none.")


class ScheduleSpec(_Spec):
    """Learning rate schedule over the steps of the whole job."""

    name: Literal["constant", "cosine", "poly", "step"] = Field("cosine", description="Shape after the warm-up.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Warm-up steps from 0 to the peak.")
    warmup_power: PositiveFloat = Field(1.0, description="(step / warmup_steps) ** power; darknet's is 4.")
    power: PositiveFloat = Field(0.9, description="poly: exponent.")
    milestones: tuple[Share, ...] = Field((), description="step: shares (0..1) of the job at which the rate drops.")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="step: factor of each drop.")


class LossWeightingSpec(_Spec):
    """Combination of the tasks' losses."""

    name: Literal[LossMethod, GradientMethod] = Field(
        "equal", description="Method; `pcgrad` and the methods after it need a backward pass for each task."
    )
    weights: dict[Task, Annotated[float, Field(ge=0)]] = Field({}, description="fixed: the weights; others start at 1.")
    temperature: PositiveFloat = Field(2.0, description="dwa: softmax temperature.")


class MixingSpec(_Spec):
    """Mixing of several datasets. An epoch has as many images as all datasets together, at any ratio."""

    schedule: Literal["mixed", "round_robin"] = Field(
        "mixed", description="Batches of all datasets, or of one dataset at a time, in turn."
    )
    ratio: Literal["uniform", "proportional", "sqrt", "temperature"] = Field(
        "proportional",
        description="Each dataset's share of an epoch: equal, or by its size, its root, or size ** (1 / temperature).",
    )
    temperature: PositiveFloat = Field(2.0, description="temperature: 1 is proportional, 2 sqrt, more nears uniform.")


class AugmentSpec(_Spec):
    """Augmentation of training images. Validation images are never changed."""

    flip: Share = Field(0.5, description="Probability of a horizontal flip (wrong for digits).")
    jitter: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="fit letterbox: random crop and aspect change, share of the image's size."
    )
    min_area: Annotated[float, Field(gt=0, le=1)] = Field(
        0.08, description="fit crop: least share of the image's area that a random crop keeps."
    )
    color: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="Brightness, contrast and saturation, on the device."
    )


class DivergenceSpec(_Spec):
    """Criteria for a diverged loss, and the effect of a rewind. A loss that is not a number is always diverged."""

    loss_ratio: Annotated[float, Field(gt=1)] = Field(
        10.0,
        description="A loss diverges when it exceeds its first value, and this multiple of its running median over "
        "100 steps, for `patience_steps` steps in a row.",
    )
    patience_steps: Annotated[int, Field(ge=1, le=50)] = Field(20, description="Steps in a row; see `loss_ratio`.")
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="rewind: factor by which it lowers the learning rate."
    )
    max_rewinds: PositiveInt = Field(3, description="rewind: most rewinds of a job; after them the run fails.")


class TrainingSpec(_Spec):
    """The recipe. The published experiment: batch 16, random sampling, 50 rounds of 20 epochs."""

    rounds: PositiveInt = Field(50, description="Rounds; metrics are computed after each.")
    epochs_per_round: PositiveInt = Field(20, description="Epochs of a round.")
    max_steps_per_epoch: PositiveInt | None = Field(None, description="Cut an epoch short.")
    batch_size: PositiveInt = Field(16, description="Images per step, over all processes.")
    sampling: Literal["random", "sequential"] = Field(
        "random", description="A new permutation every epoch, or the order on disk."
    )
    mixing: MixingSpec = Field(MixingSpec(), description="Mixing of several datasets.")
    loader_workers: Annotated[int, Field(ge=0, le=256)] = Field(
        4,
        description="Loader processes of each trainer process. With 0, a small classification set of equal images, "
        "such as CIFAR-10, stays in GPU memory.",
    )
    cache_gib: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Local disk for copies of remote shards, GiB; default: half of the free space."
    )
    image_size: Side = Field(416, description="Side of the square input, pixels.")
    fit: Fit = Field(
        "letterbox",
        description="How an image fits the square input: whole, padded with grey (darknet); or cropped to fill it "
        "(torchvision's classifiers: a random crop in training, the centre in validation).",
    )
    multi_scale: tuple[Side, Side] | None = Field(
        None,
        description="Smallest and largest input side, pixels: the size changes every 10 steps; the last epoch uses "
        "image_size.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Precision of the forward pass.")
    optimizer: OptimizerSpec = Field(OptimizerSpec(), description="The optimizer.")
    schedule: ScheduleSpec = Field(ScheduleSpec(), description="The learning rate schedule.")
    loss_weighting: LossWeightingSpec = Field(
        LossWeightingSpec(), description="How the losses of the tasks are combined."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of a moving average of the weights (0.9999 for long jobs), which is validated and exported; "
        "null: none.",
    )
    on_divergence: Literal["fail", "rewind"] = Field(
        "fail",
        description="On a diverged loss: end the run, or return to the end of the last round at a lower learning rate.",
    )
    divergence: DivergenceSpec = Field(DivergenceSpec(), description="Criteria for a diverged loss.")
    augment: AugmentSpec = Field(AugmentSpec(), description="Augmentation of training images.")
    norm: Literal["auto", "local", "sync", "frozen"] = Field(
        "auto",
        description="Batch statistics of each process, of all processes, or stored ones (frozen); auto: of all.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of everything random.")
    deterministic: bool = Field(False, description="Use deterministic kernels only (slower on GPUs).")
    eval_batch_size: PositiveInt | None = Field(
        None, description="Validation batch size; default: twice the training batch."
    )


class BestSpec(_Spec):
    """The metric of the validation split that selects the best round's checkpoint."""

    metric: str | None = Field(
        None,
        description="Named as in TensorBoard: detection/map50_voc or segmentation/loss; "
        "default: the mean of the tasks' headline metrics (top1, map50_voc, miou).",
    )
    mode: Literal["max", "min"] | None = Field(
        None, description="Whether more or less is better. Default: min for a loss, else max."
    )


class CheckpointSpec(_Spec):
    """When checkpoints are saved, and which are kept. One is always saved after each round and on a stop."""

    every_minutes: PositiveFloat | None = Field(
        15.0, description="Also save within a round, at this interval; null: never."
    )
    keep: PositiveInt = Field(3, description="Newest checkpoints to keep.")
    keep_rounds: bool = Field(False, description="Also keep the checkpoint of each round's end.")
    keep_best: BestSpec | None = Field(
        None, description="Also keep the best round's checkpoint; {} uses the headline metrics."
    )


# --- env: what the trainer finds in its environment ------------------------------------------------------------------


class EnvReference(_Spec):
    """A secret by its name at AWS. Its value is read on the trainer's machine, and never stored."""

    ssm: str | None = Field(None, description="Parameter of SSM Parameter Store, e.g. /mtl-cloud/wandb.")
    secretsmanager: str | None = Field(None, description="Secret of Secrets Manager, e.g. mtl-cloud/wandb.")
    key: str | None = Field(None, description="secretsmanager: the field of a secret that is a JSON object.")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if bool(self.ssm) == bool(self.secretsmanager):
            raise ValueError("give either `ssm` or `secretsmanager`")
        if self.ssm and self.key is not None:
            raise ValueError("`key` only applies to `secretsmanager`")
        return self


EnvName: TypeAlias = Annotated[str, Field(pattern=_ENV_NAME)]
EnvValue: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[EnvReference, Tag("reference")],
    Discriminator(lambda value: "reference" if isinstance(value, dict | EnvReference) else "text"),
]


# --- the job ---------------------------------------------------------------------------------------------------------


class JobSpec(_Spec):
    """One training job. Every field except `dataset` has a default; `extends` names presets with other defaults."""

    name: Annotated[str, Field(pattern=_JOB_NAME)] = Field(
        "job", description="Lower-case letters, digits and dashes; starts the run id."
    )
    compute: ComputeSpec = Field(LocalCompute(), description="Where it runs.")
    dataset: DatasetSpecs = Field(..., description="One dataset, or several for joint training.")
    model: ModelSpec = Field(ModelSpec(), description="The network to train.")
    training: TrainingSpec = Field(TrainingSpec(), description="The recipe.")
    checkpoint: CheckpointSpec = Field(CheckpointSpec(), description="When checkpoints are saved, and which are kept.")
    env: dict[EnvName, EnvValue] = Field(
        {},
        description="Environment variables of the trainer: a text, or a secret by reference, {ssm: NAME} or "
        "{secretsmanager: NAME}.",
    )
    storage: str = Field("mtl-runs", description="Folder or fsspec URL (s3://bucket/prefix) of run records.")
    tags: dict[str, str] = Field({}, description="Your own labels; on AWS they become resource tags.")

    @property
    def datasets(self) -> tuple[DatasetSpec, ...]:
        """The datasets, always as a tuple."""
        return (self.dataset,) if isinstance(self.dataset, DatasetSpec) else self.dataset

    @property
    def processes(self) -> int:
        """Trainer processes in total: `compute.processes`, or one per GPU, or one per instance without GPUs."""
        requested = self.compute.processes if isinstance(self.compute, LocalCompute) else None
        return requested or (self.compute.gpu_count or 1) * self.instances

    @property
    def instances(self) -> int:
        """Number of machines that train together."""
        return self.compute.instance_count if isinstance(self.compute, SageMakerCompute) else 1
