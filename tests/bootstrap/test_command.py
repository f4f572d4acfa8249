"""``mtl-cloud bootstrap`` as one types it, over the double of an account."""

from __future__ import annotations

import json
from typing import Any

import pytest
from run_harness import FakeClock
from stack_double import Account

from mtl_cloud import aws, cli, clock


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account()
    monkeypatch.setattr(aws, "AwsClients", lambda region: account.clients())
    monkeypatch.setattr(clock, "Clock", FakeClock)
    return account


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_yes_makes_what_was_shown_and_prints_where_things_are(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bootstrap", "--yes"]) == 0
    told = capsys.readouterr()
    assert "AWS::S3::Bucket" in told.out
    assert "storage    storage" in told.out
    assert "  Bucket: create complete" in told.err
    assert cli.main(["bootstrap"]) == 0  # nothing to say yes to
    assert "us-east-1: up to date" in capsys.readouterr().out


def test_json_without_yes_only_shows(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bootstrap", "--json"]) == 0
    shown = printed(capsys)
    assert (shown["done"], shown["outputs"], len(shown["changes"])) == (False, None, 2)
    assert account.made == 0
    assert cli.main(["bootstrap", "--json", "--yes"]) == 0
    assert printed(capsys)["outputs"]["bucket"] == "the-bucket"


def test_no_makes_nothing(
    account: Account, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.confirm", lambda _: False)
    assert cli.main(["bootstrap"]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert account.made == 0


def test_destroy_is_refused_while_anything_is_left(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bootstrap", "--yes"]) == 0
    account.groups, account.bucket_holds = ["mtl-cloud-a-1"], 1
    assert cli.main(["bootstrap", "--destroy", "--yes"]) == 2
    told = capsys.readouterr().err
    assert "  the group mtl-cloud-a-1\n  data in the bucket the-bucket\n" in told
    account.groups, account.bucket_holds = [], 0
    assert cli.main(["bootstrap", "--destroy", "--json"]) == 0
    assert printed(capsys)["done"] is False
    assert cli.main(["bootstrap", "--destroy", "--yes", "--json"]) == 0
    assert printed(capsys)["done"] is True
