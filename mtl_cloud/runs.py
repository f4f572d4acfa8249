"""The runs that one knows: their ids, where they live, how to name one briefly, and how it stands."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mtl_cloud.errors import MissingExtraError, NotFoundError, RecordError, StorageError, UsageError
from mtl_cloud.follow import LOST_AFTER_S
from mtl_cloud.nearest import did_you_mean
from mtl_cloud.paths import RUNS
from mtl_cloud.records import AttemptRecord, BestRound, ExitRecord, Heartbeat, Outcome, PlanRecord, RoundRecord
from mtl_cloud.run_record import RunRecord
from mtl_cloud.storage import FolderStorage, Storage, open_storage
from mtl_cloud.tasks import HEADLINE
from mtl_cloud.user_folders import state_folder

__all__ = [
    "RunSummary",
    "find_run",
    "known_storages",
    "list_runs",
    "new_run_id",
    "remember_storage",
    "summarize",
]

log = logging.getLogger(__name__)

STORAGE_VARIABLE = "MTL_CLOUD_STORAGE"
_MOST_CANDIDATES = 10
_READERS = 8


# --- names -----------------------------------------------------------------------------------------------------------


def new_run_id(name: str, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """``<name>-<6 hex digits>``, as in ``voc-joint-3fa1c9``."""
    return f"{name}-{random_bytes(3).hex()}"


def find_run(storages: Iterable[Storage], abbreviation: str) -> RunRecord:
    """The run that ``abbreviation`` means: ``latest``, an id, its start, or the start of its last part.

    An earlier form of these wins over a later one. Storages are looked at in turn, and a whole id ends the search.

    Raises ``UsageError`` when no run fits, or several do, which are then listed.
    """
    if abbreviation == "latest":
        return _latest(storages)
    runs = []
    for storage in storages:
        here = [RunRecord(storage, run_id) for run_id in storage.children(RUNS)]
        exact = [run for run in here if run.run_id == abbreviation and run.exists()]
        if exact:
            return exact[0]
        runs += here
    by_start = [run for run in runs if run.run_id.startswith(abbreviation)]
    by_suffix = [run for run in runs if run.run_id.rpartition("-")[2].startswith(abbreviation)]
    return _only([run for run in by_start or by_suffix if run.exists()], abbreviation, runs)


def _latest(storages: Iterable[Storage]) -> RunRecord:
    plans = [found for storage in storages for found in _plans(storage)]
    if not plans:
        raise UsageError("there is no run yet", hint="mtl-cloud submit job.yaml")
    return max(plans, key=_created)[0]


def _only(found: list[RunRecord], abbreviation: str, known: list[RunRecord]) -> RunRecord:
    if len(found) == 1:
        return found[0]
    if found:
        lines = [f"  {run.run_id}  in {run.storage.url}" for run in found[:_MOST_CANDIDATES]]
        more = [f"  and {len(found) - _MOST_CANDIDATES} more"] if len(found) > _MOST_CANDIDATES else []
        raise UsageError("\n".join([f"{abbreviation!r} may mean several runs:", *lines, *more]), hint="give more of it")
    hint = did_you_mean(abbreviation, (run.run_id for run in known))
    raise UsageError(f"no run is named {abbreviation!r}", hint=hint or "mtl-cloud runs lists them; see also --storage")


# --- lists -----------------------------------------------------------------------------------------------------------


def list_runs(storage: Storage) -> list[RunRecord]:
    """The runs of a storage, the newest first. One whose plan cannot be read is left out, with a warning."""
    return [run for run, _ in sorted(_plans(storage), key=_created, reverse=True)]


def _plans(storage: Storage) -> list[tuple[RunRecord, PlanRecord]]:
    runs = [RunRecord(storage, run_id) for run_id in storage.children(RUNS)]
    with ThreadPoolExecutor(_READERS) as pool:
        plans = pool.map(_plan, runs)
        return [(run, plan) for run, plan in zip(runs, plans, strict=True) if plan is not None]


def _plan(run: RunRecord) -> PlanRecord | None:
    try:
        return run.plan()
    except NotFoundError:  # being made, or its making was interrupted: it does not exist
        return None
    except RecordError as error:
        log.warning("%s", error)
        return None


def _created(found: tuple[RunRecord, PlanRecord]) -> tuple[datetime, str]:
    return datetime.fromisoformat(found[1].created_at), found[0].run_id


# --- where -----------------------------------------------------------------------------------------------------------


def known_storages(environ: Mapping[str, str] = os.environ) -> Iterator[Storage]:
    """The storages that this user has submitted to, the last one first, each opened when its turn comes.

    ``MTL_CLOUD_STORAGE`` stands for all of them. A remembered one that does not answer (no network, no credentials, an
    extra that is not installed) is passed over with a warning: it must not hide the runs of the others.
    """
    if environ.get(STORAGE_VARIABLE):
        yield open_storage(environ[STORAGE_VARIABLE])
        return
    for url in reversed(_remembered(environ)):
        try:
            storage = open_storage(url)
            storage.children(RUNS)
        except (MissingExtraError, StorageError) as error:
            log.warning("runs in %s are left out: %s", url, error)
        else:
            yield storage


def remember_storage(url: str, environ: Mapping[str, str] = os.environ) -> None:
    """Note a storage's URL, so that its runs are found from any folder. Where that fails, it is only warned of."""
    path = _memory(environ)
    urls = [known for known in _remembered(environ) if known != url] + [url]
    try:
        FolderStorage(path.parent).write(path.name, "".join(f"{line}\n" for line in urls).encode())
    except StorageError as error:
        log.warning("the storage %s is not remembered: %s", url, error)


