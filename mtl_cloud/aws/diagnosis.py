"""Map an AWS error code or message to its class, cause and next step. Unknown errors are shown unchanged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mtl_cloud.aws.codes import ACTIONS, CODES, ErrorClass, KnownCode
from mtl_cloud.aws.denials import read_denial

__all__ = ["Diagnosis", "diagnose", "read_reason"]


@dataclass(frozen=True)
class Diagnosis:
    """The explanation of an error."""

    code: str
    """AWS's code; empty if a message has none."""
    error_class: ErrorClass
    cause: str
    action: str
    """The next step."""


# Messages of scaling activities, and of errors with a general code, mapped to a specific code.
_SENTENCES = (
    (r"do not have sufficient .*capacity", "InsufficientInstanceCapacity"),
    (r"no (Spot )?capacity (is )?available", "InsufficientInstanceCapacity"),
    (r"Spot request price of \S+ is lower than", "SpotMaxPriceTooLow"),
    (r"is not supported in your requested Availability Zone", "Unsupported"),
    (r"requested configuration is currently not supported", "Unsupported"),
    (r"Availability Zone is no longer supported", "InvalidAvailabilityZone"),
    (r"more vCPU capacity than your current vCPU limit", "VcpuLimitExceeded"),
    (r"more instances \(\d+\) than your current instance limit", "InstanceLimitExceeded"),
    (r"quota allows for \d+ more running instance", "InstanceLimitExceeded"),
    (r"Max spot instance count exceeded", "MaxSpotInstanceCountExceeded"),
    (r"reached your quota for maximum Fleet Requests", "MaxFleetCountExceeded"),
    (r"not enough free addresses in (the )?subnet", "InsufficientFreeAddressesInSubnet"),
    (
        r"do(es)? not have permission to create the service-linked role",
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
    ),
    (r"not authorized to (perform|use)", "UnauthorizedOperation"),
    (r"rate exceeded", "Throttling"),
    (r"not subscribed to this service", "OptInRequired"),
    (r"account is currently blocked", "Blocked"),
    (r"image id .* does not exist|AMI ID .* does not exist", "InvalidAMIID.NotFound"),
    (r"security group .* does not exist", "InvalidGroup.NotFound"),
    (r"key pair .* does not exist", "InvalidKeyPair.NotFound"),
    (r"subnet ID .* does not exist", "InvalidSubnetID.NotFound"),
)

# Sentences whose class differs from that of the code they come under.
_EXCEPTIONS = (
    (
        r"Invalid IAM Instance Profile",
        ErrorClass.SERVER,
        "the instance profile is so new that not all of AWS knows it yet, or it does not exist",
        "wait some seconds; if it lasts, run `mtl-cloud bootstrap`",
    ),
    (
        r"Authentication Failure\.",
        ErrorClass.SERVER,
        "Auto Scaling's service-linked role is so new that not all of AWS knows it yet",
        "wait a minute; AWS tries again by itself",
    ),
    (
        r"not eligible for Free Tier",
        ErrorClass.QUOTA,
        "the account is on AWS's free plan, which has no such machine",
        "upgrade the account's plan",
    ),
)
_GENERAL = {
    "ValidationError",
    "ValidationException",
    "InvalidParameterValue",
    "InvalidParameterCombination",
    "InvalidFleetConfiguration",  # also where a zone does not offer one of several types
    "",
}
_CODE = re.compile(r"\b(?:Server\.|Client\.)?[A-Z][a-z]+[A-Z]\w+(?:\.[A-Z]\w+)*")


def diagnose(code: str, message: str = "", *, http_status: int | None = None) -> Diagnosis:
    """Explain an AWS error by its code or, for general codes such as ``ValidationError``, by its message.

    A code beyond the table is ``UNKNOWN`` (``THROTTLE`` with HTTP 429, ``SERVER`` with HTTP 5xx), never capacity.
    """
    for pattern, error_class, cause, action in _EXCEPTIONS:
        if re.search(pattern, message):
            return Diagnosis(code, error_class, cause, action)
    known = (_by_sentence(message) if code in _GENERAL else None) or _by_code(code)
    if known is None:
        return _unknown(code, http_status)
    denial = read_denial(message) if known.error_class is ErrorClass.PERMISSION else None
    if denial:
        return Diagnosis(code, known.error_class, denial.cause, denial.action_to_take)
    return Diagnosis(code or known.code, known.error_class, known.cause, known.action)


def read_reason(text: str) -> Diagnosis:
    """Explain a message of AWS: a scaling activity's ``StatusMessage``, a ``StateReason``, a ``FailureReason``."""
    for word in _CODE.findall(text):
        if _by_code(word):
            return diagnose(word, text)
    return diagnose("", text)


def _by_code(code: str) -> KnownCode | None:
    if code in CODES:
        return CODES[code]
    families = [pattern for pattern in CODES if pattern.endswith("*") and fnmatchcase(code, pattern)]
    return CODES[max(families, key=len)] if families else None


def _by_sentence(message: str) -> KnownCode | None:
    codes = (code for pattern, code in _SENTENCES if re.search(pattern, message, re.IGNORECASE))
    code = next(codes, None)
    return _by_code(code) if code else None


def _unknown(code: str, http_status: int | None) -> Diagnosis:
    if http_status == 429:
        error_class = ErrorClass.THROTTLE
    elif http_status is not None and http_status >= 500:
        error_class = ErrorClass.SERVER
    else:
        error_class = ErrorClass.UNKNOWN
    return Diagnosis(code, error_class, "mtl-cloud's table does not know this answer", ACTIONS[error_class])
