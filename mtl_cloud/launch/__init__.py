"""Launchers, one for each backend, imported only when the backend is chosen."""

from __future__ import annotations

from importlib import import_module

from mtl_cloud.backends import BACKENDS
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
    "BackendState",
    "Launcher",
    "MachineNews",
    "MachineWatch",
    "RunHandle",
    "Submission",
    "Watchable",
    "find_launcher",
    "get_launcher",
]


def get_launcher(backend: str) -> Launcher:
    """The launcher of ``compute.backend``. Raises ``LaunchError`` for one that this version does not have."""
    if backend not in BACKENDS:
        raise LaunchError(
            f"compute.backend: this version of mtl-cloud cannot start runs on {backend!r}",
            hint=f"it can on: {', '.join(BACKENDS)}",
        )
    module, name = BACKENDS[backend].launcher.split(":")
    launcher: Launcher = getattr(import_module(module), name)()
    return launcher


def find_launcher(backend: str) -> Launcher | None:
    """``get_launcher`` for a recorded run: None for a backend that this version does not have."""
    return get_launcher(backend) if backend in BACKENDS else None
