"""Builds a trainer from a job: the only place where names in a job become objects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mtl_cloud.datasets import JointDataset, open_splits, restrict
from mtl_cloud.datasets.base import Dataset
from mtl_cloud.datasets.shards.locality import Shards, concat_shards, shards_of
from mtl_cloud.errors import DatasetError, TrainingError
from mtl_cloud.jobspec.job import GRADIENT_METHODS, JobSpec, TrainingSpec
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.scratch import Scratch
from mtl_cloud.storage import Storage, open_storage
from mtl_cloud.tasks import NETWORK_TASKS, TASKS, Task
from mtl_cloud.train.checkpoint import rng_state as rng
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer
from mtl_cloud.train.control import ControlChannel
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.device_cache import DeviceCache
from mtl_cloud.train.data.loader import BatchDataset, Collate, ValidationView, training_batches, validation_batches
from mtl_cloud.train.data.sampler import BatchSampler
from mtl_cloud.train.distributed import ProcessGroup, set_norm
from mtl_cloud.train.nets import build_network
from mtl_cloud.train.optim.backward import Backward, SummedBackward, TaskwiseBackward
from mtl_cloud.train.optim.ema import MovingAverage
from mtl_cloud.train.optim.gradient_weighting import build_gradient_weighting
from mtl_cloud.train.optim.loss_weighting import TaskWeighting, build_loss_weighting
from mtl_cloud.train.optim.optimizer import build_optimizer
from mtl_cloud.train.tasks import build_heads
from mtl_cloud.train.tensorboard import EventLog
from mtl_cloud.train.train_step import Replica
from mtl_cloud.train.trainer import Trainer

__all__ = ["JobData", "build_trainer", "network_classes", "open_data", "wants_cuda"]

SAMPLE_IMAGES = 8
"""Validation images that are rendered after each round."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class JobData:
    """The splits of a job, restricted to the labels that its network learns."""

    train: Dataset
    val: Dataset
    classes: Mapping[Task, tuple[str, ...]]
    """Class names of every task that the network has an output for, labelled or not."""


def wants_cuda(job: JobSpec) -> bool:
    """Whether the job trains on GPUs. Raises ``TrainingError`` if it does and torch sees no GPU."""
    if job.compute.gpu_count == 0:
        return False
    if not torch.cuda.is_available():
        raise TrainingError(
            f"compute.gpu_count is {job.compute.gpu_count}, and torch {torch.__version__} sees no GPU here",
            hint="check `nvidia-smi`; set compute.gpu_count: 0 to train on the CPU",
        )
    return True


def open_data(job: JobSpec, *, connect: Callable[[str], Storage] = open_storage) -> JobData:
    """Open the splits with only the labels that the network learns; ``connect`` is as in ``open_splits``.

    Raises
    ------
    DatasetError
        As ``open_splits`` and ``network_classes``.
    """
    wanted = job.model.tasks or NETWORK_TASKS[job.model.name]
    train, val = (restrict(split, wanted) for split in open_splits(*job.datasets, connect=connect))
    return JobData(train, val, network_classes(wanted, train.info.classes))


