"""Secrets of the trainer's environment: read on its machine when an attempt starts, and redacted in all logs.

A reference is ``{"ssm": name, "region": …}`` (SSM Parameter Store) or ``{"secretsmanager": name, "key": …,
"region": …}`` (Secrets Manager; ``key`` picks a field of a secret that is a JSON object). boto3 is needed only for jobs
with secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mtl_cloud.errors import CloudError, LaunchError, MissingExtraError

if TYPE_CHECKING:
    from mtl_cloud.aws import ClientMaker
    from mtl_cloud.runs.scratch import Failure

__all__ = ["NO_SECRETS", "Secrets", "read_secrets", "why_unreadable"]

_SHORTEST = 4
"""Shorter values are not redacted: they occur in logs by chance."""


@dataclass(frozen=True)
class Secrets:
    """Secret values by variable name. ``repr`` shows the names only."""

    values: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.values)})"

    def hide(self, data: bytes) -> bytes:
        """The data with ``***NAME***`` for each value, as it is, quoted for JSON, Python or a URL, or line by line."""
        return self._pattern.sub(lambda match: self._forms[match[0]], data) if self._forms else data

    def sendable(self, data: bytes) -> int:
        """How many leading bytes can be sent without cutting a secret, even one that continues after ``data``."""
        end = len(data) - self._begun(data)
        cut = (match.span() for match in self._pattern.finditer(data)) if self._forms else ()
        return next((first or behind for first, behind in cut if first < end < behind), end)

    def _begun(self, data: bytes) -> int:
        """How many of the last bytes may be the start of a secret."""
        longest = max(map(len, self._forms), default=0)
        tails = (data[-size:] for size in range(min(longest - 1, len(data)), 0, -1))
        return next((len(tail) for tail in tails if any(form.startswith(tail) for form in self._forms)), 0)

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        # The longest first: one value may be a prefix of another.
        return re.compile(b"|".join(re.escape(form) for form in sorted(self._forms, key=len, reverse=True)))

    @cached_property
    def _forms(self) -> Mapping[bytes, bytes]:
        """Each form of a secret, and its replacement."""
        return {
            form.encode(): f"***{name}***".encode()
            for name, value in self.values.items()
            for text in (value, *value.splitlines())
            for form in _forms_of(text)
            if len(form) >= _SHORTEST
        }


def _forms_of(text: str) -> tuple[str, ...]:
    escaped = (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text))
    return (text, quote(text, safe=""), *(quoted[1:-1] for quoted in escaped))


NO_SECRETS = Secrets({})


def read_secrets(references: Mapping[str, Any], clients: Callable[[str | None], ClientMaker] | None = None) -> Secrets:
    """Read the values of a plan's ``secrets``. ``clients`` maps a region to its maker of clients.

    Raises
    ------
    CloudError
        AWS refused: no permission, no such parameter or secret, or no answer.
    LaunchError
        The secret is not text, or not a JSON object with that key. The message never quotes it.
    MissingExtraError
        boto3 is not installed.
    """
    if not references:
        return NO_SECRETS
    from mtl_cloud.aws import AwsClients

    makers = cache(clients or AwsClients)
    return Secrets(
        {
            name: _read(f"env.{name}", reference, makers(reference.get("region")))
            for name, reference in references.items()
        }
    )


def _read(where: str, reference: Mapping[str, Any], maker: ClientMaker) -> str:
    from mtl_cloud.aws import translated

    if "ssm" in reference:
        with translated("ssm", where=where):
            answer = maker("ssm").get_parameter(Name=reference["ssm"], WithDecryption=True)
        return str(answer["Parameter"]["Value"])
    with translated("secretsmanager", where=where):
        answer = maker("secretsmanager").get_secret_value(SecretId=reference["secretsmanager"])
    return _picked(where, answer.get("SecretString"), reference.get("key"))


def _picked(where: str, text: str | None, key: str | None) -> str:
    if text is None:
        raise LaunchError(f"{where}: the secret is binary, but environment variables hold text")
    if key is None:
        return text
    try:
        return str(json.loads(text)[key])
    except (ValueError, TypeError, KeyError):
        # Not chained: the cause would quote the secret.
        raise LaunchError(f"{where}: the secret is not a JSON object with the key {key!r}") from None


def why_unreadable(error: LaunchError | MissingExtraError) -> Failure:
    """The failure of an attempt whose secrets cannot be read: the user's, unless AWS's error is transient."""
    from mtl_cloud.aws import ErrorClass
    from mtl_cloud.runs.scratch import Failure

    may_pass = isinstance(error, CloudError) and ErrorClass(error.error_class).may_pass
    kind: Any = "machine" if may_pass else "user"
    return Failure(exit_code=error.exit_code, message=str(error), hint=error.hint, kind=kind)
