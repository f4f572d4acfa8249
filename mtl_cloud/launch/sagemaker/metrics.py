"""What SageMaker reads from the container's output: the trainer's own lines, as ``MetricDefinitions``."""

from __future__ import annotations

from mtl_cloud.json_types import Json

__all__ = ["metric_definitions"]

_NUMBER = "([-+0-9.e]+)"
_METRICS = {
    "classification": ("top1", "top5", "recall_macro"),
    "detection": ("map50_voc", "map", "recall50"),
    "segmentation": ("miou", "pixel_accuracy"),
}
"""Task -> those of its metrics that are worth a curve in SageMaker's console; the run record has all."""


def metric_definitions() -> list[Json]:
    """Names and regular expressions for ``CreateTrainingJob``. Lines of other tasks or backends match none of them."""
    metrics = {
        f"{task}:{name}": f"metrics round=[0-9]+ task={task} .*?{name}={_NUMBER}"
        for task, names in _METRICS.items()
        for name in names
    }
    losses = {f"{task}:loss": f"epoch [0-9]+/[0-9]+  loss .*?{task} {_NUMBER}" for task in _METRICS}
    speed = {"images_per_s": rf"\| {_NUMBER} images/s"}
    return [{"Name": name, "Regex": regex} for name, regex in {**metrics, **losses, **speed}.items()]
