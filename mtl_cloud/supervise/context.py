"""The inputs of a supervisor: clock, intervals, scratch folder, environment and stop conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtl_cloud.clock import Clock
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.supervise.nodes import ALONE, Nodes
from mtl_cloud.supervise.preemption import InstanceMetadata
from mtl_cloud.supervise.stop_conditions import Watcher

__all__ = ["SupervisorContext"]


@dataclass(frozen=True, kw_only=True)
class SupervisorContext:
    """Everything that a supervisor needs from its machine."""

    scratch: Path
    """Local folder of the run. Each attempt has a subfolder, which keeps its log."""
    environ: Mapping[str, str]
    """Environment that the trainer inherits; the plan's ``env`` overrides it."""
    watchers: Sequence[Watcher] = ()
    """Further stop conditions, such as signals. Cancel, deadline, budget and ownership are always watched."""
    metadata: InstanceMetadata | None = None
    """The EC2 metadata service, which announces interruptions; None outside EC2."""
    nodes: Nodes = ALONE
    """The machines that train together, and the rank of this one."""
    echo: bool = False
    """Also copy the trainer's log to standard output, for backends that store container output."""
    settings: SupervisorOptions = field(default_factory=SupervisorOptions)
    clock: Clock = field(default_factory=Clock)

    def now(self) -> str:
        """The current time in ISO 8601, as records store it."""
        return self.clock.now().isoformat(timespec="milliseconds")
