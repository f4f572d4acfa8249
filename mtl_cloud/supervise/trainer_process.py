"""The trainer's process tree, started under the guard."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.supervise import guard
from mtl_cloud.supervise.nodes import ALONE, Nodes

__all__ = ["TrainerProcess", "trainer_command"]


def trainer_command(plan: PlanRecord, python: str, *, nodes: Nodes = ALONE, attempt: int = 1) -> list[str]:
    """The plan's command on this machine: ``python`` is this interpreter, and torchrun starts several processes."""
    program, *arguments = plan.command
    is_python = program == "python"
    if plan.processes == 1:
        return [python, *arguments] if is_python else plan.command
    flags = nodes.torchrun_flags(plan.run_id, attempt, plan.processes)
    torchrun = [python, "-m", "torch.distributed.run", *flags]
    return [*torchrun, *arguments] if is_python else [*torchrun, "--no-python", *plan.command]


class TrainerProcess:
    """A context manager that runs the trainer. After it, no process of the trainer's tree is left.

    Standard output and error are appended to the file ``log``: a file never blocks the trainer while the storage
    stalls, and it survives the death of trainer and supervisor.
    """

    def __init__(self, command: list[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, *command],
                env=env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._lifeline = cast("IO[bytes]", self._guard.stdin)

    def wait(self, timeout_s: float | None) -> int | None:
        """The exit code (negative: the signal that ended it), or None after ``timeout_s``. None waits without limit."""
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Send SIGTERM to the trainer's process group; torchrun forwards it to every worker."""
        self._guard.terminate()

    def kill(self) -> None:
        """Send SIGKILL to every process of the tree, by closing the guard's lifeline."""
        self._lifeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._guard.wait()
