"""exec, pull and ssh against a real sshd: only AWS's side of the tunnel, sudo and docker are stood in for.

The stand-in for docker has one container, under the name that the run's boot script gives it.

The stand-in for ``aws ssm start-session`` becomes a sshd that serves its input and output, which the plugin joins to
the port of one; it refuses any other arguments than those of the tunnel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from boot_script import boot_script, calls_of
from ec2_harness import ec2_plan
from run_harness import make_run
from waiting import PATIENCE_S

from mtl_cloud import cli
from mtl_cloud.errors import LaunchError
from mtl_cloud.remote import Instance, Session, find_instance
from mtl_cloud.remote.instance import console_host_keys, require_tools
from mtl_cloud.storage import FolderStorage

pytestmark = pytest.mark.skipif(shutil.which("sshd", path="/usr/sbin:/usr/bin") is None, reason="needs openssh-server")

RUN = "voc-3fa1c9"
INSTANCE = Instance("i-0123456789abcdef0", "us-east-1a", "us-east-1")
ME = os.environ.get("USER") or "root"
TUNNEL = f"""#!{sys.executable}
import os, sys
expected = "ssm start-session --region us-east-1 --target {INSTANCE.id} --document-name AWS-StartSSHSession"
if sys.argv[1:] != [*expected.split(), "--parameters", "portNumber=22"]:
    sys.exit("unexpected: " + " ".join(sys.argv))
os.execv("/usr/sbin/sshd", ["/usr/sbin/sshd", "-i", "-f", "CONFIG"])
"""
SUDO = '#!/bin/sh\nexec "$@"\n'
DOCKER = """#!/bin/sh
case "$1 $3" in
  "cp -") container=${2%%:*} path=${2#*:} ;;
  "exec "*) container=$2 ;;
  *) echo "unexpected: $*" >&2; exit 64 ;;
esac
if [ "$container" != RUNNING ]; then
  echo "Error response from daemon: No such container: $container" >&2; exit 1
fi
[ "$1" = exec ] || exec tar -cf - -C "$(dirname "$path")" "$(basename "$path")"
shift 2; IN_CONTAINER=yes exec "$@"
"""
CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
SetEnv PATH={bin}:/usr/bin:/bin
"""


