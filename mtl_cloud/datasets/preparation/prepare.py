"""Prepare a dataset from original archives: shards by several processes, then the index, and the manifest last.

A shard is written in full, then its part of the index; a killed preparation resumes after the last part. The result is
the same, to the byte, as without the interruption. Memory holds the plan, and one shard per worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice

from mtl_cloud.datasets.preparation.finalize import assemble
from mtl_cloud.datasets.preparation.index_parts import PARTS, part_key, plan_name
from mtl_cloud.datasets.preparation.shard_job import make_shard
from mtl_cloud.datasets.preparation.shard_plan import OnBad, ShardJob, plan_fingerprint, plan_shards
from mtl_cloud.datasets.preparation.source import Source
from mtl_cloud.datasets.shards.format import MANIFEST, DatasetManifest
from mtl_cloud.errors import DatasetError, MtlCloudError
from mtl_cloud.storage import Storage

__all__ = ["Options", "prepare"]


@dataclass(frozen=True)
class Options:
    """Options of a preparation. ``workers`` does not affect the result."""

    workers: int = 1
    shard_bytes: int = 64 << 20
    """Target size of a shard, exceeded by its last sample."""
    on_bad: OnBad = "fatal"


def prepare(
    name: str,
    sources: Mapping[str, Source],
    target: Storage,
    options: Options,
    *,
    aliases: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = lambda _samples: None,
) -> DatasetManifest:
    """Write the splits ``sources`` into ``target``, which is empty or partly prepared.

    ``advance`` is called with the number of further samples done, at first with those done before a restart.

    Raises
    ------
    DatasetError
        ``target`` holds another dataset; or a sample is bad and ``on_bad`` is fatal. Finished shards remain, and a
        preparation with the same options resumes from them.
    StorageError
        The storage failed.
    """
    fingerprint = plan_fingerprint(sources, options.shard_bytes)
    plans = [plan_name(fingerprint, options.on_bad, left_out=left_out) for left_out in (False, True)]
    manifest = _finished(target, plans)
    if manifest is None:
        _delete_parts(target, lambda key: not key.startswith(f"{PARTS}{fingerprint}"))
        jobs = [job for split, source in sources.items() for job in plan_shards(split, source, options.shard_bytes)]
        _write_shards(jobs, target, options, plans, advance)
        keys = [*_done(jobs, target, plans).values()]
        manifest = assemble(name, sources, jobs, target, keys, aliases=aliases or {})
        left_out = any(split.left_out for split in manifest.splits.values())
        manifest = manifest.model_copy(update={"plan": plans[left_out]})
        target.write(MANIFEST, manifest.encode())
    _delete_parts(target, lambda _key: True)
    return manifest


def _finished(target: Storage, plans: Sequence[str]) -> DatasetManifest | None:
    if MANIFEST not in target.children(""):
        return None
    manifest = DatasetManifest.decode(target.read(MANIFEST), source=f"{target.url}/{MANIFEST}")
    if manifest.plan not in plans:
        raise DatasetError(
            f"{target.url}: already holds a prepared dataset, of other data or with other options",
            hint="prepare into an empty folder or prefix, or delete that one first",
        )
    return manifest


def _delete_parts(target: Storage, which: Callable[[str], bool]) -> None:
    """Delete index parts: those of other plans before their shards are replaced, and all once they are merged."""
    for entry in target.list(PARTS):
        if which(entry.key):
            target.delete(entry.key)


def _done(jobs: Sequence[ShardJob], target: Storage, plans: Sequence[str]) -> dict[str, str]:
    """Name of each finished job -> key of its part, in the order of the jobs."""
    stored = {entry.key for entry in target.list(PARTS)}
    keys = {job.name: [part_key(plan, job.name) for plan in plans] for job in jobs}
    return {name: key for name, either in keys.items() for key in either if key in stored}


def _write_shards(
    jobs: Sequence[ShardJob],
    target: Storage,
    options: Options,
    plans: Sequence[str],
    advance: Callable[[int], None],
) -> None:
    done = _done(jobs, target, plans)
    advance(sum(len(job.positions) for job in jobs if job.name in done))
    missing = [job for job in jobs if job.name not in done]
    for samples in _run(
        partial(make_shard, target=target, on_bad=options.on_bad, fingerprint=plans[0]), missing, options
    ):
        advance(samples)


def _run(make: Callable[[ShardJob], int], jobs: Sequence[ShardJob], options: Options) -> Iterator[int]:
    """Calls ``make`` for each job, in any order, in ``options.workers`` processes."""
    if options.workers == 1:
        yield from map(make, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _start_worker) as pool:
        try:
            yield from _as_completed(pool, make, iter(jobs), ahead=2 * options.workers)
        except BrokenProcessPool as error:
            raise MtlCloudError(
                "a worker process was killed, perhaps for lack of memory",
                hint="lower --workers or --shard-mib, and start it again: it resumes where it stopped",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _as_completed(
    pool: ProcessPoolExecutor, make: Callable[[ShardJob], int], jobs: Iterator[ShardJob], *, ahead: int
) -> Iterator[int]:
    """Submits only ``ahead`` jobs at a time, because each holds the positions of its samples."""
    pending: set[Future[int]] = {pool.submit(make, job) for job in islice(jobs, ahead)}
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()
        pending |= {pool.submit(make, job) for job in islice(jobs, len(done))}


def _start_worker() -> None:
    """The parent handles Ctrl-C. If the parent is killed, the process ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
