"""Parse AWS's "not authorized" messages: principal, action, the policy that denies, and the statement to add."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mtl_cloud.json_types import Json

__all__ = ["Denial", "decode_denial", "encoded_denial", "read_denial"]

_DENIAL = re.compile(
    r"(?:User: (?P<principal>\S+) )?is not authorized to perform: (?P<action>[\w-]+:\w+)"
    r"(?: on resource: (?P<resource>\S+))?(?P<rest>.*)",
    re.DOTALL,
)
_POLICY = re.compile(
    r"(?P<explicit>explicit deny in an? )?"
    r"(?P<kind>identity-based policy|service control policy|resource control policy|permissions boundary|session policy"
    r"|resource-based policy|VPC endpoint policy)"
)
_ENCODED = re.compile(r"Encoded authorization failure message: (?P<encoded>\S+)")
# The service in IAM's names of actions, where it is not boto3's name of the service.
_PREFIXES = {"service-quotas": "servicequotas"}
_BEYOND_THE_ACCOUNT = {"service control policy", "resource control policy"}


@dataclass(frozen=True)
class Denial:
    """One denied action."""

    action: str
    """In IAM's form: ``ec2:RunInstances``."""
    resource: str | None = None
    """ARN of the principal, if AWS names it."""
    principal: str | None = None
    policy: str | None = None
    """The kind of policy that denies, or that does not allow: ``identity-based policy``, ``permissions boundary``, …"""
    explicit: bool = False
    """Whether a policy denies it explicitly; an additional permission then does not help."""

    @property
    def statement(self) -> dict[str, Json]:
        """The policy statement that would allow it."""
        return {"Effect": "Allow", "Action": self.action, "Resource": self.resource or "*"}

    @property
    def cause(self) -> str:
        whose = f" to {self.principal}" if self.principal else ""
        if self.explicit:
            return f"a statement of the {self.policy} forbids {self.action}{whose}"
        return f"no {self.policy or 'policy'} allows {self.action}{whose}"

    @property
    def action_to_take(self) -> str:
        if self.policy in _BEYOND_THE_ACCOUNT:
            return f"only the organisation's administrators can change its {self.policy}"
        if self.explicit:
            return f"have that statement of the {self.policy} changed; an Allow elsewhere does not help"
        return f"add to the {self.policy or 'policy'}: {json.dumps(self.statement)}"


def read_denial(message: str, *, service: str = "", operation: str = "") -> Denial | None:
    """The denial that an error message describes, or that the refused operation implies. None without either.

    ``service`` is boto3's name (``service-quotas``), ``operation`` the API's (``GetServiceQuota``).
    """
    found = _DENIAL.search(message)
    if found:
        policy = _POLICY.search(found["rest"])
        return Denial(
            action=found["action"],
            resource=found["resource"],
            principal=found["principal"],
            policy=policy["kind"] if policy else None,
            explicit=bool(policy and policy["explicit"]),
        )
    return Denial(f"{_PREFIXES.get(service, service)}:{operation}") if service and operation else None


def encoded_denial(message: str) -> str | None:
    """The encoded part of EC2's "encoded authorization failure message"; None if the message has none."""
    found = _ENCODED.search(message)
    return found["encoded"] if found else None


def decode_denial(encoded: str, sts: Any) -> Denial:
    """Decode it with STS.

    ``sts`` is a client whose user may ``sts:DecodeAuthorizationMessage``; botocore's errors pass through.
    """
    told = json.loads(sts.decode_authorization_message(EncodedMessage=encoded)["DecodedMessage"])
    context = told["context"]
    return Denial(
        action=context["action"],
        resource=context.get("resource"),
        principal=context.get("principal", {}).get("arn"),
        explicit=bool(told.get("explicitDeny")),
    )
