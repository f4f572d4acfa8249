"""The backends that ``compute.backend`` may name: the launcher of each, and whether its machines are rented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["BACKENDS", "Backend"]


class Backend(NamedTuple):
    """One place where runs can run."""

    launcher: str
    """``module:class``, a ``mtl_cloud.launch.Launcher``; imported only when the backend is chosen."""
    is_rented: bool
    """Whether its machines cost money by the hour. False: it uses the submitter's own machine."""


BACKENDS: Final[Mapping[str, Backend]] = {
    "docker": Backend("mtl_cloud.launch.docker:DockerLauncher", is_rented=False),
    "ec2": Backend("mtl_cloud.launch.ec2:Ec2Launcher", is_rented=True),
    "local": Backend("mtl_cloud.launch.local:LocalLauncher", is_rented=False),
    "sagemaker": Backend("mtl_cloud.launch.sagemaker:SageMakerLauncher", is_rented=True),
}
