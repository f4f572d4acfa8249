"""The instance of a run, the tunnel to it, and its host keys as AWS shows them."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.errors import LaunchError
from mtl_cloud.names import RUN_TAG, SSH_DOCUMENT

__all__ = ["Instance", "console_host_keys", "find_instance", "require_tools"]

_KEYS = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)  # cloud-init's
_KEY = re.compile(r"((?:ssh|ecdsa)-[\w-]+) ([A-Za-z0-9+/=]+)")
_TOOLS = {
    "aws": "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html",
    "session-manager-plugin": "https://docs.aws.amazon.com/systems-manager/latest/userguide/install-plugin.html",
}


@dataclass(frozen=True)
class Instance:
    """A running instance of a run."""

    id: str
    zone: str
    region: str

    @property
    def proxy_command(self) -> str:
        """A command whose input and output are the instance's ssh port."""
        argv = ["aws", "ssm", "start-session", "--region", self.region, "--target", self.id]
        return shlex.join([*argv, "--document-name", SSH_DOCUMENT, "--parameters", "portNumber=22"])


def find_instance(run_id: str, clients: ClientMaker) -> Instance:
    """The newest that runs. Raises ``LaunchError`` when none does."""
    filters = [{"Name": f"tag:{RUN_TAG}", "Values": [run_id]}, {"Name": "instance-state-name", "Values": ["running"]}]
    with translated("ec2", where=run_id):
        answer = clients("ec2").describe_instances(Filters=filters)
    found = [instance for held in answer["Reservations"] for instance in held["Instances"]]
    if not found:
        raise LaunchError(f"{run_id}: no instance of it runs at present", hint=f"mtl-cloud status {run_id}")
    newest = max(found, key=lambda instance: instance["LaunchTime"])
    return Instance(newest["InstanceId"], newest["Placement"]["AvailabilityZone"], clients.region)


def console_host_keys(instance: Instance, clients: ClientMaker) -> list[str]:
    """``type base64`` of each host key that cloud-init wrote to the console; none while, or where, it is silent."""
    with translated("ec2", where=instance.id):
        answer = clients("ec2").get_console_output(InstanceId=instance.id, Latest=True)
    newest = _KEYS.findall(answer.get("Output", ""))[-1:]
    return [" ".join(key) for block in newest for key in _KEY.findall(block)]


def require_tools() -> None:
    """Raises ``LaunchError`` naming what the tunnel needs and this machine lacks."""
    for tool, where in _TOOLS.items():
        if shutil.which(tool) is None:
            raise LaunchError(f"the tunnel to the instance needs {tool!r}, which is not installed", hint=where)
