"""IAM's policy evaluation as AWS documents it: an explicit deny wins, then an allow; the default is deny.

What is known of a request is its *context*: condition keys (without regard to case) with one value each. A trust policy
is asked with the ``principal`` that would take on the role, and without a resource: it is the role's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

__all__ = ["ACCOUNT", "REGION", "Context", "Decision", "arn", "as_list", "decide"]

ACCOUNT, REGION = "123456789012", "eu-west-1"
"""Of the requests that are decided."""

Decision = Literal["allowed", "denied", "explicitly denied"]
Context = Mapping[str, str]

_VARIABLE = re.compile(r"\$\{([^}]+)\}")
_WILDCARDS = {"*": ".*", "?": "."}


def arn(service: str, resource: str, *, region: str = REGION, account: str = ACCOUNT) -> str:
    return f"arn:aws:{service}:{region}:{account}:{resource}"


def _like(pattern: str, text: str) -> bool:
    parts = (_WILDCARDS.get(part) or re.escape(part) for part in re.split(r"([*?])", pattern))
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "ArnLike": _like,
    "Bool": lambda wanted, found: wanted.lower() == found.lower(),
    "NumericEquals": lambda wanted, found: float(found) == float(wanted),
    "NumericLessThan": lambda wanted, found: float(found) < float(wanted),
    "NumericLessThanEquals": lambda wanted, found: float(found) <= float(wanted),
    "StringEquals": lambda wanted, found: wanted == found,
    "StringLike": _like,
}


def decide(
    documents: Iterable[Mapping[str, Any]],
    action: str,
    resource: str,
    context: Context | None = None,
    *,
    principal: str = "",
) -> Decision:
    """A request for one action (``s3:GetObject``) on one resource (an ARN, or ``*`` for actions without resources).

    ``principal`` is a role's or user's ARN, or a service's name.
    """
    known = {key.lower(): value for key, value in (context or {}).items()}
    effects = {
        statement["Effect"]
        for document in documents
        for statement in as_list(document["Statement"])
        if _applies(statement, action, resource, known) and _concerns(statement, principal)
    }
    if "Deny" in effects:
        return "explicitly denied"
    return "allowed" if "Allow" in effects else "denied"


def _applies(statement: Mapping[str, Any], action: str, resource: str, context: Context) -> bool:
    conditions = statement.get("Condition", {}).items()
    return (
        _names(statement, "Action", lambda pattern: _like(pattern.lower(), action.lower()))
        and (
            "Principal" in statement or _names(statement, "Resource", lambda one: _fits(_like, one, resource, context))
        )
        and all(_holds(operator, key, wanted, context) for operator, keys in conditions for key, wanted in keys.items())
    )


def _concerns(statement: Mapping[str, Any], principal: str) -> bool:
    """An identity policy applies to the principal it is attached to."""
    named = statement.get("Principal", {})
    return "Principal" not in statement or any(
        one in {principal, "*"} for kind in named.values() for one in as_list(kind)
    )


def _names(statement: Mapping[str, Any], element: str, fits: Callable[[str], bool]) -> bool:
    if element in statement:
        return any(map(fits, as_list(statement[element])))
    return not any(map(fits, as_list(statement[f"Not{element}"])))


def _holds(operator: str, key: str, wanted: Any, context: Context) -> bool:
    """Operators and keys combine with AND, the values of a key with OR; a negated operator needs all to differ."""
    found = context.get(key.lower())
    if operator == "Null":
        return (found is None) == (str(wanted).lower() == "true")
    name, if_exists, _ = operator.partition("IfExists")
    negated = "Not" in name
    if found is None:
        return bool(if_exists) or negated
    test = _OPERATORS[name.replace("Not", "")]
    return any(_fits(test, str(value), found, context) for value in as_list(wanted)) != negated


def _fits(test: Callable[[str, str], bool], wanted: str, found: str, context: Context) -> bool:
    """Replace policy variables by their values; one without a value matches nothing. A wildcard in a value remains one,
    which is the worst that AWS could make of it."""
    if any(name.lower() not in context for name in _VARIABLE.findall(wanted)):
        return False
    return test(_VARIABLE.sub(lambda match: context[match[1].lower()], wanted), found)


def as_list(value: Any) -> list[Any]:
    """A policy may give one value where it may give several."""
    return value if isinstance(value, list) else [value]
