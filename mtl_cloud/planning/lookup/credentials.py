"""Whether AWS can probably be queried, found without importing boto3."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

__all__ = ["can_ask_aws"]

_NAMED_BY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}


def can_ask_aws(environ: Mapping[str, str], home: Path) -> bool:
    """Whether boto3 is installed, and the environment or the AWS configuration below ``home`` names credentials.

    A guess in microseconds: it does not see an instance's role, and credentials may have expired.
    """
    named = any(environ.get(name) for name in _NAMED_BY)
    return find_spec("boto3") is not None and (named or any(_holds_something(path) for path in _paths(environ, home)))


def _paths(environ: Mapping[str, str], home: Path) -> list[Path]:
    return [Path(environ.get(variable) or home / ".aws" / name) for variable, name in _FILES.items()]


def _holds_something(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False
