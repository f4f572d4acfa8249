"""From original archives to a prepared dataset: shards by several processes, the index, and the manifest last.

A shard is written whole, then its part of the index; a preparation that was killed goes on after the last part. What it
then leaves is the same, to the byte, as if it had never been killed. Beside the plan, memory for one shard a worker is
used.
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
from mtl_cloud.datasets.preparation.shard_plan import OnBad, ShardJob, plan_shards, plan_stamp
from mtl_cloud.datasets.preparation.source import Source
from mtl_cloud.datasets.shards.format import MANIFEST, DatasetManifest
from mtl_cloud.errors import DatasetError, MtlCloudError
from mtl_cloud.storage import Storage

__all__ = ["Options", "prepare"]


@dataclass(frozen=True)
class Options:
    """How to prepare. ``workers`` has no influence on what is written."""

    workers: int = 1
    shard_bytes: int = 64 << 20
    """About, before the last sample."""
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
    """Write the splits ``sources`` into the empty, or in part prepared, ``target``.

    ``advance`` is told how many samples more are done, or were when the preparation was started again.

    Raises
    ------
    DatasetError
        ``target`` holds another dataset; or a sample is bad and ``on_bad`` is fatal. What is written stays, and a
        preparation with the same options goes on from there.
    StorageError
        The storage failed.
    """
    stamp = plan_stamp(sources, options.shard_bytes)
    plans = [plan_name(stamp, options.on_bad, left_out=left_out) for left_out in (False, True)]
    manifest = _finished(target, plans)
    if manifest is None:
        _delete_parts(target, lambda key: not key.startswith(f"{PARTS}{stamp}"))
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
            f"{target.url}: holds a prepared dataset already, of other data or made with other options",
            hint="prepare into an empty folder or prefix, or delete that one first",
        )
    return manifest


def _delete_parts(target: Storage, which: Callable[[str], bool]) -> None:
    """Those of other plans, whose shards are about to be replaced; and all that are in the index."""
    for entry in target.list(PARTS):
        if which(entry.key):
            target.delete(entry.key)


def _done(jobs: Sequence[ShardJob], target: Storage, plans: Sequence[str]) -> dict[str, str]:
    """Name of a job -> its part, in the order of the jobs, of those that are finished."""
    there = {entry.key for entry in target.list(PARTS)}
    keys = {job.name: [part_key(plan, job.name) for plan in plans] for job in jobs}
    return {name: key for name, either in keys.items() for key in either if key in there}


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
    for samples in _run(partial(make_shard, target=target, on_bad=options.on_bad, stamp=plans[0]), missing, options):
        advance(samples)


def _run(make: Callable[[ShardJob], int], jobs: Sequence[ShardJob], options: Options) -> Iterator[int]:
    """``make`` of each job, in any order, by as many processes as wanted."""
    if options.workers == 1:
        yield from map(make, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _start_worker) as pool:
        try:
            yield from _as_completed(pool, make, iter(jobs), ahead=2 * options.workers)
        except BrokenProcessPool as error:
            raise MtlCloudError(
                "a worker process was killed, by lack of memory perhaps",
                hint="lower --workers or --shard-mib, and start it again: it goes on where it was",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _as_completed(
    pool: ProcessPoolExecutor, make: Callable[[ShardJob], int], jobs: Iterator[ShardJob], *, ahead: int
) -> Iterator[int]:
    """Only ``ahead`` jobs are handed over at a time: each carries its samples' places."""
    pending: set[Future[int]] = {pool.submit(make, job) for job in islice(jobs, ahead)}
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()
        pending |= {pool.submit(make, job) for job in islice(jobs, len(done))}


def _start_worker() -> None:
    """Ctrl-C is the parent's to answer; and where the parent is killed, nobody else would end this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
