"""The typed files of a run's record, which orchestrator and container exchange.

Every file is one JSON object with a ``schema_version``. A reader keeps fields it does not know (``extra``: a newer
writer of the same version may add some) and refuses a version it does not know. Only the standard library is used,
because the supervisor, process 1 of the container, reads and writes these too.

Times are ISO 8601 in UTC. Names contain units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache, cached_property
from typing import Any, ClassVar, Self, get_type_hints

from mtl_cloud.errors import RecordError
from mtl_cloud.json_types import Json
from mtl_cloud.runs.dataclass_json import FieldPath, from_json, is_required, json_classes, json_object
from mtl_cloud.runs.plan_facts import PlanFacts

__all__ = [
    "AttemptRecord",
    "BestRound",
    "BootRecord",
    "CancelRecord",
    "CheckpointManifest",
    "ExitRecord",
    "Heartbeat",
    "Outcome",
    "PlanRecord",
    "Record",
    "ResultRecord",
    "RoundRecord",
    "RoundSamples",
    "StartRecord",
    "SupervisedJob",
]


class Outcome(StrEnum):
    """The end of an attempt or a run. Only ``MACHINE_ERROR`` and ``INTERRUPTED`` are worth another attempt."""

    DONE = "done"
    USER_ERROR = "user_error"
    MACHINE_ERROR = "machine_error"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    OUT_OF_TIME = "out_of_time"
    OUT_OF_BUDGET = "out_of_budget"

    @property
    def may_retry(self) -> bool:
        return self in {Outcome.MACHINE_ERROR, Outcome.INTERRUPTED}


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of all record files. Fields hold JSON values only, so that encoding is plain and total."""

    schema_version: ClassVar[int] = 1
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Fields of the file that this version does not know."""

    def encode(self) -> bytes:
        """UTF-8 JSON, keys in declaration order, ending in a newline."""
        text = json.dumps(self._document(), indent=1, ensure_ascii=False, allow_nan=False)
        # Only a lone surrogate (of a file name that is not UTF-8) needs replacing, and becomes its JSON escape.
        return (text + "\n").encode(errors="backslashreplace")

    def _document(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {"schema_version": self.schema_version, **own, **self.extra}

    @classmethod
    def decode(cls, data: bytes, *, source: str) -> Self:
        """Parse a file's bytes.

        Raises
        ------
        RecordError
            Not JSON, not an object, an unknown schema version, or a field that is absent or of another JSON kind than
            declared (inner values are not checked). ``source`` and the field are named.
        """
        document, at = json_object(data, source), FieldPath(source, cls.__name__)
        version = document.pop("schema_version", None)
        if type(version) is not int or version != cls.schema_version:
            raise RecordError(
                f"{source}: schema version {version!r}, and this mtl-cloud reads {cls.schema_version}",
                hint="read it with the mtl-cloud that wrote it, or a newer one",
            )
        known = {f.name: f for f in fields(cls) if f.name != "extra"}
        for name, f in known.items():
            if name not in document and is_required(f):
                raise at.field(name).missing()
        values = {name: document.pop(name) for name in known if name in document}
        classes = _field_classes(cls)  # type: ignore[arg-type]  # mypy takes Self's class for unhashable
        for name, value in values.items():
            if type(value) not in classes[name]:
                raise at.field(name).wrong(value)
        return cls(**values, extra=document)


@cache
def _field_classes(cls: type[Record]) -> dict[str, frozenset[type]]:
    """Field -> the classes that ``json.loads`` makes of its values."""
    return {name: json_classes(hint) for name, hint in get_type_hints(cls).items()}


@dataclass(frozen=True, kw_only=True)
class PlanRecord(Record):
    """``plan.json``: what was decided before anything was paid for. Its presence makes a run exist."""

    run_id: str
    name: str
    created_at: str
    backend: str
    storage: str
    command: list[str]
    """The trainer's command line inside the container."""
    env: dict[str, str]
    """The job's variables of the trainer's environment, in clear text."""
    processes: int
    """Trainer processes (one a GPU, one on a CPU)."""
    rounds: int
    compute: dict[str, Json] = field(default_factory=dict)
    """The job's section of that name, every default filled in. ``mtl_cloud.planning.compute`` reads it."""
    image: str | None = None
    """Reference of the container image; None where no container is used, or where it is not known yet."""
    spec_digest: str = ""
    """SHA-256 (hex) of the resolved job, as ``spec.json`` holds it."""
    inputs: list[str] = field(default_factory=list)
    """Absolute paths and URLs that the trainer reads: datasets and weights to start from."""
    secrets: dict[str, Json] = field(default_factory=dict)
    """Variables of the trainer's environment by reference, as ``supervise.secrets`` resolves them. Never a value."""
    deadline_s: float | None = None
    """Seconds of wall clock, over all attempts, after which the run is stopped."""
    usd_per_hour: float | None = None
    budget_usd: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Json] = field(default_factory=dict)
    """Where prices and machine facts came from, with their dates; ``parsed_facts`` reads it."""
    requests: dict[str, Json] = field(default_factory=dict)
    """The exact requests that the backend is sent."""
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def decode(cls, data: bytes, *, source: str) -> Self:
        """Parse a file's bytes as `Record.decode` does, and check the facts at every level."""
        plan = super().decode(data, source=source)
        plan.__dict__["parsed_facts"] = _parse_facts(plan.facts, source)  # the cache: here the file's name is known
        return plan

    @cached_property
    def parsed_facts(self) -> PlanFacts:
        """``facts`` as types, without fields of a newer writer. Raises ``RecordError`` for a malformed value."""
        return _parse_facts(self.facts, self.run_id)


