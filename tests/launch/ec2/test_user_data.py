"""The boot script as text: whole, clean, quoted. What it does is shown by running it, in ``test_boot.py``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mtl_cloud.launch.ec2.user_data import Boot, user_data

BOOT = Boot(
    run_id="digits-1",
    group="mtl-cloud-digits-1",
    group_role="arn:aws:iam::1:role/r",
    key=16 * "0f",
    region="us-east-1",
    storage="s3://b/r",
    image="i:1",
    gpus=8,
)
EXPIRY = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_first_command_arms_the_machines_end() -> None:
    lines = user_data(BOOT, EXPIRY).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[1] == 'shutdown -P "+$(((1767225600 - $(date +%s)) / 60))" || shutdown -P now'


def test_values_cannot_break_out_of_their_quotes() -> None:
    boot = replace(BOOT, image="$(touch /pwned)'; `id`")
    first = "\n".join(user_data(boot, EXPIRY).splitlines()[2:13])
    printed = subprocess.run(["bash", "-c", first + '\nprintf %s "$IMAGE"'], capture_output=True, text=True, check=True)
    assert printed.stdout == boot.image


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    command = [shellcheck, "--shell=bash", "--exclude=SC2317,SC2329", "-"]  # what traps call looks unreachable to it
    done = subprocess.run(command, input=user_data(BOOT, EXPIRY), capture_output=True, text=True, check=False)
    assert done.stdout == ""