def build_trainer(
    job: JobSpec, data: JobData, run: RunRecord, *, attempt: int, group: ProcessGroup, scratch: Scratch
) -> Trainer:
    """Build the network and all parts of a trainer, without starting anything."""
    _set_determinism(job.training)
    rng.seed_all(job.training.seed)
    network = set_norm(build_network(job.model, data.classes), job.training.norm, group)
    memory_format = torch.channels_last if group.device.type == "cuda" else torch.contiguous_format
    network = network.to(group.device, memory_format=memory_format)  # type: ignore[call-overload]  # stubs lack it
    heads = build_heads(job.model, data.classes, multi_label=data.train.info.multi_label)
    scaler = torch.amp.GradScaler(group.device.type, enabled=job.training.precision == "fp16")
    weighting, backward = _build_weighting(job.training, tuple(heads), network, scaler, group)
    rng.seed_all(job.training.seed, rank=group.rank)
    sources = data.train.datasets if isinstance(data.train, JointDataset) else (data.train,)
    shards = [shards_of(source) for source in sources]
    sampler = _sampler(job.training, shards, group)
    step_tasks = _step_tasks(sampler, sources, tuple(heads))
    collate = Collate(data.classes, data.train.info.multi_label)
    plan = run.plan()
    return Trainer(
        job=job,
        run=run,
        attempt=attempt,
        group=group,
        channel=ControlChannel(scratch, leads=group.leads),
        checkpointer=Checkpointer(run, attempt, keep=job.checkpoint.keep, datasets=[source.info for source in sources]),
        events=EventLog(run, attempt, scratch.folder / "events"),
        replica=Replica(
            training=job.training,
            group=group,
            network=network,
            model=network if isinstance(backward, TaskwiseBackward) else _data_parallel(network, group, step_tasks),
            heads=heads,
            weighting=weighting,
            backward=backward,
            optimizer=build_optimizer(network, weighting.parameters(), job.training.optimizer),
            scaler=scaler,
            autocast=_autocast(job.training, group.device),
            ema=None if job.training.ema is None else MovingAverage(network, job.training.ema),
        ),
        training_batches=_training_batches(data, job.training, collate, sampler, shards=shards, group=group),
        step_tasks=step_tasks,
        validation_batches=_validation_batches(data, job.training, collate, group),
        sample_batch=partial(_sample_batch, data.val, job.training, collate),
        classes=data.classes,
        steps_per_epoch=sampler.steps_per_epoch,
        usd_per_hour=plan.usd_per_hour,
    )


def _set_determinism(training: TrainingSpec) -> None:
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(training.deterministic)
    torch.backends.cudnn.benchmark = not training.deterministic


def network_classes(wanted: tuple[Task, ...], labelled: Mapping[Task, tuple[str, ...]]) -> dict[Task, tuple[str, ...]]:
    """Class names of every task in ``wanted``; a task without labels takes those of a labelled task.

    An unlabelled sub-network is trained only through the fusion layers (MTL-Net on ImageNet or CIFAR-10), so its
    outputs do not stand for these classes.

    Raises
    ------
    DatasetError
        No task in ``wanted`` is labelled.
    """
    known = [task for task in TASKS if task in labelled and task in wanted]
    if not known:
        raise DatasetError(
            f"the network learns {', '.join(wanted)}, and the data labels {', '.join(labelled) or 'nothing'}",
            hint="choose another model.name or dataset",
        )
    names = labelled[known[0]]
    objects = names[1:] if known[0] == "segmentation" else names
    borrowed: dict[Task, tuple[str, ...]] = {
        "classification": objects,
        "detection": objects,
        "segmentation": ("background", *objects),
    }
    return {task: labelled.get(task, borrowed[task]) for task in TASKS if task in wanted}


def _build_weighting(
    training: TrainingSpec,
    tasks: tuple[Task, ...],
    network: nn.Module,
    scaler: torch.amp.GradScaler,
    group: ProcessGroup,
) -> tuple[TaskWeighting, Backward]:
    spec, seed = training.loss_weighting, training.seed
    if spec.name in GRADIENT_METHODS:
        gradient_weighting = build_gradient_weighting(spec, tasks, seed=seed).to(group.device)
        return gradient_weighting, TaskwiseBackward(gradient_weighting, list(network.parameters()), scaler, group)
    loss_weighting = build_loss_weighting(spec, tasks, seed=seed).to(group.device)
    return loss_weighting, SummedBackward(loss_weighting, scaler, group)


