"""Several processes of a test, connected by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fork_harness import fork_server
from torch.multiprocessing.spawn import start_processes

from mtl_cloud.train.distributed import ProcessGroup

__all__ = ["in_processes"]


def _enter(rank: int, world: int, folder: str, work: Callable[[ProcessGroup], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(work(ProcessGroup(rank, world, torch.device("cpu"))), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_processes(world: int, folder: Path, work: Callable[[ProcessGroup], Any]) -> list[Any]:
    """The result of ``work`` in each of ``world`` gloo processes, forked from a process with the trainer's imports."""
    method = fork_server().get_start_method()
    start_processes(_enter, args=(world, str(folder), work), nprocs=world, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
