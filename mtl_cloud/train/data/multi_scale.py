"""Multi-scale training as in darknet: the input size changes every ten steps, and is the same in all processes.

Images come from the loader at ``image_size`` and are resized on the device, with their boxes and masks. So no worker
needs to know the step, and pinned batches keep their size; sizes over ``image_size`` show no more detail.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mtl_cloud.jobspec.job import TrainingSpec
from mtl_cloud.train.data.batch import Batch

__all__ = ["input_size", "resize"]

_STEPS_A_SIZE = 10  # darknet's examples/detector.c
_STREAM = 1 << 62  # its keys are separate from those of sampling and augmentation


def input_size(training: TrainingSpec, *, step: int, steps: int, steps_per_epoch: int) -> int:
    """Pixels of the side at ``step`` (0-based) of ``steps``: a pure function of the seed and the step.

    The size is a uniform draw among the multiples of 32 within ``multi_scale``. In the last epoch it is ``image_size``,
    as in validation (darknet ends with 200 steps of one size, most of an epoch of VOC).
    """
    if training.multi_scale is None or step >= steps - steps_per_epoch:
        return training.image_size
    least, most = training.multi_scale
    generator = np.random.Generator(np.random.Philox(key=[training.seed, _STREAM + step // _STEPS_A_SIZE]))
    return 32 * int(generator.integers(least // 32, most // 32, endpoint=True))


def resize(images: Tensor, batch: Batch, size: int) -> tuple[Tensor, Batch]:
    """``images`` [B, 3, S, S] float and the labels of ``batch`` at ``size`` pixels; unchanged if S is that size.

    Images are resized bilinearly, with a low-pass filter where they shrink; masks by nearest neighbour.
    """
    old = images.shape[-1]
    if size == old:
        return images, batch
    resized = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    masks = batch.masks
    if masks.numel():
        masks = F.interpolate(masks[:, None], size=(size, size), mode="nearest-exact")[:, 0]
    return resized, replace(batch, boxes=batch.boxes * (size / old), masks=masks)
