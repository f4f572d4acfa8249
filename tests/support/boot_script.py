"""The boot script of a run, as its launch template carries it, and its functions, run one at a time.

A function runs in a bash of its own, after the script's variables. The programs that it calls write down their words
and their input, and do nothing else; no program that could change this machine is on its PATH.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ec2_harness import ec2_plan

from mtl_cloud.launch.ec2.request import Template, requests

__all__ = ["KEY", "Call", "boot_script", "calls_of"]

KEY = 16 * "5e"
"""Of the run's group."""
_HARMLESS = ("awk", "cat", "date", "grep", "tr")
_PROGRAMS = r"""
exec 3>&1 1>&2
write_down() { printf '%s\x1f' "$@" "$(cat)" >&3; printf '\x1e' >&3; }
timeout() { shift; "$@"; }
aws() { write_down aws "$@"; }
docker() { write_down docker "$@"; }
"""


class Call(NamedTuple):
    """One call of a program."""

    words: list[str]
    given: str
    """Its standard input."""

    def option(self, name: str) -> str:
        """The word after an option."""
        return self.words[self.words.index(name) + 1]


def boot_script(run_id: str = "digits-1", **compute: Any) -> str:
    template: Any = requests(ec2_plan(run_id, **compute), Template(id="lt-1", key=KEY))["create_launch_template"]
    return b64decode(template["LaunchTemplateData"]["UserData"]).decode()


def calls_of(command: str, script: str) -> list[Call]:
    """What is called by ``command``, a line of bash that may call functions of the script."""
    program = "\n".join([*_variables(script), *_functions(script), _PROGRAMS, command])
    with TemporaryDirectory() as folder:
        for name in _HARMLESS:
            (Path(folder) / name).symlink_to(str(shutil.which(name)))
        done = subprocess.run(
            ["/bin/bash", "-c", program],
            env={"PATH": folder},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    calls = [call.split("\x1f")[:-1] for call in done.stdout.split("\x1e")[:-1]]
    return [Call(words, given) for *words, given in calls]


def _variables(script: str) -> list[str]:
    return re.findall(r"^[A-Z_]+=.*$", script, re.MULTILINE)


def _functions(script: str) -> Iterator[str]:
    """Their lines: one, or up to the first closing brace at a line's start."""
    inside = False
    for line in script.splitlines():
        starts = re.match(r"\w+\(\) \{", line) is not None
        if inside or starts:
            yield line
        inside = line != "}" if inside else starts and not line.endswith("}")