def _parse_facts(facts: dict[str, Json], source: str) -> PlanFacts:
    return from_json(PlanFacts, facts, FieldPath(source, PlanRecord.__name__, "facts"))


@dataclass(frozen=True)
class SupervisedCompute:
    """The ``compute`` section of ``SupervisedJob``."""

    max_restarts: int


@dataclass(frozen=True)
class SupervisedJob:
    """The part of ``spec.json`` that the supervisor reads, which cannot use the pydantic models of the job."""

    compute: SupervisedCompute


@dataclass(frozen=True, kw_only=True)
class AttemptRecord(Record):
    """``attempts/0001.json``: the claim of one attempt. The highest number owns the run."""

    number: int
    started_at: str
    host: str
    pid: int
    backend: str
    device: str | None = None
    usd_per_hour: float | None = None
    """Price of this attempt by its plan; None if nothing is rented or the price is unknown."""
    nonce: str = ""
    """Random: lets a process recognise a claim as its own when only the reply to it was lost."""


@dataclass(frozen=True, kw_only=True)
class BootRecord(Record):
    """``boots/<instance>.json``: a rented machine's state before and after its container, overwritten.

    An attempt's ``host`` is the instance's id, which links the attempt to its machine and its price.
    """

    instance: str
    instance_type: str
    zone: str
    market: str
    """spot | on-demand | capacity-block, as the instance's metadata call it."""
    phase: str
    """A ``BootPhase``."""
    message: str
    started_at: str
    at: str


@dataclass(frozen=True, kw_only=True)
class StartRecord(Record):
    """``start.json``: the checkpoint that an attempt resumed from; both None for a fresh start.

    Written once, by the trainer, before its first step. It makes a late commit of a replaced attempt harmless:
    checkpoints of ``checkpoint_attempt`` beyond ``checkpoint_step`` are no ancestors of this attempt's.
    """

    checkpoint_step: int | None
    checkpoint_attempt: int | None
    datasets: list[dict[str, Json]] = field(default_factory=list)
    """The attempt's datasets, in the job's order. Each: ``name``, and ``digest`` of a prepared dataset or null."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Record):
    """``heartbeat.json``, overwritten at each heartbeat. ``progress`` is the trainer's newest report."""

    at: str
    phase: str
    """starting | loading | training | validating | saving | stopping"""
    progress: dict[str, Json] = field(default_factory=dict)
    """round, rounds, epoch, step, steps, losses {task: value}, images_per_s, data_wait, eta_s."""
    host: dict[str, Json] = field(default_factory=dict)
    """Memory, disk and GPU readings."""


@dataclass(frozen=True, kw_only=True)
class ExitRecord(Record):
    """``exit.json``: how an attempt ended."""

    ended_at: str
    outcome: str
    exit_code: int | None
    message: str
    seconds: float