class Aws:
    """AWS as far as a session asks it: the pushed key is let in, as EC2 Instance Connect does for a minute."""

    region = "us-east-1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = ""
        self.pushed: list[dict[str, str]] = []

    def __call__(self, service: str, *, retries: str = "standard") -> Any:
        return self

    def send_ssh_public_key(self, **request: str) -> None:
        self.pushed.append(request)
        (self.folder / "authorized").write_text(request["SSHPublicKey"] + "\n")

    def get_console_output(self, *, InstanceId: str, Latest: bool) -> dict[str, str]:  # noqa: N803
        return {"Output": self.console}

    def describe_instances(self, *, Filters: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        assert Filters[0] == {"Name": "tag:mtl-cloud:run", "Values": [RUN]}
        found = {"LaunchTime": datetime(2026, 1, 1, tzinfo=UTC), "Placement": {"AvailabilityZone": INSTANCE.zone}}
        return {"Reservations": [{"Instances": [{"InstanceId": INSTANCE.id, **found}]}]}

    def tell_host_keys(self, *lines: str) -> None:
        block = "\n".join(lines)
        self.console = f"[ 9.1] boot\n-----BEGIN SSH HOST KEY KEYS-----\n{block}\n-----END SSH HOST KEY KEYS-----\nx"


def container_of(run_id: str) -> str:
    """The container that the run's instance starts."""
    (run,) = calls_of("run", boot_script(run_id))
    return run.option("--name")


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """A machine with an sshd, and the way to it on PATH."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    config = tmp_path / "config"
    programs = {
        "aws": TUNNEL.replace("CONFIG", str(config)),
        "session-manager-plugin": "#!/bin/sh\n",
        "sudo": SUDO,
        "docker": DOCKER.replace("RUNNING", container_of(RUN)),
    }
    for name, text in programs.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "host_key")], check=True)
    (tmp_path / "authorized").touch()
    config.write_text(CONFIG.format(folder=tmp_path, bin=binaries))
    if os.geteuid() == 0:  # else sshd separates no privileges, and needs no folder for it
        Path("/run/sshd").mkdir(exist_ok=True)
    return Aws(tmp_path)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def session(aws: Aws, tmp_path: Path, told: list[str]) -> Session:
    return Session(RUN, INSTANCE, aws, user=ME, hosts=tmp_path / "hosts", say=told.append)


def test_a_command_runs_in_the_container_with_its_words_whole(session: Session) -> None:
    script = 'echo "$IN_CONTAINER" "$1"; echo bad >&2; exit 3'
    answer = session.run(["sh", "-c", script, "sh", "it's $HOME; two  blanks"], hide=True)
    assert (answer.exit_code, answer.stdout, answer.stderr) == (3, "yes it's $HOME; two  blanks\n", "bad\n")


def test_a_container_of_another_name_is_not_there(aws: Aws, tmp_path: Path, told: list[str]) -> None:
    other = Session("voc-000000", INSTANCE, aws, user=ME, hosts=tmp_path / "hosts", say=told.append)
    answer = other.run(["true"], hide=True)
    assert (answer.exit_code, "No such container" in answer.stderr) == (1, True)
    with pytest.raises(LaunchError, match=f"No such container: {container_of('voc-000000')}"):
        other.pull(PurePosixPath("/etc/hostname"), tmp_path / "here")


def test_exec_and_pull_find_the_container_from_the_runs_id_alone(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mtl_cloud.aws.AwsClients", lambda region: aws)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    make_run(FolderStorage(tmp_path / "runs"), run_id=RUN, backend="ec2", compute=ec2_plan().compute)
    (tmp_path / "trace.json").write_text("{}")
    reach = ["--storage", str(tmp_path / "runs"), "--user", ME]
    assert cli.main(["exec", RUN, *reach, "--json", "--", "sh", "-c", "echo in:$IN_CONTAINER"]) == 0
    assert json.loads(capsys.readouterr().out)["stdout"] == "in:yes\n"
    assert cli.main(["pull", RUN, str(tmp_path / "trace.json"), str(tmp_path / "here"), *reach]) == 0
    assert (tmp_path / "here/trace.json").read_text() == "{}"


def test_a_command_on_the_machine_is_not_in_the_container(session: Session) -> None:
    assert session.run(["sh", "-c", "echo in:$IN_CONTAINER"], in_container=False, hide=True).stdout == "in:\n"


def test_every_connection_has_a_key_of_its_own_that_lies_on_no_disk(session: Session, aws: Aws, tmp_path: Path) -> None:
    for _ in range(2):
        session.run(["true"], hide=True)
    first, second = aws.pushed
    assert first["SSHPublicKey"] != second["SSHPublicKey"]
    assert first["SSHPublicKey"].startswith("ssh-ed25519 ")
    assert {name: first[name] for name in first if name != "SSHPublicKey"} == {
        "InstanceId": INSTANCE.id,
        "InstanceOSUser": ME,
        "AvailabilityZone": "us-east-1a",
    }
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "host_key"]
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in kept)


def test_the_first_host_key_is_trusted_aloud_and_then_held_to(
    session: Session, tmp_path: Path, told: list[str]
) -> None:
    session.run(["true"], hide=True)
    session.run(["true"], hide=True)
    assert len(told) == 1
    assert "trusting the one it shows first" in told[0]
    other = _public(_new_host_key(tmp_path))
    (tmp_path / "hosts" / INSTANCE.id).write_text(f"{INSTANCE.id} {other}\n")
    with pytest.raises(LaunchError, match=r"[Hh]ost key"):
        session.run(["true"], hide=True)


def test_the_consoles_host_key_is_believed_and_another_one_refused(
    session: Session, aws: Aws, tmp_path: Path, told: list[str]
) -> None:
    aws.tell_host_keys(_public(tmp_path / "host_key.pub") + " root@ip-10-0-0-1")
    assert session.run(["true"], hide=True).exit_code == 0
    assert told == []
    for kind in ("ed25519", "ecdsa"):
        aws.tell_host_keys(_public(_new_host_key(tmp_path, kind)))
        with pytest.raises(LaunchError, match=r"[Hh]ost key"):
            session.run(["true"], hide=True)


def _new_host_key(folder: Path, kind: str = "ed25519") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(folder / kind)], check=True)
    return folder / f"{kind}.pub"


def _public(file: Path) -> str:
    return " ".join(file.read_text().split()[:2])


@pytest.mark.parametrize("in_container", [True, False])
def test_files_and_folders_are_pulled_byte_by_byte(session: Session, tmp_path: Path, in_container: bool) -> None:
    there = tmp_path / "there" / "a folder"
    there.mkdir(parents=True)
    data = os.urandom(300_000)
    (there / "trace.bin").write_bytes(data)
    session.pull(PurePosixPath(there), tmp_path / "here", in_container=in_container)
    session.pull(PurePosixPath(there / "trace.bin"), tmp_path / "here", in_container=in_container)
    assert (tmp_path / "here/a folder/trace.bin").read_bytes() == (tmp_path / "here/trace.bin").read_bytes() == data


def test_what_is_not_there_is_told_in_the_machines_words(session: Session, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"cannot read /not/there: .*No such file"):
        session.pull(PurePosixPath("/not/there"), tmp_path / "here")


def test_a_shell_goes_through_the_same_tunnel(session: Session, aws: Aws, tmp_path: Path) -> None:
    command = session.shell_command(tmp_path / "key")
    assert command[:5] == ["ssh", "-F", "none", "-i", str(tmp_path / "key")]
    assert f"ProxyCommand={INSTANCE.proxy_command}" in command
    assert "StrictHostKeyChecking=accept-new" in command
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    aws.send_ssh_public_key(SSHPublicKey=(tmp_path / "key.pub").read_text())
    (tmp_path / "hosts").mkdir()
    done = subprocess.run([*command, "echo", "hello"], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert INSTANCE.id in (tmp_path / "hosts" / INSTANCE.id).read_text()
    assert "StrictHostKeyChecking=yes" in session.shell_command(tmp_path / "key")


def test_an_instance_that_does_not_answer_is_told_with_the_way_to_try(session: Session, aws: Aws) -> None:
    (aws.folder / "bin" / "aws").write_text("#!/bin/sh\nexit 255\n")
    with pytest.raises(LaunchError, match="no ssh through Session Manager") as caught:
        session.run(["true"], hide=True)
    assert caught.value.hint is not None
    assert INSTANCE.proxy_command in caught.value.hint


def test_the_newest_running_instance_of_the_run_is_found() -> None:
    def instance(name: str, day: int) -> dict[str, Any]:
        launched = datetime(2026, 1, day, tzinfo=UTC)
        return {"InstanceId": name, "LaunchTime": launched, "Placement": {"AvailabilityZone": "us-east-1b"}}

    class Ec2(Aws):
        def describe_instances(self, *, Filters: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
            assert Filters[0] == {"Name": "tag:mtl-cloud:run", "Values": ["voc-1"]}
            return {"Reservations": [{"Instances": [instance("i-old", 1)]}, {"Instances": [instance("i-new", 2)]}]}

    assert find_instance("voc-1", Ec2(Path())) == Instance("i-new", "us-east-1b", "us-east-1")


def test_a_console_without_keys_teaches_nothing() -> None:
    assert console_host_keys(INSTANCE, Aws(Path())) == []


def test_a_missing_tool_is_named_with_the_place_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="needs 'aws'"):
        require_tools()


def test_a_run_on_this_machine_is_not_reached_by_ssh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(FolderStorage(tmp_path))
    assert cli.main(["exec", run.run_id, "--storage", str(tmp_path), "--", "true"]) == 2
    assert "runs on 'local'" in capsys.readouterr().err
