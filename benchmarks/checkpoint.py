"""Cost of a checkpoint for the training loop, compared with four peers in one run against one S3 server.

    python benchmarks/checkpoint.py [--width 0.25] [--rounds 3] [--folder DIR] [--s3torchconnector DIR]

The state is MTL-Net's with the optimizer's momentum (``--width 1``: 1.9 GB). The server is a SeaweedFS with its data
below ``--folder``: with a RAM disk the benchmark measures the client, with a disk the disk. Either needs six times the
state's bytes for each round, plus one. The server has the lowest CPU priority (nice 19), as S3 takes no CPU time from a
trainer. During a save, a loop runs training steps (matrix products on one thread). Rounds are interleaved; the table
shows medians of

* *stall*: seconds that the loop waits, also as a multiple of one plain copy of the same bytes to allocated memory;
* *durable*: seconds until all bytes are stored, also as a multiple of a raw upload of the same bytes by our client on
  an idle machine;
* *step*: seconds of a step during a save, as a multiple of a step just before it;
* *cpu*: CPU seconds of the save without the steps. On a shared machine this is the most reliable figure.

Ours is measured a second time with an idle loop, without competition, like the raw upload. The first round is not
counted, because it allocates buffers and opens connections. ``--s3torchconnector`` names a folder for
``pip install --target`` of that package, which is installed if it is missing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtl_cloud.tasks import Task

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from s3_servers import BUCKET, CREDENTIALS, seaweedfs  # noqa: E402  # lies beside this folder

from mtl_cloud.jobspec.job import ModelSpec  # noqa: E402
from mtl_cloud.runs.record import RunRecord  # noqa: E402
from mtl_cloud.runs.schema import AttemptRecord  # noqa: E402
from mtl_cloud.storage import open_storage  # noqa: E402
from mtl_cloud.train.checkpoint.async_saver import AsyncSaver  # noqa: E402
from mtl_cloud.train.checkpoint.checkpointer import Checkpointer  # noqa: E402
from mtl_cloud.train.checkpoint.snapshot import PART_BYTES  # noqa: E402
from mtl_cloud.train.nets import build_network  # noqa: E402

State = dict[str, Any]
Wait = Callable[[], bool]
"""Returns whether the save is still running. Raises if it failed."""
COPY, RAW, OURS, IDLE = "plain copy", "raw upload", "ours", "ours, idle loop"
BASELINE_STEPS = 20


@dataclass(frozen=True)
class Cost:
    """Cost of one save, in seconds; ``step`` is a ratio, None if the loop was idle."""

    stall: float
    durable: float
    step: float | None
    cpu: float


def main() -> None:
    options = _arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        seaweedfs(_made(Path(name) / "s3"), volume_mib=1024, nice=19) as url,
    ):
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
        state = training_state(options.width)
        costs = measure(_methods(state, Path(name), options.s3torchconnector), state, options.rounds)
    _print(costs, _size(state), as_json=options.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25, help="of MTL-Net's layers; its bytes grow with the square")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds that count")
    parser.add_argument("--folder", type=Path, help="where the server stores and local files go (default: temporary)")
    parser.add_argument("--s3torchconnector", type=Path, metavar="DIR", help="measure it too, installed in DIR")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def training_state(width: float) -> State:
    """Parameters, buffers and momentum of MTL-Net on VOC's twenty classes."""
    classes = tuple(f"class-{n}" for n in range(20))
    labels: dict[Task, tuple[str, ...]] = {
        "classification": classes,
        "detection": classes,
        "segmentation": ("background", *classes),
    }
    network = build_network(ModelSpec(name="mtl_net", width=width), labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for parameter in network.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict()}


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(item)


def _size(state: State) -> int:
    return sum(tensor.nbytes for tensor in _tensors(state))


# --- the methods: each begins a save, and says how to ask whether it still runs ---------------------------------------


def _methods(state: State, folder: Path, s3torchconnector: Path | None) -> dict[str, Callable[[], Wait]]:
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    ours = _ours(state)
    methods = {
        COPY: _plain_copy(state),
        RAW: _raw_upload(state),
        OURS: ours,
        IDLE: ours,
        "torch.save to disk": lambda: _done(_save_to_disk, state, folder / "checkpoint.pt"),
        "torch.save + s3fs": lambda: _done(_save_and_put, state, folder / "checkpoint.pt", fs),
        "DCP async_save, fsspec": _dcp(state, folder),
    }
    if s3torchconnector is not None:
        methods["torch.save to s3torchconnector"] = _s3torchconnector(state, s3torchconnector)
    return methods


def _done(save: Callable[..., None], *arguments: Any) -> Wait:
    save(*arguments)
    return lambda: False


def _plain_copy(state: State) -> Callable[[], Wait]:
    tensors = list(_tensors(state))
    buffers = [torch.empty_like(tensor).zero_() for tensor in tensors]

    def copy() -> None:
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)

    return lambda: _done(copy)


def _raw_upload(state: State) -> Callable[[], Wait]:
    part, size = os.urandom(PART_BYTES), _size(state)
    parts = [part] * (size // PART_BYTES) + [part[: size % PART_BYTES]]
    storage = open_storage(f"s3://{BUCKET}/raw")

    def upload() -> None:
        prefix = uuid.uuid4().hex
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: storage.write(f"{prefix}/{n}", parts[n]), range(len(parts))))
        for n in range(len(parts)):
            storage.delete(f"{prefix}/{n}")

    return lambda: _done(upload)


