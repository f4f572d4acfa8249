"""MTL-Net's joint step compared with steps of the three networks in turn in plain PyTorch and torchvision.

    python benchmarks/joint_step.py [--device cuda] [--image-size 416] [--batch 16] [--precision bf16]

Ours is the trainer's step in a run: images to floats, forward with the fusion layers, losses, backward, gradient
clipping, optimizer, meters. The peer (``plain.py``) does a step of each of its three networks on the same batch, with
the same optimizer and precision, without clipping or fusion. Steps are interleaved; the table shows medians of
wall-clock time on a GPU, and of CPU time (one thread by default) on a CPU. Peak memory is measured in separate
processes: for the joint step, for the three networks at the same time, and for the largest of the three when each is
trained alone.

On a GPU one more joint step runs under ``torch.cuda.set_sync_debug_mode("error")``, which fails if the host waits.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import plain
import torch

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import job_to_json
from mtl_cloud.planning.plan import gather_facts, plan_run
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord
from mtl_cloud.runs.scratch import Scratch
from mtl_cloud.storage import MemoryStorage
from mtl_cloud.train.build import JobData, build_trainer, open_data
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.data.loader import BatchDataset, Collate, ValidationView
from mtl_cloud.train.distributed import ProcessGroup
from mtl_cloud.train.trainer import Trainer

RECIPE = {"lr": 1e-5, "momentum": 0.9, "weight_decay": 5e-4}
"""So low that nothing diverges: only time and memory are measured."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    options = _parse_arguments()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps({"bytes": _peak_bytes(options)}))
        return
    memory = {name: _child_bytes(name) for name in ("joint", "together", *plain.NETWORKS)}
    found = {
        "device": _device_name(options.device),
        "torch": torch.__version__,
        "precision": options.precision,
        "image_size": options.image_size,
        "batch": options.batch,
        "steps": options.steps,
        **_speed(options),
        **_memory(memory),
    }
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--image-size", type=int, default=416, help="pixels, a multiple of 32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    parser.add_argument("--warmup", type=int, default=3, help="untimed steps of each before")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; with several, waiting for each other counts")
    parser.add_argument("--peer-channels-last", action="store_true", help="the peer's tensors in channels_last too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = torch.device(options.device)
    return options


# --- the two sides ---------------------------------------------------------------------------------------------------


def _job(options: argparse.Namespace) -> JobSpec:
    return JobSpec.model_validate(
        {
            "compute": {"gpu_count": int(options.device.type == "cuda")},
            "dataset": {"name": "embedded", "max_train_samples": options.batch},
            "model": {"name": "mtl_net"},
            "training": {
                "image_size": options.image_size,
                "batch_size": options.batch,
                "precision": options.precision,
                "loader_workers": 0,
                "epochs_per_round": 10_000,
                "optimizer": {"name": "sgd", **RECIPE},
                "schedule": {"name": "constant"},
            },
        }
    )


def _trainer(job: JobSpec, data: JobData, device: torch.device, folder: Path) -> Trainer:
    """The trainer of a run's first attempt."""
    now = datetime.now(UTC)
    run = RunRecord(MemoryStorage(), "benchmark")
    plan = plan_run(job, gather_facts(job), run_id="benchmark", now=now)
    run.create(plan, spec_yaml=b"", spec_json=job_to_json(job))
    run.claim(AttemptRecord(number=1, started_at=now.isoformat(), host="here", pid=1, backend="local"))
    group = ProcessGroup(0, 1, device)
    return build_trainer(job, data, run, attempt=1, group=group, scratch=Scratch(folder))


def _batch(data: JobData, options: argparse.Namespace) -> Batch:
    """Embedded scenes without colour jitter, which plain pipelines do in the loader."""
    view = ValidationView(data.train, options.image_size)
    batches = BatchDataset(view, Collate(data.classes, data.train.info.multi_label))
    batch = batches.load(range(options.batch)).to(torch.device("cpu"))
    return batch.pin_memory() if options.device.type == "cuda" else batch


def _plain_batch(batch: Batch) -> plain.PlainBatch:
    owners = range(len(batch))
    return plain.PlainBatch(
        images=batch.images.contiguous(),
        labels=batch.labels,
        boxes=[batch.boxes[batch.box_image == image] for image in owners],
        box_classes=[batch.box_class[batch.box_image == image] for image in owners],
        masks=batch.masks.long(),
    )


def _plain_training(name: str, data: JobData, options: argparse.Namespace) -> plain.PlainTraining:
    autocast = partial(torch.autocast, options.device.type, dtype=DTYPES.get(options.precision))
    return plain.build(
        name,
        len(data.classes["detection"]),
        options.device,
        **RECIPE,
        autocast=nullcontext if options.precision == "fp32" else autocast,
        scaled=options.precision == "fp16",
        memory_format=torch.channels_last if options.peer_channels_last else torch.contiguous_format,
    )


# --- speed -----------------------------------------------------------------------------------------------------------


def _speed(options: argparse.Namespace) -> dict[str, Any]:
    job = _job(options)
    data = open_data(job)
    batch = _batch(data, options)
    theirs = _plain_batch(batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(job, data, options.device, Path(folder))
        peers = {name: _plain_training(name, data, options) for name in plain.NETWORKS}
        steps: dict[str, Callable[[], None]] = {
            "joint": partial(trainer._step, batch, 0.0),  # noqa: SLF001  # the very step that is measured
            **{name: partial(peer.step, theirs) for name, peer in peers.items()},
        }
        milliseconds = _medians(steps, options)
        waits = _host_waits(trainer, batch) if options.device.type == "cuda" else None
    joint_ms = milliseconds.pop("joint")
    plain_ms = sum(milliseconds.values())
    return {
        "joint_ms": joint_ms,
        "plain_ms": milliseconds,
        "joint_images_per_s": 1000 * options.batch / joint_ms,
        "plain_images_per_s": 1000 * options.batch / plain_ms,
        "speed_ratio": plain_ms / joint_ms,
        "host_waits": waits,
    }


def _medians(steps: dict[str, Callable[[], None]], options: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of each step; steps are interleaved."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.warmup + options.steps):
        for name, step in steps.items():
            spent = _timed(step, options.device)
            if number >= options.warmup:
                found[name].append(1000 * spent)
    return {name: statistics.median(values) for name, values in found.items()}


def _timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds until a GPU is done; on a CPU, CPU seconds of all threads, because the machine may be shared."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _finish(device)
    started_at = clock()
    step()
    _finish(device)
    return clock() - started_at


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _host_waits(trainer: Trainer, batch: Batch) -> str:
    """ "none", or what waited. The trainer's progress report, once a second, may wait."""
    trainer.channel.report("training")
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(batch, 0.0)  # noqa: SLF001  # as above
    except RuntimeError as error:
        return f"yes: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


# --- memory ----------------------------------------------------------------------------------------------------------


def _child_bytes(name: str) -> int:
    """Peak memory of a side, measured in a new process with the same options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    return int(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["bytes"])


def _peak_bytes(options: argparse.Namespace) -> int:
    """Peak memory of three steps, without the memory that the process used before it built a network."""
    job = _job(options)
    data = open_data(job)
    batch = _batch(data, options)
    before = _resident_bytes(options.device)
    with tempfile.TemporaryDirectory() as folder:
        steps = _steps_of_child(job, data, batch, options, Path(folder))
        for _ in range(3):
            for step in steps:
                step()
    _finish(options.device)
    return _resident_bytes(options.device) - before


def _steps_of_child(
    job: JobSpec, data: JobData, batch: Batch, options: argparse.Namespace, folder: Path
) -> list[Callable[[], None]]:
    if options.child == "joint":
        return [partial(_trainer(job, data, options.device, folder)._step, batch, 0.0)]  # noqa: SLF001  # as above
    names = plain.NETWORKS if options.child == "together" else (options.child,)
    return [partial(_plain_training(name, data, options).step, _plain_batch(batch)) for name in names]


def _resident_bytes(device: torch.device) -> int:
    """Peak memory so far: of the tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage on Linux, which counts the parent's memory at the time it started this process.
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _memory(peaks: dict[str, int]) -> dict[str, Any]:
    alone = max(peaks[name] for name in plain.NETWORKS)
    return {
        "joint_gib": peaks["joint"] / 2**30,
        "plain_together_gib": peaks["together"] / 2**30,
        "plain_largest_alone_gib": alone / 2**30,
        "memory_ratio": peaks["joint"] / peaks["together"],
    }


# --- words -----------------------------------------------------------------------------------------------------------


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} thread(s), CPU time"
    )


def _print(found: dict[str, Any]) -> None:
    print(f"{found['device']}, torch {found['torch']}, {found['precision']}")
    print(f"batch {found['batch']} of {found['image_size']} x {found['image_size']}, {found['steps']} steps each\n")
    for name, value in {"joint step": found["joint_ms"], **found["plain_ms"]}.items():
        print(f"{name:<28} {value:10.1f} ms")
    print(f"{'joint':<28} {found['joint_images_per_s']:10.2f} images/s")
    print(f"{'one after another':<28} {found['plain_images_per_s']:10.2f} images/s")
    print(f"{'joint / one after another':<28} {found['speed_ratio']:10.3f}  (at least 1 is the aim)\n")
    print(f"{'peak memory, joint':<28} {found['joint_gib']:10.2f} GiB")
    print(f"{'the three held at once':<28} {found['plain_together_gib']:10.2f} GiB")
    print(f"{'the largest alone':<28} {found['plain_largest_alone_gib']:10.2f} GiB")
    print(f"{'joint / held at once':<28} {found['memory_ratio']:10.3f}")
    if found["host_waits"] is not None:
        print(f"\nhost waits in a joint step: {found['host_waits']}")


if __name__ == "__main__":
    main()
