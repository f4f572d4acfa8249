"""The command line as others script against it: names, options, help, exit codes, and what starting it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mtl_cloud import cli

RUN = ["--debug", "--json", "--storage", "[RUN]"]
IMAGE = ["--base", "--debug", "--json", "--platform"]
SURFACE = {
    "init": ["--dataset", "--debug", "--force", "--json", "--name", "--uri", "[FILE]"],
    "validate": ["--debug", "--json", "--set", "FILE..."],
    "schema": ["--debug", "--format", "--json"],
    "plan": ["--debug", "--json", "--offline", "--requests", "--run-id", "--set", "FILE"],
    "anchors": ["--debug", "--json", "--seed", "--set", "FILE"],
    "data": [],
    "data prepare": sorted(
        ["--debug", "--json", "--on-bad", "--shard-mib", "--split", "--workers", "DST", "SRC", "imagenet|voc|cifar10"]
    ),
    "data inspect": ["--debug", "--json", "--sheet", "--split", "PATH"],
    "data verify": ["--debug", "--json", "PATH"],
    "bootstrap": ["--debug", "--destroy", "--json", "--region", "--vpc", "--yes"],
    "iam": ["--account", "--debug", "--json", "--prefix", "--region", "[WHO]"],
    "instances": ["--debug", "--gpu", "--json", "--min-gpu-memory", "--refresh", "--region", "--sagemaker"],
    "explain": ["--debug", "--json", "--list", "[CODE]"],
    "image": [],
    "image build": sorted([*IMAGE, "--ca-bundle", "--network", "--pip-config", "--wheel"]),
    "image inspect": IMAGE,
    "image push": sorted([*IMAGE, "--region", "--repository"]),
    "dry-run": sorted(["--data", "--debug", "--image", "--json", "--memory", "--s3", "--set", "--storage", "FILE"]),
    "submit": sorted(
        ["--backend", "--debug", "--detach", "--json", "--resume", "--run-id", "--set", "--storage", "[FILE]"]
    ),
    "exec": sorted(["--debug", "--host", "--json", "--storage", "--user", "-- CMD...", "RUN"]),
    "ssh": ["--debug", "--json", "--storage", "--user", "RUN"],
    "pull": ["--debug", "--host", "--json", "--storage", "--user", "DEST", "PATH", "RUN"],
    "cancel": sorted([*RUN, "--reason", "--wait"]),
    "gc": ["--backend", "--debug", "--dry-run", "--json", "--region", "--yes"],
    "runs": ["--debug", "--json", "--storage"],
    "status": sorted([*RUN, "--follow"]),
    "logs": sorted([*RUN, "--attempt", "--follow"]),
    "metrics": RUN,
    "cost": RUN,
    "report": sorted([*RUN, "--output"]),
    "compare": sorted(["--at", "--debug", "--force", "--json", "--markdown", "--output", "--storage", "RUN..."]),
    "export": sorted([*RUN, "--checkpoint", "--output", "--what"]),
}
COMMANDS = sorted(SURFACE)


def command(name: str) -> click.Command:
    """A command, or as ``image build`` one of a group."""
    found: click.Command | None = cli.app
    for part in name.split():
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), part)
    assert found is not None
    return found


def all_names() -> Iterator[str]:
    for name in cli.app.list_commands(click.Context(cli.app)):
        yield name
        found = command(name)
        if isinstance(found, click.Group):
            yield from (f"{name} {part}" for part in found.list_commands(click.Context(found)))


def parameter_name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return parameter.make_metavar(click.Context(cli.app))
    return max(parameter.opts, key=len)


def run_cli(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "mtl_cloud", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | environment)


def test_the_surface_changes_only_on_purpose() -> None:
    assert {name: sorted(map(parameter_name, command(name).params)) for name in all_names()} == SURFACE


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_an_example_and_the_keys_of_its_json(name: str) -> None:
    text = command(name).get_help(click.Context(command(name), info_name=name))
    assert f"mtl-cloud {name}" in text
    assert "--json" in text
    assert name == "schema" or "JSON: " in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if " " not in name])
def test_every_command_has_one_line_in_the_table_that_fits_a_terminal(name: str) -> None:
    (line,) = [section[name] for section in cli.COMMANDS.values() if name in section]
    assert line.endswith(".")
    assert len(line) < 60


def test_help_lists_every_command() -> None:
    result = run_cli("--help")
    assert result.returncode == 0
    assert all(f"  {name.partition(' ')[0]} " in result.stdout for name in COMMANDS)


def test_help_imports_nothing_but_click_and_the_standard_library() -> None:
    script = """
import sys
from mtl_cloud.cli import main
before = set(sys.modules)
assert main(["--help"]) == 0
third = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"click", "mtl_cloud"}
print(sorted(name for name in third if not name.startswith(("_", "sitecustomize"))))
print(sorted(name for name in sys.modules if name.startswith("mtl_cloud.")))
"""
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    program = [sys.executable, "-I", "-c", script]
    result = subprocess.run(program, capture_output=True, text=True, check=True, env=unmeasured)
    assert result.stdout.splitlines()[-2:] == ["[]", "['mtl_cloud.cli', 'mtl_cloud.errors']"]


@pytest.mark.parametrize("name", ["validate", "plan"])
def test_validate_and_plan_import_no_heavy_library(name: str, tmp_path: Path) -> None:
    assert run_cli("init", cwd=tmp_path).returncode == 0
    script = f"""
import sys
from mtl_cloud.cli import main
assert main(["{name}", "job.yaml"]) == 0
print(sorted({{"torch", "boto3", "botocore", "s3fs", "matplotlib", "numpy", "PIL", "jinja2"}} & set(sys.modules)))
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_is_a_usage_error() -> None:
    result = run_cli("sbumit")
    assert (result.returncode, result.stdout) == (2, "")
    assert "No such command 'sbumit'" in result.stderr
