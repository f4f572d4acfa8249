"""The script that an instance runs at its first boot.

``user_data.sh`` is its text. The values of a run precede it as variables. Names that other programs use too stand in it
as ``@NAME@``, and are filled in here from where they are defined.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final

from mtl_cloud.names import KEY_TAG, BootPhase, SupervisorExit, SupervisorFlag, container_name
from mtl_cloud.runs.paths import RunPaths
from mtl_cloud.runs.schema import BootRecord
from mtl_cloud.runs.supervisor_options import SupervisorOptions

__all__ = ["MAX_USER_DATA", "Boot", "shared_names", "user_data"]

MAX_USER_DATA: Final = 16384
"""Bytes that EC2 takes, before base64."""
_GRACE_S = 100
"""The trainer's share of the 120 s between a spot notice and the end of the machine."""
_STOP_TIMEOUT_S = _GRACE_S + 15
"""The rest is for the last log lines and the exit record."""
_SHARED_NAME = re.compile("@([A-Z_]+)@")
_COMMENT = re.compile(r"^ *#.*\n|^\n", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Boot:
    """Values of one run. No secret of the job is among them: everyone who may describe the machine can read them."""

    run_id: str
    group: str
    group_role: str
    """ARN of the role with which the machine closes it."""
    key: str = field(repr=False)
    """The group's key. It is a secret to other runs' machines, which may not describe anything."""
    region: str
    storage: str
    """``s3://bucket/prefix``, without a slash at its end."""
    image: str
    gpus: int
    on_demand_after: int = 0
    """Interruptions after which the group buys on demand; 0 for never."""
    max_failures: int = 3
    """Machines that may fail to boot before no other is asked for."""


def user_data(boot: Boot, expires_at: datetime) -> str:
    """The script. Its first command schedules the machine's own shutdown at ``expires_at``; comments are left out."""
    expiry = int(expires_at.timestamp())
    timer = f'shutdown -P "+$((({expiry} - $(date +%s)) / 60))" || shutdown -P now'
    values = [f"{name.upper()}={shlex.quote(str(value))}" for name, value in asdict(boot).items()]
    return "\n".join(["#!/bin/bash", timer, *values, _body()])


@cache
def _body() -> str:
    """The script's own text with its shared names filled in, which is the same for every run."""
    text = files(__package__).joinpath("user_data.sh").read_text(encoding="utf-8")
    names = shared_names()
    return _SHARED_NAME.sub(lambda match: names[match[1]], _COMMENT.sub("", text))


def shared_names() -> dict[str, str]:
    """``@NAME@`` of the script → its text, in which the script's variables stand for the values of a run."""
    paths = RunPaths("$RUN_ID")
    boot_key, boot_log_key = paths.boot("$INSTANCE"), paths.boot_log("$INSTANCE")
    return {
        "BOOTS_KEY": paths.boots,
        "BOOT_KEY": boot_key,
        "BOOT_SUFFIX": PurePosixPath(boot_key).suffix,
        "BOOT_LOG_KEY": boot_log_key,
        "BOOT_LOG_SUFFIX": PurePosixPath(boot_log_key).suffix,
        "BOOT_RECORD": _boot_record(),
        "CONTAINER": container_name("$RUN_ID"),
        "KEY_TAG": KEY_TAG,
        "STOP_TIMEOUT_S": str(_STOP_TIMEOUT_S),
        "SUPERVISOR_ARGUMENTS": " ".join(_supervisor_arguments()),
        **{f"PHASE_{phase.name}": phase for phase in BootPhase},
        **{f"EXIT_{code.name}": str(code) for code in SupervisorExit},
    }


def _boot_record() -> str:
    """The JSON of a ``BootRecord``, on one line."""
    record = BootRecord(
        instance="$INSTANCE",
        instance_type="$TYPE",
        zone="$ZONE",
        market="$MARKET",
        phase="$phase",
        message="$message",
        started_at="$STARTED",
        at="$now",
    )
    return json.dumps(json.loads(record.encode()))


def _supervisor_arguments() -> list[str]:
    run = [SupervisorFlag.STORAGE, '"$STORAGE"', SupervisorFlag.RUN_ID, '"$RUN_ID"']
    return [*run, SupervisorFlag.SPOT_NOTICES, *SupervisorOptions(grace_s=_GRACE_S).to_flags()]
