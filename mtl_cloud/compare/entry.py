"""The data of one run that a comparison uses, and the fields that comparable runs must share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mtl_cloud.jobspec.constraints import trained_tasks
from mtl_cloud.jobspec.job import DatasetSpec, JobSpec
from mtl_cloud.jobspec.load import job_from_json
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import RoundRecord
from mtl_cloud.tasks import NETWORK_TASKS, Task, mean_headline

__all__ = ["Entry", "RoundChoice", "budget_differences", "differences", "read_entry"]

RoundChoice: TypeAlias = Literal["last", "best"]
"""The round whose metrics represent a run: its last, or the one with the best mean of the tasks' headline metrics."""

_BUDGET = ("dataset", "image size", "length", "batch size")
_ALL_MUST_SHARE = ("dataset", "image size", "length")


@dataclass(frozen=True)
class Entry:
    """The data of one run that a comparison uses."""

    run_id: str
    job: JobSpec
    rounds: tuple[RoundRecord, ...]
    devices: tuple[str, ...] = ()
    """Devices of its attempts, without duplicates."""
    outcome: str | None = None
    """None while the run is not finished."""
    usd: float | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the network learns and the data labels."""
        return trained_tasks(self.job)

    @property
    def is_joint(self) -> bool:
        """Whether the network has outputs for several tasks, labelled or not."""
        return len(self.job.model.tasks or NETWORK_TASKS[self.job.model.name]) > 1

    @property
    def budget(self) -> dict[str, str | int]:
        """Data, image size, length and batch size. Metrics of runs with equal budgets are comparable."""
        training = self.job.training
        dataset = " + ".join(map(_dataset_text, self.job.datasets))
        values = (dataset, training.image_size, self._length, training.batch_size)
        return dict(zip(_BUDGET, values, strict=True))

    @property
    def _length(self) -> str:
        """Epochs, or images seen if epochs are cut short.

        Epochs count how often each labelled sample was seen: a single segmenter, whose epochs have only the images with
        masks, sees these as often as a joint network does.
        """
        cut = self.job.training.max_steps_per_epoch is not None
        return f"{self.images} images" if cut else f"{self.rounds[-1].epoch} epochs"

    @property
    def images(self) -> int:
        """Number of images seen in training, with repetitions."""
        return sum(record.images for record in self.rounds)

    @property
    def training_s(self) -> float:
        return sum(record.seconds for record in self.rounds)

    @property
    def images_per_s(self) -> float | None:
        return self.images / self.training_s if self.training_s else None

    @property
    def data_wait(self) -> float | None:
        """Fraction (0..1) of the training time that the loop waited for data."""
        waited_s = sum(record.data_wait * record.seconds for record in self.rounds)
        return waited_s / self.training_s if self.training_s else None

    def selected_round(self, at: RoundChoice) -> RoundRecord:
        """The round whose metrics represent the run: one for all tasks, because all tasks use the same network."""
        if at == "last":
            return self.rounds[-1]
        return max(self.rounds, key=lambda record: (self._mean_headline(record), -record.round))

    def _mean_headline(self, record: RoundRecord) -> float:
        mean = mean_headline(record.metrics, self.tasks)
        return float("-inf") if mean is None else mean


def read_entry(run: RunRecord) -> Entry:
    """Read the data of a run that a comparison uses.

    Raises
    ------
    StorageError
        The run record cannot be read.
    SpecError
        The job is not valid in this version of mtl-cloud.
    """
    rounds, result = tuple(run.rounds()), run.result()
    paid = [record.usd for record in rounds if record.usd is not None]
    return Entry(
        run_id=run.run_id,
        job=job_from_json(run.spec_json(), source=run.paths.spec_json),
        rounds=rounds,
        devices=tuple(dict.fromkeys(attempt.device for attempt in run.attempts() if attempt.device)),
        outcome=result.outcome if result else None,
        usd=result.usd if result and result.usd is not None else sum(paid) if paid else None,
    )


def _dataset_text(spec: DatasetSpec) -> str:
    """Name, splits and limits, without the location, which may differ between machines."""
    limits = [f"{n}" if n else "all" for n in (spec.max_train_samples, spec.max_val_samples)]
    limited = f" ({' / '.join(limits)} images)" if spec.max_train_samples or spec.max_val_samples else ""
    return f"{spec.name} {spec.splits.train}/{spec.splits.val}{limited}"


def differences(entries: Sequence[Entry]) -> dict[str, dict[str, list[str]]]:
    """Map field -> value -> ids of the runs that have it, for every field that comparable runs must share and do not.

    These fields are the data, the image size, the length and, for each task that several runs learn, its classes and
    its number of validation samples.
    """
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        for field, value in _shared_facts(entry):
            values[field][value].append(entry.run_id)
    return {field: dict(found) for field, found in values.items() if len(found) > 1}


def budget_differences(one: Entry, other: Entry) -> tuple[str, ...]:
    """The fields of the budget in which two runs differ."""
    return tuple(field for field in _BUDGET if one.budget[field] != other.budget[field])


def _shared_facts(entry: Entry) -> Iterator[tuple[str, str]]:
    for field in _ALL_MUST_SHARE:
        yield field, str(entry.budget[field])
    last = entry.rounds[-1]
    for task in entry.tasks:
        if names := last.classes.get(task):
            yield f"{task} classes", f"{len(names)} ({', '.join(names)})"
        if (n := last.metrics.get(task, {}).get("n")) is not None:
            yield f"{task} validation samples", f"{n:g}"
