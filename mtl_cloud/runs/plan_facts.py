"""The facts of a plan as ``plan.json`` holds them: machines, offers, quotas, checks, the account, estimates.

``mtl_cloud.planning.facts`` gathers them, and readers of a plan get them from ``PlanRecord.parsed_facts``. A field that
is added later needs a default, so that older records can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

from mtl_cloud.catalog import InstanceType, Price
from mtl_cloud.json_types import Json
from mtl_cloud.runs.dataclass_json import to_json

__all__ = [
    "Candidate",
    "Check",
    "Ec2Account",
    "Estimate",
    "MachineImage",
    "Market",
    "Offer",
    "PlanFacts",
    "Quota",
    "Range",
    "Reservation",
    "Resume",
    "SageMakerAccount",
]

Market: TypeAlias = Literal["on_demand", "spot"]
Range: TypeAlias = tuple[float, float]
"""(least, most)."""


@dataclass(frozen=True)
class Candidate:
    """A machine that the job accepts, with its on-demand price in the job's region (None: unknown)."""

    machine: InstanceType
    price: Price | None


@dataclass(frozen=True)
class Offer:
    """One way to get a machine: a type, in a zone, in a market."""

    machine: str
    zone: str | None
    """None: any zone; the shipped tables have no zones."""
    market: Market
    price: Price | None
    """The current one; None: unknown."""
    worst_usd_per_hour: float | None
    """The on-demand price: spot follows demand, but never costs more."""
    score: int | None = None
    """Spot placement score of the zone, 1 to 10: how likely a spot request succeeds there."""


@dataclass(frozen=True)
class Quota:
    """A limit of the account that the job counts against."""

    name: str
    market: Market
    unit: str
    """``vCPUs`` (EC2) or ``instances`` (SageMaker)."""
    need: float
    code: str | None = None
    """Quota code of Service Quotas; None where only the name is known."""
    have: float | None = None
    """The account's limit; None: unknown."""

    @property
    def is_short(self) -> bool:
        return self.have is not None and self.have < self.need


@dataclass(frozen=True)
class Check:
    """The outcome of a check that is made before anything costs money."""

    name: str
    status: Literal["ok", "failed", "unknown"]
    """``unknown``: it could not be tried."""
    detail: str
    hint: str | None = None


@dataclass(frozen=True)
class Resume:
    """The point from which a run continues."""

    run_id: str
    rounds: int
    """Completed."""
    step: int | None
    """The newest complete checkpoint's; None: from the beginning."""
    images_per_s: float | None
    """Median over the completed rounds."""


@dataclass(frozen=True)
class Estimate:
    """Time of the whole job, or of what is left of it, on one machine."""

    machine: str
    images: int
    """Images trained on, summed over epochs."""
    gflop_per_image: float
    """GFLOP of one training image; a validation image costs a third."""
    images_per_s: Range
    limit: str
    """The bottleneck: ``gpu``, ``loader``, ``steps`` (too small to fill it), or ``measured`` by earlier rounds."""
    download_hours: float
    hours: Range
    date: str
    """ISO date of the assumed speeds."""
    usd: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Market -> (least, most) dollars of ``hours``, over the zones; None where a price is not known."""


@dataclass(frozen=True, kw_only=True)
class MachineImage:
    """The AMI that instances boot from."""

    id: str
    name: str = ""
    root_device: str
    """The AMI's own name of its root disk: ``/dev/sda1``, ``/dev/xvda``, ..."""
    parameter: str = ""
    """Name of the SSM parameter that named it."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """The capacity reservation or capacity block that the job names."""

    zone: str
    kind: str
    """default | capacity-block, as EC2 names them."""
    free: int | None = None
    """Instances that are not used yet."""
    ends_at: str | None = None
    """ISO 8601; None for one without an end."""


@dataclass(frozen=True, kw_only=True)
class Ec2Account:
    """The account's facts for a run on EC2, in its region."""

    ami: MachineImage
    subnets: Mapping[str, str]
    """Zone -> subnet."""
    security_group: str
    instance_profile: str
    """Name of the profile."""
    group_role: str | None = None
    """ARN of the role with which a machine closes its own group; None in the oldest plans."""
    image: str
    """Reference of the container image, with its digest where it is in ECR."""
    reservation: Reservation | None = None


@dataclass(frozen=True, kw_only=True)
class SageMakerAccount:
    """The account's facts for a run on SageMaker, in its region."""

    role: str
    """ARN of the role that the training job acts under."""
    image: str
    """See ``Ec2Account``."""


@dataclass(frozen=True)
class PlanFacts:
    """All that was looked up for a plan, and the estimates made of it."""

    collected: str | None = None
    """ISO date of the machine facts; None where no machine is rented."""
    candidates: tuple[Candidate, ...] = ()
    """In the job's order of preference."""
    offers: tuple[Offer, ...] = ()
    """In order of preference."""
    quotas: tuple[Quota, ...] = ()
    checks: tuple[Check, ...] = ()
    resume: Resume | None = None
    looked_up_at: str | None = None
    """ISO 8601; None: AWS was not queried, all is from the tables."""
    identity: str | None = None
    """ARN of the identity that queried AWS."""
    ec2: Ec2Account | None = None
    sagemaker: SageMakerAccount | None = None
    estimates: tuple[Estimate, ...] = ()
    """One for each candidate whose speed is known."""

    @property
    def account(self) -> Ec2Account | SageMakerAccount | None:
        """The account at the plan's backend; None where it was not looked at."""
        return self.ec2 or self.sagemaker

    @property
    def owner(self) -> str:
        """Last part of the ARN of the identity that planned: the name of the user or of the session."""
        return (self.identity or "unknown").rpartition("/")[2]

    def document(self) -> dict[str, Json]:
        """The object in ``plan.json``. Empty fields other than ``collected`` and ``candidates`` are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(PlanFacts)}
        return {name: to_json(value) for name, value in values.items() if value or name in {"collected", "candidates"}}
