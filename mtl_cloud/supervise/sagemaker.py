"""SageMaker's container contract, turned into the supervisor's own.

SageMaker mounts ``/opt/ml`` and says there who the hosts are (``input/config/resourceconfig.json``), which channels it
brought (``inputdataconfig.json``, below ``input/data/``) and what they hold (``hyperparameters.json``: our launcher
names the URL of each). Of the container it wants SIGTERM obeyed within 120 s, exit code 0 for success, and otherwise
the reason in ``output/failure``. Source: "Using your own training container" in the SageMaker developer guide.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_cloud.errors import LaunchError
from mtl_cloud.runs.scratch import ENV_INPUTS
from mtl_cloud.supervise.nodes import Nodes

__all__ = ["SageMakerContainer"]

_FAILURE_BYTES = 1024
"""As much of ``output/failure`` as ``FailureReason`` shows."""


@dataclass(frozen=True)
class SageMakerContainer:
    """What SageMaker says to one container, and how it is answered. ``root`` is ``/opt/ml``."""

    root: Path

    def nodes(self) -> Nodes:
        """Every container is told the same hosts, so the first by name leads without a word between them."""
        resources = self._config("resourceconfig.json")
        hosts = sorted(map(str, resources["hosts"]))
        return Nodes(hosts.index(str(resources["current_host"])), len(hosts), hosts[0])

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` with what the trainer must know: its network interface, and where its inputs lie."""
        interface = str(self._config("resourceconfig.json").get("network_interface_name", "eth0"))
        told = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        inputs = self._inputs()
        return {**told, **environ, **({ENV_INPUTS: json.dumps(inputs)} if inputs else {})}

    def report_failure(self, message: str) -> None:
        """Say why the container is about to exit with a code other than 0."""
        with contextlib.suppress(OSError):  # the exit code says it too, and the record says more
            path = self.root / "output" / "failure"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(message.encode()[:_FAILURE_BYTES])

    def _inputs(self) -> dict[str, str]:
        """URL -> where it lies here, of each channel."""
        channels = self._config("inputdataconfig.json")
        urls = self._config("hyperparameters.json")
        return {str(urls[name]): str(self._place(name, str(urls[name]))) for name in channels if name in urls}

    def _place(self, channel: str, url: str) -> Path:
        """A prefix becomes the channel's folder, one object a file in it."""
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
            message = f"{path}: is not there, so this is no container that SageMaker started"
            raise LaunchError(message, hint="start it without --sagemaker") from error
        except ValueError as error:
            raise LaunchError(f"{path}: not JSON ({error})") from error
        return dict(document)
