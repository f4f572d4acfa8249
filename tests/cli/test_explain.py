"""``explain`` says what an error of AWS means, and does not guess."""

from __future__ import annotations

import json

import pytest

from mtl_cloud import cli


def test_a_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "VcpuLimitExceeded", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["code"], told["error_class"], told["may_pass"]) == ("VcpuLimitExceeded", "quota", False)
    assert "Service Quotas" in told["action"]


def test_a_whole_message_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["explain", "There is no Spot capacity available that matches your request."])
    assert "no such machine free at present" in capsys.readouterr().out


def test_a_typo_gets_the_nearest_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "VCpuLimitExceded"]) == 2
    assert "did you mean VcpuLimitExceeded?" in capsys.readouterr().err


def test_a_code_beyond_the_table_is_not_guessed_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "Zzz"]) == 2
    assert "--list" in capsys.readouterr().err


def test_the_whole_table_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["error_class"] for row in told} >= {"capacity", "quota", "permission"}
    assert all(row["cause"] and row["action"] for row in told)
    assert cli.main(["explain", "--list"]) == 0


def test_without_a_code_it_asks_for_one() -> None:
    assert cli.main(["explain"]) == 2
