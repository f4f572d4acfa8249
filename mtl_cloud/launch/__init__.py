"""Launchers: one a backend, named here by strings and imported only when one is chosen."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from mtl_cloud.errors import LaunchError
from mtl_cloud.launch.base import BackendState, Launcher, RunHandle, Submission

__all__ = ["LAUNCHERS", "BackendState", "Launcher", "RunHandle", "Submission", "get_launcher"]

LAUNCHERS: Final[dict[str, str]] = {"local": "mtl_cloud.launch.local:LocalLauncher"}


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
