"""README and docs: commands are executed or parsed, job files are valid, extras and targets exist, links lead."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from mtl_cloud import __version__, cli
from mtl_cloud.jobspec.load import parse_job

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

EXECUTED = (
    "init", "validate", "schema", "plan", "anchors", "instances", "explain", "iam", "submit", "runs", "status", "logs",
    "metrics", "cost", "report", "compare", "cancel",
)  # fmt: skip
"""Commands that need nothing but this machine, in the order in which a user calls them."""
PARSED = {
    "bootstrap": "it changes an AWS account",
    "gc": "it asks an AWS account",
    "image": "it needs a container engine",
    "dry-run": "it needs a container engine, and takes minutes",
    "exec": "it needs an instance at AWS",
    "ssh": "it needs an instance at AWS",
    "pull": "it needs an instance at AWS",
    "data": "it needs an original dataset",
    "export": "its documented use takes long: torch.onnx",
}
"""Commands that are held against the command line's own parser, each with the reason why they are not executed."""
ARGUMENTS = {
    "FILE": "job.yaml",
    "FILE...": "job.yaml",
    "[FILE]": "job.yaml",
    "RUN": "latest",
    "RUN...": "latest",
    "[CODE]": "VcpuLimitExceeded",
}
"""Arguments that a command is executed with where a page gives none."""
TINY = """\
name: tiny
dataset: {name: embedded, max_train_samples: 16, max_val_samples: 8}
model: {width: 0.125}
training: {rounds: 1, epochs_per_round: 1, max_steps_per_epoch: 1, batch_size: 4, image_size: 32, loader_workers: 0}
"""
"""The job file that stands for those of the pages, which name data and machines that are not here."""


# --- what the pages say ----------------------------------------------------------------------------------------------


def fenced(language: str) -> Iterator[tuple[str, str]]:
    """Page and text of each fenced block of a language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield page.relative_to(ROOT).as_posix(), found[1]


def shell_commands() -> list[str]:
    """Every command of the console blocks, without prompt, variables, comment and redirection."""
    texts = [re.sub(r"\\\n> *", "", text) for _, text in fenced("console")]
    lines = [re.sub(r"^[$>] *(?:[A-Z_]+=\S+ )*", "", line) for text in texts for line in text.splitlines()]
    parts = [part for line in lines for part in re.split(r"&&|;|\||>", line.partition(" # ")[0])]
    return list(dict.fromkeys(part.strip() for part in parts))


def quoted_commands() -> list[str]:
    """Every ``mtl-cloud …`` in backquotes."""
    prose = [re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL) for page in PAGES]
    found = re.findall(r"`(mtl-cloud [a-z][^`]*)`", "\n".join(prose))
    return list(dict.fromkeys(" ".join(line.partition(">")[0].split()) for line in found))


def documented() -> list[str]:
    """Every ``mtl-cloud …`` of the pages; an ellipsis stands for further arguments."""
    commands = [*shell_commands(), *quoted_commands()]
    ours = (command.replace("…", "").strip() for command in commands if command.startswith("mtl-cloud "))
    return list(dict.fromkeys(ours))


# --- commands of mtl-cloud -------------------------------------------------------------------------------------------


def resolved(command: str) -> tuple[click.Command, list[str]]:
    """The command, or subcommand, and its arguments. A group without one stands for itself."""
    context, arguments = click.Context(cli.app), shlex.split(command)[1:]
    found: click.Command = cli.app
    while isinstance(found, click.Group) and arguments:
        _, next_one, arguments = found.resolve_command(context, arguments)
        assert next_one is not None
        found = next_one
    return found, list(arguments)


def complete(command: str) -> list[str]:
    """The arguments of the command line, with ``ARGUMENTS`` where a page only names the command."""
    found, arguments = resolved(command)
    if not arguments:
        metavars = [one.make_metavar(click.Context(found)) for one in found.params if isinstance(one, click.Argument)]
        arguments = [ARGUMENTS[metavar] for metavar in metavars if metavar in ARGUMENTS]
    return [shlex.split(command)[1], *arguments]


def has_placeholder(command: str) -> bool:
    """Whether a reader has to put something else there: a name in capitals, or data of their own."""
    return bool(re.search(r"\b[A-Z]{3,}\b|~/|s3://|\$|--resume|--refresh", command))


def is_executed(command: str) -> bool:
    return shlex.split(command)[1] in EXECUTED and not has_placeholder(command)


def in_order(commands: list[str]) -> list[str]:
    return sorted(commands, key=lambda command: EXECUTED.index(shlex.split(command)[1]))


def test_every_command_is_executed_or_has_a_reason_not_to_be() -> None:
    assert sorted([*EXECUTED, *PARSED]) == sorted(name for section in cli.COMMANDS.values() for name in section)


def test_the_readme_names_every_command() -> None:
    table = README.read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    named = {name.split()[0] for name in re.findall(r"`([a-z][a-z -]*)`", table)}
    assert {name for section in cli.COMMANDS.values() for name in section} - named == set()


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_line_is_accepted(command: str) -> None:
    """Nothing runs: the command parses its own options and arguments. A name alone stands for the command."""
    found, arguments = resolved(command)
    if arguments:
        values = [argument if argument.startswith("-") else argument.replace("~", "") for argument in arguments]
        found.make_context(found.name, values)
    assert found is not cli.app


def test_the_documented_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From ``init`` to the report, in an empty folder, with a job that this machine trains in seconds."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    commands = [*filter(is_executed, documented()), *(f"mtl-cloud {name}" for name in EXECUTED)]
    lines = [complete(command.replace("pets.yaml", "job.yaml")) for command in in_order(commands)]
    for line in dict.fromkeys(map(tuple, lines)):
        code = cli.main(line)
        assert code == 0, (line, capsys.readouterr().err)
        if line[0] == "init":
            Path("job.yaml").write_text(TINY)
    (result,) = tmp_path.glob("mtl-runs/runs/tiny-*/result.json")
    assert json.loads(result.read_bytes())["outcome"] == "done"


# --- other commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [line for line in shell_commands() if line.startswith("pip install")])
def test_pip_is_given_extras_that_exist(command: str) -> None:
    named = set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", command))))
    assert named <= set(PROJECT["optional-dependencies"])
    assert all(version == __version__ for version in re.findall(r"mtl_cloud-(.*?)-py3", command))


def test_the_readme_lists_every_extra() -> None:
    table = README.read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("command", [line for line in shell_commands() if "python benchmarks/" in line])
def test_a_benchmark_has_the_options_that_a_page_gives_it(command: str) -> None:
    script, *arguments = command.partition("python ")[2].split()
    text = (ROOT / script).read_text(encoding="utf-8")
    assert [option for option in arguments if option.startswith("--") and f'"{option}"' not in text] == []


def make_targets() -> set[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text))


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


# --- job files and links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "text"), [(page, text) for page, text in fenced("yaml") if "dataset:" in text])
def test_a_job_in_a_page_is_valid(page: str, text: str) -> None:
    assert parse_job(text.encode(), source=page, base=ROOT).job.datasets


def links() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield page.relative_to(ROOT).as_posix(), target


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_a_link_leads_somewhere(page: str, target: str) -> None:
    assert ((ROOT / page).parent / target).exists()