def _remembered(environ: Mapping[str, str]) -> list[str]:
    path = _memory(environ)
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _memory(environ: Mapping[str, str]) -> Path:
    return state_folder(environ) / "storages"


# --- how it stands ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunSummary:
    """One line about a run."""

    run_id: str
    name: str
    backend: str
    storage: str
    created_at: str
    state: str
    """queued | running | stopping | lost, or, when it is over, an ``Outcome``."""
    attempt: int | None
    """The present or last one; None before the first."""
    round: int
    """Rounds completed, of ``rounds``."""
    rounds: int
    metrics: dict[str, float | None]
    """task -> its headline metric (``tasks.HEADLINE``) after the last completed round."""
    best: BestRound | None
    """Whose checkpoint is kept as the best; None without ``checkpoint.keep_best``, or before any has a value."""
    started_at: str | None
    seconds: float
    """Of work, over all attempts, so far."""
    usd: float | None
    """Of these seconds, each attempt's at its own price; None when none of them has one."""


def summarize(run: RunRecord, now: datetime, *, lost_after_s: float = LOST_AFTER_S) -> RunSummary:
    """How ``run`` stands at ``now``. It is lost when its attempt has neither ended nor given a sign of life lately."""
    plan, result, lives = run.plan(), run.result(), [_Life.of(run, attempt) for attempt in run.attempts()]
    rounds = run.rounds()
    seconds = result.seconds if result else sum(_seconds(lives, now, lost_after_s))
    return RunSummary(
        run_id=run.run_id,
        name=plan.name,
        backend=plan.backend,
        storage=run.storage.url,
        created_at=plan.created_at,
        state=result.outcome if result else _state(run, lives, now, lost_after_s),
        attempt=lives[-1].attempt.number if lives else None,
        round=rounds[-1].round if rounds else 0,
        rounds=plan.rounds,
        metrics=_headlines(rounds[-1]) if rounds else {},
        best=rounds[-1].best if rounds else None,
        started_at=lives[0].attempt.started_at if lives else None,
        seconds=seconds,
        usd=result.usd if result else _usd(lives, now, lost_after_s),
    )


@dataclass(frozen=True)
class _Life:
    """What is known of one attempt."""

    attempt: AttemptRecord
    heartbeat: Heartbeat | None
    exit: ExitRecord | None

    @classmethod
    def of(cls, run: RunRecord, attempt: AttemptRecord) -> _Life:
        return cls(attempt, run.heartbeat(attempt.number), run.exit(attempt.number))

    @property
    def last_sign(self) -> datetime:
        return datetime.fromisoformat(self.heartbeat.at if self.heartbeat else self.attempt.started_at)

    def is_lost(self, now: datetime, lost_after_s: float) -> bool:
        return self.exit is None and (now - self.last_sign).total_seconds() > lost_after_s

    def seconds(self, until: datetime) -> float:
        if self.exit is not None:
            return self.exit.seconds
        return max(0.0, (until - datetime.fromisoformat(self.attempt.started_at)).total_seconds())


def _seconds(lives: list[_Life], now: datetime, lost_after_s: float) -> list[float]:
    """Of each attempt of a run without a result. One that was lost or replaced ended with its last sign of life."""
    alive = [life is lives[-1] and not life.is_lost(now, lost_after_s) for life in lives]
    return [life.seconds(now if is_alive else life.last_sign) for life, is_alive in zip(lives, alive, strict=True)]


def _usd(lives: list[_Life], now: datetime, lost_after_s: float) -> float | None:
    """Of these seconds, each attempt's at its own price; None when none of them has one."""
    prices = [life.attempt.usd_per_hour for life in lives]
    seconds = _seconds(lives, now, lost_after_s)
    costs = [price * s / 3600 for price, s in zip(prices, seconds, strict=True) if price is not None]
    return sum(costs) if costs else None


def _state(run: RunRecord, lives: list[_Life], now: datetime, lost_after_s: float) -> str:
    """Of a run without a result."""
    last = lives[-1] if lives else None
    if last and last.exit and not Outcome(last.exit.outcome).may_retry:
        return last.exit.outcome
    if last and last.is_lost(now, lost_after_s):
        return "lost"
    if run.cancel_request() or (last and last.heartbeat and last.heartbeat.phase == "stopping" and not last.exit):
        return "stopping"
    return "running" if last and not last.exit else "queued"


def _headlines(record: RoundRecord) -> dict[str, float | None]:
    metrics = {str(task): name for task, name in HEADLINE.items()}
    return {task: values.get(metrics[task]) for task, values in record.metrics.items() if task in metrics}
