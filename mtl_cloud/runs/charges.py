"""The charge of each machine that worked on a run, and the bill that adds them up. ``attempts`` reads both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mtl_cloud.backends import BACKENDS

__all__ = ["Bill", "Charge"]


@dataclass(frozen=True)
class Charge:
    """One attempt on one machine, or a machine that failed before its first attempt."""

    attempt: int | None
    """None: the machine failed before it."""
    instance: str
    """The instance's id, or the host's name."""
    machine: str | None
    """Instance type; None where no machine is rented."""
    zone: str | None
    market: str | None
    """on_demand | spot | capacity_block"""
    seconds: float
    usd_per_hour: float | None
    """None: no price is known, or nothing is rented."""
    on_demand_usd_per_hour: float | None
    backend: str = ""

    @property
    def is_rented(self) -> bool:
        """Whether its seconds cost money. A backend that this version does not know counts as rented."""
        return self.backend not in BACKENDS or BACKENDS[self.backend].is_rented

    @property
    def usd(self) -> float | None:
        return _dollars(self.usd_per_hour, self.seconds)

    @property
    def saved_usd(self) -> float | None:
        """The savings from spot, compared with the same time on demand."""
        on_demand = _dollars(self.on_demand_usd_per_hour, self.seconds)
        return None if on_demand is None or self.usd is None else on_demand - self.usd


@dataclass(frozen=True)
class Bill:
    """All charges of a run so far, oldest first."""

    charges: tuple[Charge, ...]

    @property
    def seconds(self) -> float:
        """Machine seconds, from each machine's boot on."""
        return sum(charge.seconds for charge in self.charges)

    @property
    def usd(self) -> float | None:
        """None unless something was rented and the price of all that was rented is known."""
        return _sum(charge.usd for charge in self._priced())

    @property
    def saved_usd(self) -> float | None:
        return _sum(charge.saved_usd for charge in self._priced())

    def budgeted_usd(self, usd_per_hour: float) -> float:
        """Dollars to compare with a budget: ``usd_per_hour`` replaces unknown prices of rented machines.

        Never less than ``usd``.
        """
        return sum(charge.seconds * (charge.usd_per_hour or usd_per_hour) / 3600 for charge in self._priced())

    def _priced(self) -> list[Charge]:
        """Charges that count toward the total: your own machine costs nothing unless its plan gives it a price."""
        return [charge for charge in self.charges if charge.is_rented or charge.usd_per_hour is not None]


def _dollars(usd_per_hour: float | None, seconds: float) -> float | None:
    return None if usd_per_hour is None else usd_per_hour * seconds / 3600


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)
