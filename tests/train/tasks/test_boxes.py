"""Box geometry against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, complete_box_iou_loss, generalized_box_iou_loss

from mtl_cloud.train.tasks.boxes import ciou_loss, giou_loss, pair_iou


def random_boxes(seed: int, n: int = 50) -> Tensor:
    corners = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(1).values
    return (corners.flatten(1) * 60).requires_grad_()


def test_iou_of_all_pairs_is_torchvisions() -> None:
    a, b = random_boxes(0).detach(), random_boxes(1, 30).detach()
    torch.testing.assert_close(pair_iou(a[:, None], b), box_iou(a, b))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(giou_loss, generalized_box_iou_loss), (ciou_loss, complete_box_iou_loss)]
)
def test_iou_losses_and_their_gradients_are_torchvisions(ours: object, theirs: object) -> None:
    a, b = random_boxes(0), random_boxes(1)
    own, reference = ours(a, b), theirs(a, b, reduction="none")  # type: ignore[operator]
    torch.testing.assert_close(own, reference)
    (gradient,), (expected,) = torch.autograd.grad(own.sum(), a), torch.autograd.grad(reference.sum(), a)
    torch.testing.assert_close(gradient, expected)