def _sampler(training: TrainingSpec, shards: Sequence[Shards], group: ProcessGroup) -> BatchSampler:
    return BatchSampler(
        sizes=tuple(len(each.numbers) for each in shards),
        shards=tuple(each.numbers if each.files else None for each in shards),
        batch_size=training.batch_size,
        epochs=training.rounds * training.epochs_per_round,
        seed=training.seed,
        sampling=training.sampling,
        mixing=training.mixing,
        max_steps_per_epoch=training.max_steps_per_epoch,
        rank=group.rank,
        world=group.world,
    )


@dataclass(frozen=True)
class _StepTasks:
    """Maps a step to the tasks that its dataset labels; None for all tasks, and for batches that mix datasets.

    The result depends only on the step, not on the labels of a process's share, so that all processes run the same
    sub-networks.
    """

    sampler: BatchSampler
    by_source: tuple[tuple[Task, ...] | None, ...]

    @property
    def are_partial(self) -> bool:
        """Whether some step runs only some of the sub-networks."""
        return self.sampler.source(0) is not None and any(some is not None for some in self.by_source)

    def __call__(self, step: int) -> tuple[Task, ...] | None:
        source = self.sampler.source(step)
        return None if source is None else self.by_source[source]


def _step_tasks(sampler: BatchSampler, sources: Sequence[Dataset], tasks: tuple[Task, ...]) -> _StepTasks:
    labelled = [tuple(task for task in tasks if task in source.info.tasks) for source in sources]
    return _StepTasks(sampler, tuple(None if some == tasks else some for some in labelled))


def _training_batches(
    data: JobData,
    training: TrainingSpec,
    collate: Collate,
    sampler: BatchSampler,
    *,
    shards: Sequence[Shards],
    group: ProcessGroup,
) -> Callable[[int], Iterator[Batch]]:
    pin = group.device.type == "cuda"
    ahead = concat_shards(shards) if group.local_rank == 0 else None
    device_cache = _device_cache(data.train, training, group)

    def batches(start: int) -> Iterator[Batch]:
        return training_batches(
            data.train, training, collate, sampler, start=start, pin=pin, shards=ahead, device_cache=device_cache()
        )

    return batches


def _validation_batches(
    data: JobData, training: TrainingSpec, collate: Collate, group: ProcessGroup
) -> Callable[[], Iterator[Batch]]:
    pin = group.device.type == "cuda"
    ahead = shards_of(data.val) if group.local_rank == 0 else None
    device_cache = _device_cache(data.val, training, group)

    def batches() -> Iterator[Batch]:
        return validation_batches(
            data.val,
            training,
            collate,
            rank=group.rank,
            world=group.world,
            pin=pin,
            shards=ahead,
            device_cache=device_cache(),
        )

    return batches


def _device_cache(dataset: Dataset, training: TrainingSpec, group: ProcessGroup) -> Callable[[], DeviceCache | None]:
    """A function that fills the cache on its first call; it returns None without a GPU, or with loader workers."""
    wanted = group.device.type == "cuda" and training.loader_workers == 0
    return cache(lambda: DeviceCache.of(dataset, group.device) if wanted else None)


def _sample_batch(val: Dataset, training: TrainingSpec, collate: Collate) -> Batch:
    """Images spread evenly over the split, so that all of its classes and sources may appear."""
    count = min(SAMPLE_IMAGES, len(val))
    view = ValidationView(val, training.image_size, training.fit)
    return BatchDataset(view, collate).load([i * len(val) // count for i in range(count)]).to(torch.device("cpu"))


def _autocast(training: TrainingSpec, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if training.precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=_DTYPES[training.precision])


def _data_parallel(network: nn.Module, group: ProcessGroup, step_tasks: _StepTasks) -> nn.Module:
    """Wrap the network for data-parallel training. With local batch statistics, all processes use those of rank 0.

    If a step runs only some sub-networks, the wrapper must search for the parameters that get no gradient.
    """
    if group.world == 1:
        return network
    ids = [group.device.index] if group.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, find_unused_parameters=step_tasks.are_partial)
