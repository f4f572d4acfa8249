"""The SageMaker backend: a run is a series of training jobs with the same image and run record."""

from __future__ import annotations

from mtl_cloud.launch.sagemaker.launcher import SageMakerLauncher

__all__ = ["SageMakerLauncher"]
