"""Seconds from a trainer's restart to its first step, compared with a plain read of the checkpoint's bytes.

    python benchmarks/resume.py [--width 0.25] [--rounds 3] [--folder DIR]

A run of MTL-Net on embedded scenes (``--width 1``: a checkpoint of 1.9 GB) is stopped after its first step, with its
state committed to a SeaweedFS below ``--folder``. Then, in alternation, a new process resumes it for one step, and the
same client reads the same parts, four at a time, and discards them. The table shows medians, and the stages of the
process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is for the child to import
    from mtl_cloud.train.data.batch import Batch
    from mtl_cloud.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

URL = "s3://mtl-cloud-tests/resume"
STAGES = ("interpreter and imports", "data, network, plan", "checkpoint read and checked", "first step")


def main() -> None:
    options = _arguments()
    if options.child:
        _resume_in_child(options.width, Path(options.folder), options.child)
        return
    from s3_servers import CREDENTIALS, seaweedfs

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with seaweedfs(folder / "s3", volume_mib=1024) as url:
            os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": url, "OMP_NUM_THREADS": "1"}
            size = _begin(options.width, folder)
            rounds = [(_resume(options.width, folder, n), _raw_read()) for n in range(2, options.rounds + 2)]
    _print(size, rounds, as_json=options.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25, help="of MTL-Net's layers; its bytes grow with the square")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the server stores (default: temporary)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _trainer(width: float, folder: Path, attempt: int) -> Trainer:
    from trainer_harness import ALONE, open_attempt, small_job

    from mtl_cloud.storage import open_storage

    job = small_job(rounds=1, epochs_per_round=2)
    job = job.model_copy(update={"model": job.model.model_copy(update={"width": width})})
    return open_attempt(job, folder, storage=open_storage(URL), attempt=attempt, data=None, group=ALONE)


def _begin(width: float, folder: Path) -> int:
    """Train one step and stop. Returns the bytes of the checkpoint."""
    from mtl_cloud.runs.scratch import Scratch, StopReason

    trainer = _trainer(width, folder, 1)
    Scratch(folder / "scratch-1").request_stop(StopReason.CANCEL)
    assert not trainer.fit()
    (checkpoint,) = trainer.run.checkpoints()
    return sum(part["size"] for part in trainer.run.manifest(checkpoint).parts)


def _resume(width: float, folder: Path, attempt: int) -> list[float]:
    """Seconds of each stage."""
    started = time.time()
    command = [sys.executable, __file__, f"--width={width}", f"--folder={folder}", f"--child={attempt}"]
    marks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return [mark - before for before, mark in zip([started, *marks], marks, strict=False)]


def _resume_in_child(width: float, folder: Path, attempt: int) -> None:
    """Child process: print the times at which its stages ended, and exit without a save."""
    import trainer_harness  # noqa: F401  # what a trainer imports

    marks = [time.time()]
    trainer = _trainer(width, folder, attempt)
    marks.append(time.time())
    batches = trainer.training_batches

    def marked(start: int) -> Iterator[Batch]:
        assert start == 1
        marks.append(time.time())
        ahead = batches(start)
        yield next(ahead)
        print(json.dumps([*marks, time.time()]), flush=True)
        os._exit(0)

    trainer.training_batches = marked
    trainer.fit()


def _raw_read() -> float:
    from mtl_cloud.storage import open_storage

    storage = open_storage(URL)
    parts = [entry.key for entry in storage.list("runs/test/checkpoints/") if entry.key.endswith(".safetensors")]
    started = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda key: len(storage.read(key)), parts):
            pass
    return time.perf_counter() - started


def _print(size: int, rounds: list[tuple[list[float], float]], *, as_json: bool) -> None:
    stages = [statistics.median(values) for values in zip(*(stages for stages, _ in rounds), strict=True)]
    raw = statistics.median(raw for _, raw in rounds)
    if as_json:
        print(json.dumps({"bytes": size, "raw_s": raw, "stages_s": dict(zip(STAGES, stages, strict=True))}, indent=2))
        return
    print(f"checkpoint of {size / 2**20:.0f} MiB, median of {len(rounds)} rounds")
    for name, seconds in [*zip(STAGES, stages, strict=True), ("start to first step", sum(stages)), ("raw read", raw)]:
        print(f"{name:<30} {seconds:8.2f} s {seconds / raw:8.2f} x raw")


if __name__ == "__main__":
    main()
