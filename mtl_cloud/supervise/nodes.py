"""The machines (nodes) that train one run together: their ranks, and the address of the leader."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

__all__ = ["ALONE", "Nodes"]

_FIRST_PORT = 20_000  # below 32,768, from where Linux takes the ports of outgoing connections
_PORTS = 10_000


@dataclass(frozen=True)
class Nodes:
    """This machine's rank among those that train one run. Rank 0 leads: only it claims attempts and writes records."""

    rank: int = 0
    count: int = 1
    leader: str = "localhost"
    """Host name or address at which the others reach rank 0."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def torchrun_flags(self, run_id: str, attempt: int, processes: int) -> list[str]:
        """torchrun's flags for ``processes`` on all machines together.

        The port follows from the attempt: no process left over from an earlier attempt can join, and no machine has to
        tell another the port.
        """
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
