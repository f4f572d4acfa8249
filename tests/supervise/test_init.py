"""Process 1 of a container, in a PID namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time
from mtl_cloud.supervise.init import become_init
become_init()
assert (os.getpid(), os.getppid()) == (2, 1)
{work}
"""
ORPHAN = """
read_end, write_end = os.pipe()
if os.fork() == 0:
    orphan = os.fork()
    if orphan == 0:
        os.close(write_end)
        os.read(read_end, 1)  # until process 2 says so
    os._exit(0)
os.close(read_end)
os.wait()
def others():
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) > 2)
(orphan,) = others()
assert open(f"/proc/{orphan}/stat").read().rpartition(")")[2].split()[1] == "1"  # its parent is process 1 now
os.write(write_end, b"x")
while others():
    time.sleep(0.01)
sys.exit(5)
"""


def _can_unshare() -> bool:
    command = ["unshare", "--pid", "--fork", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not _can_unshare(), reason="needs leave to make a PID namespace")
@pytest.mark.parametrize(
    ("work", "code"), [("sys.exit(75)", 75), ("os.kill(2, 9)", 137), (ORPHAN, 5)], ids=["exit", "signal", "orphan"]
)
def test_it_ends_as_its_child_does_and_reaps_every_orphan(work: str, code: int) -> None:
    container = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", PROGRAM.replace("{work}", work)]
    done = subprocess.run(container, check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
