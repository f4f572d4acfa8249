"""The fusion layers start without a correction, read the documented inputs, and can be detached from the encoders."""

from __future__ import annotations

import torch
from torch import nn

from mtl_cloud.jobspec.job import FusionSpec, ModelSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.nets import Network, build_network
from mtl_cloud.train.nets.fusion import JointFusion, best_scores, class_areas

CLASSES: dict[Task, tuple[str, ...]] = {
    "classification": ("a", "b", "c"),
    "detection": ("a", "b"),
    "segmentation": ("background", "a"),
}


def build(*, learned: bool = False, **fusion: object) -> Network:
    torch.manual_seed(5)
    spec = FusionSpec.model_validate({"hidden": 16, **fusion})
    network = build_network(ModelSpec(width=0.0625, fusion=spec), CLASSES)
    if learned and network.fusion is not None:
        nn.init.normal_(network.fusion.layers[-1].weight)  # type: ignore[arg-type]  # a Linear's
    return network


def test_at_the_start_the_logits_are_the_classifiers() -> None:
    images = torch.rand(2, 3, 64, 64)
    with_fusion, without = build().eval(), build(enabled=False).eval()
    assert torch.equal(with_fusion(images)["classification"], without(images)["classification"])


def test_once_learned_the_other_tasks_matter() -> None:
    images = torch.rand(2, 3, 64, 64)
    a, b = build(learned=True).eval(), build(learned=True).eval()
    for parameter in b.subnet("detection").parameters():
        parameter.data.mul_(1.5)
    assert not torch.allclose(a(images)["classification"], b(images)["classification"])


def test_detached_it_gives_the_other_tasks_no_gradient() -> None:
    for detach in (True, False):
        network = build(learned=True, detach=detach)
        network(torch.rand(2, 3, 64, 64))["classification"].square().sum().backward()
        reached = [task for task in network.tasks if any(p.grad is not None for p in network.subnet(task).parameters())]
        assert reached == (["classification"] if detach else list(network.tasks))
        assert all(p.grad is not None for p in network.fusion.parameters())  # type: ignore[union-attr]  # it has one


def test_a_classification_batch_need_not_run_the_other_networks() -> None:
    network = build(learned=True).eval()
    ran: list[str] = []
    for task in network.tasks:
        first = next(m for m in network.subnet(task).modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(lambda *_args, task=task: ran.append(task))
    images = torch.rand(2, 3, 64, 64)
    outputs = network(images, tasks=("classification",))
    assert ran == ["classification"]
    assert list(outputs) == ["classification"]
    assert torch.equal(outputs["classification"], network.subnet("classification")(images))


def test_best_scores_against_brute_force() -> None:
    heads = [torch.randn(2, 3, n, n, 5 + 4) for n in (1, 2)]
    for image, row in enumerate(best_scores(heads)):
        cells = [cell for head in heads for cell in head[image].reshape(-1, 9)]
        expected = [max(float(cell[4].sigmoid() * cell[5 + c].sigmoid()) for cell in cells) for c in range(4)]
        torch.testing.assert_close(row, torch.tensor(expected))


def test_class_areas_are_shares_of_the_image() -> None:
    """The left half is class 1 with certainty, the right half class 2."""
    logits = torch.zeros(1, 3, 32, 32)
    logits[:, 1, :, :16] = logits[:, 2, :, 16:] = 100
    torch.testing.assert_close(class_areas(logits), torch.tensor([[0.0, 0.5, 0.5]]))


def test_the_input_is_the_features_means_then_the_summaries() -> None:
    fusion = JointFusion(channels=[4, 6], summaries=[2], classes=3, spec=FusionSpec(hidden=8)).eval()
    seen: list[torch.Tensor] = []
    fusion.layers[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    features = [torch.rand(2, 4, 3, 3), torch.rand(2, 6, 1, 1)]
    logits = torch.randn(2, 2, 32, 32)
    assert fusion(features, {"segmentation": {"out": logits}}).shape == (2, 3)
    expected = torch.cat([features[0].mean((2, 3)), features[1].flatten(1), class_areas(logits)], dim=1)
    assert torch.equal(seen[0], expected)