def _ours(state: State) -> Callable[[], Wait]:
    run = RunRecord(open_storage(f"s3://{BUCKET}/ours"), "run-1")
    run.claim(AttemptRecord(number=1, started_at="", host="", pid=1, backend="local"))
    saver, steps = AsyncSaver(Checkpointer(run, 1, keep=1)), iter(range(1, 10**6))

    def begin() -> Wait:
        saver.save(state, step=next(steps), round=0, reason="time")

        def waits() -> bool:
            if saver.is_busy:
                return True
            saver.drain()
            return False

        return waits

    return begin


def _save_to_disk(state: State, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _save_and_put(state: State, path: Path, fs: Any) -> None:
    torch.save(state, path)
    fs.put_file(str(path), f"{BUCKET}/torch-save.pt")


def _dcp(state: State, folder: Path) -> Callable[[], Wait]:
    import torch.distributed as dist
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    weights = {str(n): tensor for n, tensor in enumerate(_tensors(state))}

    def begin() -> Wait:
        future = async_save(weights, storage_writer=FsspecWriter(f"s3://{BUCKET}/dcp", overwrite=True))
        assert isinstance(future, Future)
        return lambda: not future.done() or future.result() is None

    return begin


def _s3torchconnector(state: State, folder: Path) -> Callable[[], Wait]:
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, "s3torchconnector", "s3torchconnectorclient"], check=True)
    sys.path.append(str(folder))
    from s3torchconnector import S3Checkpoint, S3ClientConfig

    checkpoint = S3Checkpoint(
        region="us-east-1",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        s3client_config=S3ClientConfig(force_path_style=True),
    )

    def save() -> None:
        with checkpoint.writer(f"s3://{BUCKET}/s3torchconnector.pt") as writer:
            torch.save(state, writer)

    return lambda: _done(save)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(methods: dict[str, Callable[[], Wait]], state: State, rounds: int) -> dict[str, list[Cost]]:
    """Costs of every method in every counted round."""
    found: dict[str, list[Cost]] = {name: [] for name in methods}
    step = _step(state)
    for round_number in range(rounds + 1):
        for name, begin in methods.items():
            print(f"round {round_number} of {rounds}: {name}", file=sys.stderr)
            gc.collect()
            cost = _cost(begin, step, works=name != IDLE)
            if round_number:
                found[name].append(cost)
    return found


def _step(state: State) -> Callable[[], float]:
    """A function that trains for about 30 ms, changes the state in place, and returns its seconds."""
    left, right = torch.randn(640, 640), torch.randn(640, 640)
    bias = min(state["network"].values(), key=lambda tensor: (not tensor.is_floating_point(), tensor.numel()))

    def step() -> float:
        started = time.perf_counter()
        for _ in range(4):
            torch.mm(left, right)
        bias.add_(1e-3)
        return time.perf_counter() - started

    return step


def _cost(begin: Callable[[], Wait], step: Callable[[], float], *, works: bool) -> Cost:
    before = statistics.median(step() for _ in range(BASELINE_STEPS))
    started, cpu, steps, steps_cpu = time.perf_counter(), time.process_time(), [], 0.0
    is_running = begin()
    stall = time.perf_counter() - started
    while is_running():
        if works:
            began = time.thread_time()
            steps.append(step())
            steps_cpu += time.thread_time() - began
        else:
            time.sleep(0.001)
    durable = time.perf_counter() - started
    cpu = time.process_time() - cpu - steps_cpu
    return Cost(stall, durable, statistics.median(steps) / before if steps else None, cpu)


def _print(costs: dict[str, list[Cost]], size: int, *, as_json: bool) -> None:
    rows = {name: _medians(found, costs[COPY], costs[RAW]) for name, found in costs.items()}
    if as_json:
        print(json.dumps({"bytes": size, "methods": rows}, indent=2))
        return
    print(f"{size / 2**20:.0f} MiB, median of {len(costs[COPY])} interleaved rounds")
    print(f"{'':<32} {'stall s':>9} {'x copy':>8} {'durable s':>10} {'x raw':>7} {'x step':>7} {'cpu s':>7}")
    for name, row in rows.items():
        cells = [f"{row['stall_s']:9.3f}", f"{row['x_copy']:8.2f}", f"{row['durable_s']:10.2f}", f"{row['x_raw']:7.2f}"]
        step = f"{row['x_step']:7.2f}" if row["x_step"] else f"{'-':>7}"
        print(f"{name:<32}", *cells, step, f"{row['cpu_s']:7.2f}")


def _medians(found: list[Cost], copy: list[Cost], raw: list[Cost]) -> dict[str, float | None]:
    stall, durable = (statistics.median(values) for values in zip(*((c.stall, c.durable) for c in found), strict=True))
    steps = [cost.step for cost in found if cost.step is not None]
    return {
        "stall_s": stall,
        "x_copy": stall / statistics.median(cost.stall for cost in copy),
        "durable_s": durable,
        "x_raw": durable / statistics.median(cost.durable for cost in raw),
        "x_step": statistics.median(steps) if steps else None,
        "cpu_s": statistics.median(cost.cpu for cost in found),
    }


if __name__ == "__main__":
    main()
