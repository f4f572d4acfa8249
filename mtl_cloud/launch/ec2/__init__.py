"""The EC2 backend: a run is a group of one instance, which AWS itself keeps alive and takes away."""

from __future__ import annotations

from mtl_cloud.launch.ec2.launcher import Ec2Launcher

__all__ = ["Ec2Launcher"]
