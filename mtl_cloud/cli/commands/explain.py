"""``mtl-cloud explain``: what an error of AWS means."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json, print_pairs, print_table, print_warnings
from mtl_cloud.errors import LaunchError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from mtl_cloud.aws import Diagnosis


@click.command("explain", epilog=examples("explain VcpuLimitExceeded", "explain --list"))
@click.argument("code", metavar="[CODE]", required=False)
@click.option("--list", "list_all", is_flag=True, help="Print every known code.")
@output_options
def command(*, code: str | None, list_all: bool, as_json: bool) -> None:
    """Explain an error code of AWS, or a whole message in quotes: its class, its cause, and what to do.

    An encoded authorization failure message is decoded by AWS, where your user may have that done.

    JSON: {code, error_class, may_pass, cause, action}; a list of them with --list. may_pass: the same request may
    succeed later with nothing changed.
    """
    if list_all:
        _print_all(as_json=as_json)
    elif code is None:
        raise UsageError("explain: which code?", hint="mtl-cloud explain --list prints all that are known")
    else:
        _print_one(_diagnosis(code), as_json=as_json)


def _diagnosis(code: str) -> Diagnosis:
    """Raises ``UsageError`` for a code that is not in the table."""
    from mtl_cloud.aws import CODES, ErrorClass, diagnose, read_reason
    from mtl_cloud.suggest import nearest

    if " " in code:
        return _with_what_is_hidden(code, read_reason(code))
    found = diagnose(code)
    if found.error_class is ErrorClass.UNKNOWN:
        name = nearest(code, (known for known in CODES if not known.endswith("*")))
        hint = f"did you mean {name}?" if name else "mtl-cloud explain --list prints all that are known"
        raise UsageError(f"{code} is not in the table of AWS's errors", hint=hint)
    return found


def _with_what_is_hidden(message: str, found: Diagnosis) -> Diagnosis:
    from mtl_cloud.aws import AwsClients, decode_denial, encoded_denial, translated

    encoded = encoded_denial(message)
    if encoded is None:
        return found
    try:
        sts = AwsClients("us-east-1")("sts")
        with translated("sts"):
            denial = decode_denial(encoded, sts)
    except (LaunchError, MissingExtraError) as error:
        print_warnings([f"what the message hides is not decoded: {error}"])
        return found
    return replace(found, cause=denial.cause, action=denial.action_to_take)


def _document(diagnosis: Diagnosis) -> dict[str, object]:
    return {**asdict(diagnosis), "may_pass": diagnosis.error_class.may_pass}


def _print_one(diagnosis: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        print_json(_document(diagnosis))
    else:
        print_pairs(
            [
                ("code", diagnosis.code),
                ("class", diagnosis.error_class.replace("_", " ")),
                ("cause", diagnosis.cause),
                ("what to do", diagnosis.action),
                ("may pass", "yes, with time" if diagnosis.error_class.may_pass else "not by itself"),
            ]
        )


def _print_all(*, as_json: bool) -> None:
    from mtl_cloud.aws import CODES, diagnose

    found = [diagnose(code) for code in CODES]
    if as_json:
        print_json([_document(diagnosis) for diagnosis in found])
    else:
        print_table(
            ("code", "class", "cause"),
            ((diagnosis.code, diagnosis.error_class.replace("_", " "), diagnosis.cause) for diagnosis in found),
        )
