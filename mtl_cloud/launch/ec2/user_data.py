"""The script that an instance runs at its first boot, with the run's names put ahead of it."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["MAX_USER_DATA", "Boot", "user_data"]

MAX_USER_DATA: Final = 16384
"""Bytes that EC2 takes, before base64."""
_COMMENT = re.compile(r"^ *#.*\n|^\n", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Boot:
    """What the script has to know. No secret of the job is among it: whoever may describe the machine can read it."""

    run_id: str
    group: str
    group_role: str
    """ARN of the role with which the machine closes it."""
    key: str = field(repr=False)
    """Of the group. To other runs' machines it is a secret: they may describe nothing."""
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
    """The script. Its first command arms the machine's own end, at ``expires_at``; comments are left out."""
    expiry = int(expires_at.timestamp())
    wall = f'shutdown -P "+$((({expiry} - $(date +%s)) / 60))" || shutdown -P now'
    names = [f"{name.upper()}={shlex.quote(str(value))}" for name, value in asdict(boot).items()]
    record = f"RECORD={shlex.quote(f'{boot.storage}/runs/{boot.run_id}')}"
    return "\n".join(["#!/bin/bash", wall, *names, record, _COMMENT.sub("", _body())])


@cache
def _body() -> str:
    return files(__package__).joinpath("user_data.sh").read_text(encoding="utf-8")
