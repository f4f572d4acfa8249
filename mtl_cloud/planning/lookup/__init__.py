"""Facts from AWS: what a plan rests on when credentials are there. Reads only; nothing here starts or changes anything.

What AWS does not tell (a denied look-up, a service that is down) stays as the dated tables have it, and a check of the
plan says so. Clients are passed in.
"""

from __future__ import annotations

from mtl_cloud.planning.lookup.credentials import can_ask_aws
from mtl_cloud.planning.lookup.look_up import look_up
from mtl_cloud.planning.lookup.permission import check_permission
from mtl_cloud.planning.lookup.prices import look_up_prices
from mtl_cloud.planning.lookup.resume import find_resume

__all__ = ["can_ask_aws", "check_permission", "find_resume", "look_up", "look_up_prices"]
