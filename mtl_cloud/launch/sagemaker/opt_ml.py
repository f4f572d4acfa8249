"""``/opt/ml`` as SageMaker fills it for a container ("Using your own training container", developer guide)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["write_opt_ml"]


def write_opt_ml(
    root: Path,
    *,
    host: str = "algo-1",
    hosts: Sequence[str] = ("algo-1",),
    instance_type: str = "ml.g5.xlarge",
    channels: Mapping[str, str] | None = None,
    hyperparameters: Mapping[str, str] | None = None,
    interface: str = "eth0",
) -> Path:
    """Create the folder of one of ``hosts``. ``channels`` maps names to input modes; channel folders are empty."""
    group = {"instance_group_name": "homogeneousCluster", "instance_type": instance_type, "hosts": list(hosts)}
    resources = {
        "current_host": host,
        "current_instance_type": instance_type,
        "current_group_name": group["instance_group_name"],
        "hosts": list(hosts),
        "instance_groups": [group],
        "network_interface_name": interface,
    }
    brought = {
        name: {"TrainingInputMode": mode, "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
        for name, mode in (channels or {}).items()
    }
    for folder in ("input/config", "output/data", "model", "checkpoints", *(f"input/data/{name}" for name in brought)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, document in (
        ("resourceconfig", resources),
        ("inputdataconfig", brought),
        ("hyperparameters", dict(hyperparameters or {})),
    ):
        (root / "input/config" / f"{name}.json").write_text(json.dumps(document))
    return root
