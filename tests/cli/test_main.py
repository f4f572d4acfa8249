"""``main`` turns errors, Ctrl-C and closed pipes into words and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from mtl_cloud import cli, errors
from mtl_cloud.errors import MtlCloudError, UsageError


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes every command raise the given error."""

    def install(error: BaseException) -> None:
        @click.command("failing")
        @click.option("--json", "as_json", is_flag=True)
        @click.option("--debug", is_flag=True)
        def failing(as_json: bool, debug: bool) -> None:
            raise error

        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)

    return install


def all_errors() -> list[MtlCloudError]:
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    special = {
        errors.SpecError: lambda: errors.SpecError([]),
        errors.MissingExtraError: lambda: errors.MissingExtraError("aws", "S3"),
    }
    return [special.get(kind, lambda kind=kind: kind("it broke", hint="mend it"))() for kind in kinds]


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_every_error_of_the_tree_ends_with_its_exit_code(
    error: MtlCloudError, command_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(error)
    assert cli.main(["failing"]) == error.exit_code
    assert capsys.readouterr().out == ""


def test_an_error_is_shown_with_its_hint_and_without_a_traceback(
    command_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(UsageError("no such run: 4f2a", hint="see `mtl-cloud runs`"))
    cli.main(["failing"])
    assert capsys.readouterr().err == "error: no such run: 4f2a\nhint: see `mtl-cloud runs`\n"


def test_with_json_an_error_is_one_object_on_standard_error(
    command_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(UsageError("no such run: 4f2a", hint="see `mtl-cloud runs`"))
    cli.main(["failing", "--json"])
    streams = capsys.readouterr()
    wanted = {"type": "UsageError", "message": "no such run: 4f2a", "hint": "see `mtl-cloud runs`", "exit_code": 2}
    assert (streams.out, json.loads(streams.err)) == ("", {"error": wanted})


def test_with_json_a_wrong_option_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "--json", "--colour", "x.yaml"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["type"], error["exit_code"]) == ("NoSuchOption", 2)
    assert "--colour" in error["message"]


def test_debug_shows_the_traceback(
    command_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(UsageError("no such run"))
    assert cli.main(["failing", "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_bug_of_ours_is_not_dressed_up_as_an_error_of_the_user(command_that: Callable[[BaseException], None]) -> None:
    command_that(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["failing"])


def test_ctrl_c_ends_with_130_and_no_traceback(
    command_that: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(KeyboardInterrupt())
    assert cli.main(["failing"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly() -> None:
    """The schema is longer than a pipe's buffer, and ``head`` reads one line of it."""
    script = f"{sys.executable} -m mtl_cloud schema | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.splitlines()[0] == "{"
    assert int(result.stdout.splitlines()[1]) in {0, 128 + signal.SIGPIPE}
