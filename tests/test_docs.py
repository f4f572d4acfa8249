"""README and docs: the real command line accepts their commands, their job files are valid, their links lead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mtl_cloud import cli
from mtl_cloud.jobspec.load import parse_job

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = {"plan", "validate", "schema", "instances", "explain", "iam", "runs", "init"}
"""Commands that need neither AWS nor a container engine nor minutes: they are executed."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and text of each fenced block of a language."""
    for page in PAGES:
        for found in re.finditer(
            rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            yield page.relative_to(ROOT).as_posix(), found[1]


def shown_commands() -> list[str]:
    """Every ``mtl-cloud …`` after a prompt, comments left out; several on a line are apart."""
    lines = [line[2:] for _, text in blocks("console") for line in text.splitlines() if line.startswith("$ ")]
    parts = [part.strip() for line in lines for part in re.split(r"&&|;|\|", line.partition("  #")[0])]
    return [part.partition(" # ")[0].strip() for part in parts if part.startswith("mtl-cloud ")]


def mentioned_commands() -> list[str]:
    """Every ``mtl-cloud …`` in backquotes that is a whole command line, not a prefix of one."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = re.findall(r"`mtl-cloud ([a-z-]+[^`]*)`", text.replace("\n", " "))
    return sorted({line.partition(">")[0].strip() for line in found if not re.search(r"[…]", line)})


def parsed(command: str) -> click.Context:
    """The command line, parsed by the commands themselves. Nothing runs."""
    context, arguments = click.Context(cli.app, info_name="mtl-cloud"), shlex.split(command)[1:]
    group: click.Command = cli.app
    while isinstance(group, click.Group):
        name, found, arguments = group.resolve_command(context, arguments)
        assert found is not None, command
        group, context = found, click.Context(found, info_name=name, parent=context)
    return group.make_context(str(context.info_name), list(arguments), parent=context.parent)


def test_there_are_commands_in_the_readme() -> None:
    assert len(shown_commands()) > 8
    assert len(mentioned_commands()) > 8


@pytest.mark.parametrize("command", shown_commands())
def test_a_shown_command_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name = shlex.split(command)[1]
    if name in RUN and "job.yaml" not in command:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert cli.main(shlex.split(command)[1:]) == 0
    else:
        parsed(command)


@pytest.mark.parametrize("command", mentioned_commands())
def test_a_mentioned_command_exists(command: str) -> None:
    """A name alone may stand for the command; with arguments all of them must be right."""
    words = shlex.split(command.replace("[", "").replace("]", ""))
    if len(words) > 1 and words[0] not in {"image", "data"}:
        parsed(f"mtl-cloud {' '.join(words)}")
        return
    found: click.Command | None = cli.app
    for word in words:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), word)
        assert found is not None, command
        if not isinstance(found, click.Group):
            break


@pytest.mark.parametrize(("page", "text"), [(page, text) for page, text in blocks("yaml") if "dataset:" in text])
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


def make_targets() -> set[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text))


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
