"""Look up a plan's facts at AWS. Read-only.

Where AWS does not answer (a denied request, a service that is down), the dated tables' values remain, and a check of
the plan says so. Clients are passed in.
"""

from __future__ import annotations

from mtl_cloud.planning.lookup.credentials import can_ask_aws
from mtl_cloud.planning.lookup.look_up import look_up
from mtl_cloud.planning.lookup.permission import check_permission
from mtl_cloud.planning.lookup.prices import look_up_prices
from mtl_cloud.planning.lookup.resume import find_resume

__all__ = ["can_ask_aws", "check_permission", "find_resume", "look_up", "look_up_prices"]