@dataclass(frozen=True)
class BestRound:
    """The round whose checkpoint is kept as the best, and why."""

    round: int
    metric: str | None
    """In the job's form, ``detection/map50_voc``; None for the mean of the tasks' headline metrics."""
    value: float | None
    """The round's value; None if its trainer did not record it."""


@dataclass(frozen=True, kw_only=True)
class RoundRecord(Record):
    """``rounds/0001.json``: the metrics after one round. ``metrics`` are of the validation split."""

    round: int
    attempt: int
    step: int
    epoch: int
    ended_at: str
    seconds: float
    """Training part of the round, over all attempts that worked on it."""
    validation_s: float
    images: int
    images_per_s: float
    data_wait: float
    """Share (0..1) of the training time that the loop waited for data."""
    train_losses: dict[str, float | None]
    """Mean of each task's unweighted loss over the round's labelled samples; None when it had no sample."""
    val_losses: dict[str, float | None]
    metrics: dict[str, dict[str, float | None]]
    """task -> metric -> value, e.g. ``{"classification": {"top1": 0.91, "recall_macro": 0.9}}``."""
    per_class: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    """task -> metric -> class name -> value."""
    confusion: list[list[int]] | None = None
    """Rows: truth, columns: prediction, classes in ``classes`` order. Single-label classification only."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """task -> class names."""
    bad_samples: int = 0
    """Samples skipped so far under ``on_bad_sample: skip``."""
    learning_rate: float | None = None
    weights: dict[str, float] = field(default_factory=dict)
    """task -> weight of its loss at the round's end."""
    sharing: dict[str, Json] = field(default_factory=dict)
    """Learned sharing coefficients, e.g. gates per stage and task pair."""
    usd: float | None = None
    """Dollars of this round at the plan's locked price."""
    rewinds: list[dict[str, Any]] = field(default_factory=list)
    """Each divergence in this round that training went back from: ``round``, ``step`` at which it was, ``reason`` and
    ``to_step``, from where it went on with a lower learning rate."""
    best_round: int | None = None
    """The round whose checkpoint is the best of those up to this one; None without ``checkpoint.keep_best``."""
    best_metric: str | None = None
    """The metric of the comparison, as in ``BestRound``."""
    best_value: float | None = None

    @property
    def best(self) -> BestRound | None:
        """The best of the rounds up to this one; None where none is kept."""
        return None if self.best_round is None else BestRound(self.best_round, self.best_metric, self.best_value)


@dataclass(frozen=True, kw_only=True)
class RoundSamples(Record):
    """``samples/0001.json``: a few validation images with truth and prediction, for the report.

    Each of ``samples``: ``key``, ``image`` (PNG, base64), ``truth`` and ``prediction``; those two hold, where known,
    ``classes`` (list of [name, score]), ``boxes`` (list of [class name, score, x1, y1, x2, y2] in pixels of the
    image) and ``mask`` (8-bit palette-index PNG, base64, same size; 255 = ignored).
    """

    round: int
    classes: dict[str, list[str]]
    samples: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest(Record):
    """``manifest.json``, written last and once: the checkpoint's parts with sizes and checksums."""

    step: int
    attempt: int
    round: int
    created_at: str
    reason: str
    """start | round | time | stop"""
    parts: list[dict[str, Any]]
    """Each: ``key`` (below the checkpoint's prefix), ``size`` (bytes), ``crc64nvme`` (16 hex digits)."""
    meta: dict[str, Any]
    """Everything of the state that is not a tensor."""
    sha256: str = ""
    """Checksum of all other fields; see `sealed`."""

    def sealed(self) -> Self:
        """The manifest with its own checksum filled in, so that damage to any other field shows."""
        return replace(self, sha256=self._digest())

    @property
    def is_intact(self) -> bool:
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        # Sorted, so that it does not matter in which order an older reader keeps fields it does not know.
        document = {**self._document(), "sha256": ""}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CancelRecord(Record):
    """``cancel.json``: a person's request to stop, which the supervisor follows."""

    at: str
    by: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ResultRecord(Record):
    """``result.json``: written once, by the owner, when the run is over for good."""

    ended_at: str
    outcome: str
    message: str
    attempts: int
    rounds: int
    """Rounds completed."""
    seconds: float
    """Sum over attempts."""
    usd: float | None = None
