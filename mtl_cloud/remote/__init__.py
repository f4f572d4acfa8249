"""Reaching the instance of a run on EC2, on which no port is open to anybody.

The way is a tunnel of Session Manager, for which the instance's agent calls out. Through it goes ssh with a key of this
moment, which EC2 Instance Connect lets in for one minute. Host keys are learned from the console's output, which AWS
vouches for; where that is silent, the first one is trusted, said aloud, and held to.
"""

from __future__ import annotations

from mtl_cloud.remote.instance import Instance, find_instance
from mtl_cloud.remote.session import Session

__all__ = ["Instance", "Session", "find_instance"]
