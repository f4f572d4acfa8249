"""Launchers, one for each backend, named by strings here and imported on demand."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.base import (
    BackendState,
    Launcher,
    MachineNews,
    MachineWatch,
    RunHandle,
    Submission,
    Watchable,
)

__all__ = [
    "LAUNCHERS",
    "BackendState",
    "Launcher",
    "MachineNews",
    "MachineWatch",
    "RunHandle",
    "Submission",
    "Watchable",
    "get_launcher",
]

LAUNCHERS: Final[dict[str, str]] = {
    "docker": "mtl_cloud.launch.docker:DockerLauncher",
    "ec2": "mtl_cloud.launch.ec2:Ec2Launcher",
    "local": "mtl_cloud.launch.local:LocalLauncher",
    "sagemaker": "mtl_cloud.launch.sagemaker:SageMakerLauncher",
}


def get_launcher(backend: str) -> Launcher:
    """The launcher of ``compute.backend``. Raises ``LaunchError`` for one that this version does not have."""
    if backend not in LAUNCHERS:
        raise LaunchError(
            f"compute.backend: this version of mtl-cloud cannot start runs on {backend!r}",
            hint=f"it can on: {', '.join(LAUNCHERS)}",
        )
    module, name = LAUNCHERS[backend].split(":")
    launcher: Launcher = getattr(import_module(module), name)()
    return launcher
