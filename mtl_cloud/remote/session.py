"""A session on an instance: commands and copies through fabric, a shell through the ssh that is installed."""

from __future__ import annotations

import io
import shlex
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.errors import LaunchError, MissingExtraError
from mtl_cloud.names import container_name
from mtl_cloud.remote.instance import Instance, console_host_keys

__all__ = ["Answer", "Session"]

_CONNECT_S = 30


@dataclass(frozen=True)
class Answer:
    """The result of a command."""

    exit_code: int
    stdout: str
    stderr: str


class Session:
    """The way to one instance. Every connection brings a key of its own.

    Methods raise ``CloudError`` when AWS refuses the key, ``LaunchError`` when the instance cannot be reached or shows
    another host key than it should, ``MissingExtraError`` without fabric.
    """

    def __init__(
        self,
        run_id: str,
        instance: Instance,
        clients: ClientMaker,
        *,
        user: str,
        hosts: Path,
        say: Callable[[str], None],
    ) -> None:
        """``instance`` is the run's. ``hosts`` is a folder for known host keys, one file per instance."""
        self._container = container_name(run_id)
        self._instance = instance
        self._clients = clients
        self._user = user
        self._known = hosts / instance.id
        self._say = say

    def run(self, command: list[str], *, in_container: bool = True, hide: bool = False, pty: bool = False) -> Answer:
        """A command, in the run's container or on the machine; its output goes to ours unless ``hide``."""
        if in_container:
            command = ["sudo", "docker", "exec", *(["-it"] if pty else []), self._container, *command]
        with self._connected() as connection:
            in_stream = None if pty else False
            done = connection.run(shlex.join(command), hide=hide, pty=pty, warn=True, in_stream=in_stream)
        return Answer(done.exited, done.stdout, done.stderr)

    def pull(self, path: PurePosixPath, target: Path, *, in_container: bool = True) -> None:
        """Copy a file or folder into the folder ``target``, as one stream that is unpacked as it comes."""
        argv = ["sudo", "docker", "cp", f"{self._container}:{path}", "-"]
        if not in_container:
            argv = ["sudo", "tar", "-cf", "-", "-C", str(path.parent), path.name]
        with self._connected() as connection:
            channel = connection.transport.open_session()
            channel.exec_command(shlex.join(argv))
            _unpack(channel.makefile("rb"), target)
            if channel.recv_exit_status():
                words = channel.makefile_stderr("r").read().strip()
                raise LaunchError(f"{self._instance.id}: cannot read {path}: {words}")

    def shell(self) -> int:
        """An interactive shell on the machine, by OpenSSH. Its exit code."""
        key, public = _new_key()
        with TemporaryDirectory() as folder:
            file = Path(folder) / "key"
            file.touch(mode=0o600)
            file.write_text(key)
            self._learn_host_keys()
            self._push(public)
            return subprocess.run(self.shell_command(file), check=False).returncode

    def shell_command(self, key: Path) -> list[str]:
        """OpenSSH's command line. A host that is not known yet is accepted once, and held to."""
        options = {
            "ProxyCommand": self._instance.proxy_command,
            "IdentitiesOnly": "yes",
            "HostKeyAlias": self._instance.id,
            "UserKnownHostsFile": str(self._known),
            "StrictHostKeyChecking": "yes" if self._known.exists() else "accept-new",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-i", str(key), *flags, f"{self._user}@{self._instance.id}"]

    # --- how ---

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        fabric, paramiko = _libraries()
        key, public = _new_key()
        self._learn_host_keys()
        self._push(public)
        with _tunnel(self._instance.proxy_command) as tunnel:
            options = {
                "sock": tunnel,
                "pkey": paramiko.Ed25519Key.from_private_key(io.StringIO(key)),
                "allow_agent": False,
                "look_for_keys": False,
            }
            config = fabric.Config(overrides={"load_ssh_configs": False})
            connection = fabric.Connection(
                self._instance.id,
                user=self._user,
                connect_timeout=_CONNECT_S,
                connect_kwargs=options,
                config=config,
            )
            self._hold_to_host_keys(connection.client, paramiko)
            with connection:
                try:
                    connection.open()
                except (OSError, EOFError, paramiko.SSHException) as error:
                    raise self._unreachable(error) from error
                yield connection

    def _unreachable(self, error: Exception) -> LaunchError:
        return LaunchError(
            f"{self._instance.id}: no ssh through Session Manager: {str(error) or type(error).__name__}",
            hint=f"a machine that boots needs a minute; by hand: {self._instance.proxy_command}",
        )

    def _push(self, public: str) -> None:
        with translated("ec2-instance-connect", where=self._instance.id):
            self._clients("ec2-instance-connect").send_ssh_public_key(
                InstanceId=self._instance.id,
                InstanceOSUser=self._user,
                SSHPublicKey=public,
                AvailabilityZone=self._instance.zone,
            )

    def _learn_host_keys(self) -> None:
        """Host keys from AWS's console output replace keys that were trusted before."""
        keys = console_host_keys(self._instance, self._clients)
        if keys:
            self._known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._known.write_text("".join(f"{self._instance.id} {key}\n" for key in keys))
        elif not self._known.exists():
            self._known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._say(
                f"{self._instance.id}: the console does not tell its host keys yet; trusting the one it shows first"
            )

    def _hold_to_host_keys(self, client: Any, paramiko: Any) -> None:
        known, file = self._known.exists(), str(self._known)
        if known:
            client.load_host_keys(file)

        class FirstUse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
            def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
                if known:
                    raise paramiko.SSHException(f"its host key, a {key.get_name()}, is none of those known")
                client.get_host_keys().add(hostname, key.get_name(), key)
                client.get_host_keys().save(file)

        client.set_missing_host_key_policy(FirstUse())


@contextmanager
def _tunnel(command: str) -> Iterator[socket.socket]:
    """The other end of the command's input and output, as OpenSSH makes it; nothing of it is left behind.

    Not paramiko's ``ProxyCommand``: that leaves its process and pipes to the garbage collector.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            end = theirs.fileno()
            process = subprocess.Popen(shlex.split(command), stdin=end, stdout=end, stderr=subprocess.DEVNULL)
        with process:
            try:
                yield ours
            finally:
                process.terminate()


def _unpack(stream: Any, target: Path) -> None:
    """An empty stream, of a command that failed, unpacks to nothing; the exit code tells."""
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(target, filter="data")
    except tarfile.ReadError:
        return


def _libraries() -> tuple[Any, Any]:
    try:
        import fabric
        import paramiko
    except ImportError as error:
        raise MissingExtraError("ssh", "reaching an instance") from error
    return fabric, paramiko


def _new_key() -> tuple[str, str]:
    """A private key as OpenSSH writes it, and its public line."""
    try:
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise MissingExtraError("ssh", "reaching an instance") from error
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return private.decode(), public.decode()
