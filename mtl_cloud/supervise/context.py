"""What a supervisor is given: time, intervals, a folder, an environment, reasons to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtl_cloud.clock import Clock
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.supervise.nodes import ALONE, Nodes
from mtl_cloud.supervise.preemption import InstanceMetadata
from mtl_cloud.supervise.stop_conditions import Watcher

__all__ = ["Surroundings"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The machine and the moment, as seen by a supervisor."""

    scratch: Path
    """A local folder for this run; each attempt gets a subfolder, where its log stays."""
    environ: Mapping[str, str]
    """What the trainer inherits; the plan's ``env`` goes above it."""
    watchers: Sequence[Watcher] = ()
    """Reasons to stop beside cancel, deadline, budget and a newer owner: signals."""
    metadata: InstanceMetadata | None = None
    """Where EC2 gives notice of what it does to this machine; None elsewhere."""
    nodes: Nodes = ALONE
    """The machines that train together, and which of them this is."""
    echo: bool = False
    """Copy the trainer's log to standard output too, for a backend that keeps what its containers print."""
    settings: SupervisorOptions = field(default_factory=SupervisorOptions)
    clock: Clock = field(default_factory=Clock)

    def now(self) -> str:
        """The time as records hold it."""
        return self.clock.now().isoformat(timespec="milliseconds")
