"""The SageMaker backend: a run is one training job after another, of the same image and the same record."""

from __future__ import annotations

from mtl_cloud.launch.sagemaker.launcher import SageMakerLauncher

__all__ = ["SageMakerLauncher"]
