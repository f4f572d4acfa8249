"""SageMaker's container contract, translated for the supervisor.

SageMaker mounts ``/opt/ml``, which describes the hosts (``input/config/resourceconfig.json``), the data channels
(``inputdataconfig.json``, data below ``input/data/``) and their URLs (``hyperparameters.json``, where our launcher puts
them). A container must stop within 120 s of SIGTERM, exit with 0 on success, and otherwise write the reason to
``output/failure``. Source: "Using your own training container" in the SageMaker developer guide.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_cloud.errors import LaunchError
from mtl_cloud.names import ENV_INPUTS
from mtl_cloud.supervise.nodes import Nodes

__all__ = ["SageMakerContainer"]

_FAILURE_BYTES = 1024
"""``FailureReason`` shows this much of ``output/failure``."""


@dataclass(frozen=True)
class SageMakerContainer:
    """The files by which SageMaker and one container communicate. ``root`` is ``/opt/ml``."""

    root: Path

    def nodes(self) -> Nodes:
        """Every container gets the same list of hosts, so all agree that the first by name leads."""
        resources = self._config("resourceconfig.json")
        hosts = sorted(map(str, resources["hosts"]))
        return Nodes(hosts.index(str(resources["current_host"])), len(hosts), hosts[0])

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` with the network interface and the local paths of the inputs."""
        interface = str(self._config("resourceconfig.json").get("network_interface_name", "eth0"))
        defaults = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        inputs = self._inputs()
        return {**defaults, **environ, **({ENV_INPUTS: json.dumps(inputs)} if inputs else {})}

    def report_failure(self, message: str) -> None:
        """Write the reason for an exit code other than 0."""
        with contextlib.suppress(OSError):  # the exit code and the run record tell it too
            path = self.root / "output" / "failure"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(message.encode()[:_FAILURE_BYTES])

    def _inputs(self) -> dict[str, str]:
        """The local path of each channel, by URL."""
        channels = self._config("inputdataconfig.json")
        urls = self._config("hyperparameters.json")
        return {str(urls[name]): str(self._place(name, str(urls[name]))) for name in channels if name in urls}

    def _place(self, channel: str, url: str) -> Path:
        """SageMaker puts a prefix into the channel's folder, and a single object into a file in that folder."""
        folder = self.root / "input" / "data" / channel
        file = folder / url.rstrip("/").rpartition("/")[2]
        return file if file.is_file() else folder

    def _config(self, name: str) -> dict[str, Any]:
        path = self.root / "input" / "config" / name
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            if name != "resourceconfig.json":  # absent without channels, or without hyperparameters
                return {}
            message = f"{path}: does not exist, so SageMaker did not start this container"
            raise LaunchError(message, hint="start it without --sagemaker") from error
        except ValueError as error:
            raise LaunchError(f"{path}: not JSON ({error})") from error
        return dict(document)
