"""One run as far as a comparison looks at it, and what runs must have in common to be compared."""

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

__all__ = ["At", "Entry", "differences", "read_entry", "unlike_budget"]

At: TypeAlias = Literal["last", "best"]
"""Which round speaks for a run: its last, or the one with the best mean of the tasks' headline metrics."""

_BUDGET = ("dataset", "image size", "length", "batch size")
_ALL_MUST_SHARE = ("dataset", "image size", "length")


@dataclass(frozen=True)
class Entry:
    """A run as far as a comparison looks at it."""

    run_id: str
    job: JobSpec
    rounds: tuple[RoundRecord, ...]
    devices: tuple[str, ...] = ()
    """What its attempts ran on, each once."""
    outcome: str | None = None
    """None while the run goes on."""
    usd: float | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Those that the network learns and the data labels."""
        return trained_tasks(self.job)

    @property
    def is_joint(self) -> bool:
        """Whether the network has outputs for several tasks, labelled or not."""
        return len(self.job.model.tasks or NETWORK_TASKS[self.job.model.name]) > 1

    @property
    def budget(self) -> dict[str, str | int]:
        """What a run was given to learn from: equal budgets make metrics comparable."""
        training = self.job.training
        dataset = " + ".join(map(_dataset_words, self.job.datasets))
        values = (dataset, training.image_size, self._length, training.batch_size)
        return dict(zip(_BUDGET, values, strict=True))

    @property
    def _length(self) -> str:
        """Epochs: how often each labelled sample was seen. A segmenter alone, whose epochs hold only the images that
        have masks, sees those as often as a joint network does. Where epochs are cut short, the images seen.
        """
        cut = self.job.training.max_steps_per_epoch is not None
        return f"{self.images} images" if cut else f"{self.rounds[-1].epoch} epochs"

    @property
    def images(self) -> int:
        """Seen in training, each as often as it was."""
        return sum(record.images for record in self.rounds)

    @property
    def training_s(self) -> float:
        return sum(record.seconds for record in self.rounds)

    @property
    def images_per_s(self) -> float | None:
        return self.images / self.training_s if self.training_s else None

    @property
    def data_wait(self) -> float | None:
        """Share (0..1) of the training time that the loop waited for data."""
        waited_s = sum(record.data_wait * record.seconds for record in self.rounds)
        return waited_s / self.training_s if self.training_s else None

    def chosen(self, at: At) -> RoundRecord:
        """The round that speaks for the run: one for all tasks, because one network has to serve them all."""
        if at == "last":
            return self.rounds[-1]
        return max(self.rounds, key=lambda record: (self._mean_headline(record), -record.round))

    def _mean_headline(self, record: RoundRecord) -> float:
        mean = mean_headline(record.metrics, self.tasks)
        return float("-inf") if mean is None else mean


def read_entry(run: RunRecord) -> Entry:
    """Read what a comparison needs.

    Raises
    ------
    StorageError
        The run's record cannot be read.
    SpecError
        Its job is one that only another mtl-cloud knows.
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


def _dataset_words(spec: DatasetSpec) -> str:
    """Name, splits and limits; not where it lies, which may differ from machine to machine."""
    limits = [f"{n}" if n else "all" for n in (spec.max_train_samples, spec.max_val_samples)]
    limited = f" ({' / '.join(limits)} images)" if spec.max_train_samples or spec.max_val_samples else ""
    return f"{spec.name} {spec.splits.train}/{spec.splits.val}{limited}"


def differences(entries: Sequence[Entry]) -> dict[str, dict[str, list[str]]]:
    """field -> value -> ids of the runs that have it, for every field that all runs must share and do not.

    Beside the data, the image size and the length these are, for each task that several runs learn, its classes and
    the number of samples that it was validated on.
    """
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        for field, value in _shared_facts(entry):
            values[field][value].append(entry.run_id)
    return {field: dict(found) for field, found in values.items() if len(found) > 1}


def unlike_budget(one: Entry, other: Entry) -> tuple[str, ...]:
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
