"""The job of a dry run: the same network, recipe and labels, on few images, for two rounds of four steps."""

from __future__ import annotations

from mtl_cloud.jobspec.job import DatasetSpec, DockerCompute, JobSpec, TrainingSpec

__all__ = ["slice_job"]

STEPS = 4
_ROUNDS = 2
_CPU_BATCH = 4
_CPU_SIDE = 96
"""Without a GPU, a step at full size takes minutes, so its memory is computed instead of measured."""
_VALIDATED = 16


def slice_job(job: JobSpec, *, image: str | None, storage: str, gpus: int = 0, data: str | None = None) -> JobSpec:
    """``job`` as a container on this machine with ``gpus`` GPUs. Pure.

    ``data`` replaces the job's data: ``embedded``, or the folder with a copy of its only dataset.
    """
    training = _training(job.training, gpus)
    compute = DockerCompute(backend="docker", gpu_count=gpus, image=image, max_restarts=0)
    sliced = tuple(_dataset(dataset, images=training.batch_size * STEPS) for dataset in _datasets(job, data))
    update = {"compute": compute, "dataset": sliced, "training": training, "storage": storage}
    return job.model_copy(update={**update, "checkpoint": job.checkpoint.model_copy(update={"every_minutes": None})})


def _training(training: TrainingSpec, gpus: int) -> TrainingSpec:
    update: dict[str, object] = {
        "rounds": _ROUNDS,
        "epochs_per_round": 1,
        "max_steps_per_epoch": STEPS,
        "deterministic": True,  # the interrupted run is compared with one that was not, bit for bit
        "loader_workers": min(training.loader_workers, 2),
    }
    if gpus == 0:
        update |= {
            "batch_size": min(training.batch_size, _CPU_BATCH),
            "image_size": min(training.image_size, _CPU_SIDE),
            "multi_scale": None,
            "precision": "fp32",
        }
    return training.model_copy(update=update)


def _datasets(job: JobSpec, data: str | None) -> tuple[DatasetSpec, ...]:
    if data == "embedded":
        return (DatasetSpec(name="embedded"),)
    return job.datasets if data is None else (job.datasets[0].model_copy(update={"uri": data}),)


def _dataset(dataset: DatasetSpec, *, images: int) -> DatasetSpec:
    limits = dataset.max_train_samples, dataset.max_val_samples
    train, val = (min(most, one or most) for one, most in zip(limits, (images, _VALIDATED), strict=True))
    return dataset.model_copy(update={"max_train_samples": train, "max_val_samples": val})
