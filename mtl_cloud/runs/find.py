"""Find runs: new ids, abbreviations, lists, and the storages that this user has submitted to."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from mtl_cloud.errors import MissingExtraError, NotFoundError, RecordError, StorageError, UsageError
from mtl_cloud.names import ENV_STORAGE
from mtl_cloud.runs.paths import RUNS
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.storage import FolderStorage, Storage, open_storage
from mtl_cloud.suggest import did_you_mean
from mtl_cloud.user_dirs import state_folder

__all__ = [
    "find_run",
    "known_storages",
    "list_runs",
    "new_run_id",
    "remember_storage",
]

log = logging.getLogger(__name__)

_MOST_CANDIDATES = 10
_READERS = 8


# --- names -----------------------------------------------------------------------------------------------------------


def new_run_id(name: str, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """``<name>-<6 hex digits>``, as in ``voc-joint-3fa1c9``."""
    return f"{name}-{random_bytes(3).hex()}"


def find_run(storages: Iterable[Storage], abbreviation: str) -> RunRecord:
    """The run that ``abbreviation`` names: ``latest``, an id, the start of an id, or the start of its last part.

    The forms are tried in this order. Storages are searched in turn; a full id ends the search.

    Raises ``UsageError`` when no run matches, or several do; it then lists them.
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
    """The runs of a storage, newest first. A run whose plan cannot be read is skipped with a warning."""
    return [run for run, _ in sorted(_plans(storage), key=_created, reverse=True)]


def _plans(storage: Storage) -> list[tuple[RunRecord, PlanRecord]]:
    runs = [RunRecord(storage, run_id) for run_id in storage.children(RUNS)]
    with ThreadPoolExecutor(_READERS) as pool:
        plans = pool.map(_plan, runs)
        return [(run, plan) for run, plan in zip(runs, plans, strict=True) if plan is not None]


def _plan(run: RunRecord) -> PlanRecord | None:
    try:
        return run.plan()
    except NotFoundError:  # the run is being created, or its creation was interrupted: it does not exist
        return None
    except RecordError as error:
        log.warning("%s", error)
        return None


def _created(found: tuple[RunRecord, PlanRecord]) -> tuple[datetime, str]:
    return datetime.fromisoformat(found[1].created_at), found[0].run_id


# --- where -----------------------------------------------------------------------------------------------------------


def known_storages(environ: Mapping[str, str] = os.environ) -> Iterator[Storage]:
    """The storages that this user has submitted to, most recent first, each opened on demand.

    ``MTL_CLOUD_STORAGE`` replaces them all. A remembered storage that cannot be opened (no network, no credentials, a
    missing extra) is skipped with a warning, so that it does not hide the runs of the others.
    """
    if environ.get(ENV_STORAGE):
        yield open_storage(environ[ENV_STORAGE])
        return
    for url in reversed(_remembered(environ)):
        try:
            storage = open_storage(url)
            storage.children(RUNS)
        except (MissingExtraError, StorageError) as error:
            log.warning("skipping runs in %s: %s", url, error)
        else:
            yield storage


def remember_storage(url: str, environ: Mapping[str, str] = os.environ) -> None:
    """Remember a storage's URL, so that its runs are found from any folder. A failure is only logged."""
    path = _memory(environ)
    urls = [known for known in _remembered(environ) if known != url] + [url]
    try:
        FolderStorage(path.parent).write(path.name, "".join(f"{line}\n" for line in urls).encode())
    except StorageError as error:
        log.warning("cannot remember the storage %s: %s", url, error)


def _remembered(environ: Mapping[str, str]) -> list[str]:
    path = _memory(environ)
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _memory(environ: Mapping[str, str]) -> Path:
    return state_folder(environ) / "storages"


# --- how it stands ---------------------------------------------------------------------------------------------------
