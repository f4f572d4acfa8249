"""Several machines that train as one: who leads, and where the others meet it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

__all__ = ["ALONE", "Nodes"]

_FIRST_PORT = 20_000  # below 32,768, from where Linux takes the ports of outgoing connections
_PORTS = 10_000


@dataclass(frozen=True)
class Nodes:
    """This machine among those that train one run together. Machine 0 leads: it alone claims and writes."""

    rank: int = 0
    count: int = 1
    leader: str = "localhost"
    """Name or address under which the others reach machine 0."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def torchrun_flags(self, run_id: str, attempt: int, processes: int) -> list[str]:
        """For ``processes`` over all machines. Each attempt has a port of its own: no leftover of the one before can
        join it, and no machine has to tell another."""
        if self.count == 1:
            return ["--standalone", f"--nproc-per-node={processes}"]
        port = _FIRST_PORT + zlib.crc32(f"{run_id}/{attempt}".encode()) % _PORTS
        return [
            f"--nnodes={self.count}",
            f"--node-rank={self.rank}",
            f"--master-addr={self.leader}",
            f"--master-port={port}",
            f"--nproc-per-node={processes // self.count}",
        ]


ALONE = Nodes()
