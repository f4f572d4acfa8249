"""``explain`` says what an error of AWS means, and does not guess."""

from __future__ import annotations

import json
from collections.abc import Iterator

import boto3
import pytest
from botocore.stub import Stubber

from mtl_cloud import aws, cli

USER = "arn:aws:iam::111122223333:user/ada"
HIDDEN = "UnauthorizedOperation: You are not authorized. Encoded authorization failure message: 8tQwz"


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


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    """botocore's own client of STS, which answers as the test says."""
    client = boto3.client("sts", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    monkeypatch.setattr(aws, "AwsClients", lambda region: lambda service: client)
    with Stubber(client) as stub:
        yield stub


def test_what_a_denial_hides_is_decoded(sts: Stubber, capsys: pytest.CaptureFixture[str]) -> None:
    context = {"principal": {"arn": USER}, "action": "iam:PassRole", "resource": "arn:aws:iam::111122223333:role/r"}
    told = json.dumps({"allowed": False, "explicitDeny": False, "context": context})
    sts.add_response("decode_authorization_message", {"DecodedMessage": told}, {"EncodedMessage": "8tQwz"})
    assert cli.main(["explain", HIDDEN, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["error_class"], document["cause"]) == ("permission", f"no policy allows iam:PassRole to {USER}")
    assert '"Resource": "arn:aws:iam::111122223333:role/r"' in document["action"]


def test_who_may_not_have_it_decoded_is_told_so_and_what_the_rest_says(
    sts: Stubber, capsys: pytest.CaptureFixture[str]
) -> None:
    sts.add_client_error("decode_authorization_message", "AccessDenied", "no")
    assert cli.main(["explain", HIDDEN, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["error_class"] == "permission"
    assert "not decoded: sts DecodeAuthorizationMessage: no (AccessDenied: permission)" in told.err
