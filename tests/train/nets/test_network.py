"""Structure of the networks, and invariants of sharing: without exchange, tasks equal their single networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_cloud.errors import TrainingError
from mtl_cloud.jobspec.job import FusionSpec, ModelSpec, SharingKind
from mtl_cloud.tasks import NETWORK_TASKS, TASKS, Task
from mtl_cloud.train.nets import Network, build_network, decay_groups
from mtl_cloud.train.nets.sharing import Bridge, Gate
from mtl_cloud.train.nets.staged import Stage

CLASSES: dict[Task, tuple[str, ...]] = {
    "classification": ("a", "b", "c", "d"),
    "detection": ("a", "b", "c"),
    "segmentation": ("background", "a", "b", "c", "d"),
}
SINGLE = {"classification": "vgg16", "detection": "yolov3", "segmentation": "fcn_resnet50"}
KINDS: tuple[dict[int, SharingKind], ...] = (
    {},
    {1: "hard", 2: "hard"},
    dict.fromkeys((1, 2, 3, 4, 5), "hard"),
    dict.fromkeys((1, 2, 3, 4, 5), "cross_stitch"),
    dict.fromkeys((1, 2, 3, 4, 5), "gate"),
    {1: "hard", 2: "gate", 4: "cross_stitch", 5: "none"},
)


def build(name: str = "mtl_net", *tasks: Task, **spec: Any) -> Network:
    torch.manual_seed(7)
    names = {task: CLASSES[task] for task in tasks or NETWORK_TASKS[name]}
    return build_network(ModelSpec(name=name, width=0.0625, **spec), names)


def without_fusion(**spec: Any) -> Network:
    return build(fusion=FusionSpec(enabled=False), **spec)


def without_dropout(network: Network) -> Network:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def tensors(outputs: Mapping[str, Any]) -> list[Tensor]:
    """All tensors of an output, in a fixed order."""
    flat: list[Tensor] = []
    for value in outputs.values():
        flat += [value] if isinstance(value, Tensor) else value.values() if isinstance(value, dict) else value
    return flat


def assert_same_outputs(a: Network, b: Network) -> None:
    images = torch.rand(2, 3, 64, 64)
    for x, y in zip(tensors(a.eval()(images)), tensors(b.eval()(images)), strict=True):
        assert torch.equal(x, y)


def train_backward(network: Network, images: Tensor) -> None:
    sum(x.square().mean() for x in tensors(network.train()(images))).backward()  # type: ignore[union-attr]  # not empty


@pytest.mark.parametrize("sharing", KINDS)
def test_outputs_have_the_promised_shapes_and_every_parameter_a_gradient(sharing: dict[int, SharingKind]) -> None:
    network = build(sharing=sharing)
    outputs = network(torch.rand(2, 3, 64, 64))
    assert outputs["classification"].shape == (2, 4)
    assert [x.shape for x in outputs["detection"]] == [(2, 3, n, n, 8) for n in (2, 4, 8)]
    assert {k: v.shape for k, v in outputs["segmentation"].items()} == {
        "out": (2, 5, 64, 64),
        "aux": (2, 5, 64, 64),
    }
    train_backward(network, torch.rand(2, 3, 64, 64))
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("task", TASKS)
def test_without_sharing_a_task_is_its_single_network_bit_for_bit(task: Task) -> None:
    """The same seed gives the same weights, outputs and gradients, with or without other sub-networks."""
    joint, single = without_dropout(without_fusion()), without_dropout(build(SINGLE[task]))
    images = torch.rand(2, 3, 64, 64)
    train_backward(joint, images)
    train_backward(single, images)
    for (key, a), (_, b) in zip(
        joint.subnet(task).named_parameters(), single.subnet(task).named_parameters(), strict=True
    ):
        assert torch.equal(a, b), key
        assert torch.equal(a.grad, b.grad), key  # type: ignore[arg-type]  # backward has run
    assert torch.equal(tensors({task: joint.eval()(images)[task]})[0], tensors(single.eval()(images))[0])


@pytest.mark.parametrize("kind", ["gate", "cross_stitch"])
def test_soft_sharing_starts_exactly_at_the_single_networks(kind: SharingKind) -> None:
    assert_same_outputs(without_fusion(sharing=dict.fromkeys((1, 2, 3, 4, 5), kind)), without_fusion())


def test_shut_gates_are_no_sharing_at_all() -> None:
    network = opened(without_fusion(sharing=dict.fromkeys((1, 2, 3, 4, 5), "gate")), logit=-torch.inf)
    assert_same_outputs(network, without_fusion())


def opened(network: Network, *, logit: float) -> Network:
    """The network with random bridges, and all gates set to ``logit``."""
    for module in network.modules():
        if isinstance(module, Bridge):
            nn.init.kaiming_normal_(module.conv.weight)
        if isinstance(module, Gate):
            for gate in module.logits.values():
                nn.init.constant_(gate, logit)
    return network


def test_an_open_gate_lets_the_sender_through() -> None:
    shared = opened(without_fusion(sharing={3: "gate"}), logit=2.0).eval()
    alone = without_fusion().eval()
    images = torch.rand(2, 3, 64, 64)
    for x, y in zip(tensors(shared(images)), tensors(alone(images)), strict=True):
        assert not torch.allclose(x, y)


@pytest.mark.parametrize("kind", ["gate", "cross_stitch"])
def test_soft_sharing_learns_from_its_start(kind: SharingKind) -> None:
    """Parameters that start at zero get a gradient in the first step: bridges of gates, cross-stitch coefficients."""
    network = without_fusion(sharing={2: kind})
    train_backward(network, torch.rand(2, 3, 64, 64))
    part = "bridges" if kind == "gate" else "other"
    gradients = {name: p.grad for name, p in network.sharing.named_parameters() if part in name}
    assert len(gradients) == 6
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())


def test_hard_stages_exist_once() -> None:
    """The trunk is the segmenter's encoder; the other sub-networks keep their remaining parameters' names."""
    network, single = without_fusion(sharing={1: "hard", 2: "hard"}), build("vgg16")
    kept = set(network.subnet("classification").state_dict())
    gone = set(single.subnet("classification").state_dict()) - kept
    assert {key.split(".")[1] for key in gone} == {"0", "1", "3", "4", "7", "8", "10", "11"}
    assert kept < set(single.subnet("classification").state_dict())
    assert network.trunk == "segmentation"
    assert set(network.subnet("segmentation").state_dict()) == set(
        build("fcn_resnet50").subnet("segmentation").state_dict()
    )


def test_a_trunk_of_all_stages_computes_one_encoder() -> None:
    network = without_fusion(sharing=dict.fromkeys((1, 2, 3, 4, 5), "hard"))
    assert not any(key.startswith("backbone.") for key in network.subnet("detection").state_dict())
    assert not any(key.startswith("features.") for key in network.subnet("classification").state_dict())


def test_a_trunk_cannot_begin_in_the_middle() -> None:
    with pytest.raises(TrainingError, match="stage 3 is `hard`, but stage 2 before it is not"):
        build(sharing={1: "hard", 3: "hard"})


@pytest.mark.parametrize(("sender", "receiver"), [((8, 4), (16, 16)), ((8, 16), (24, 4)), ((8, 8), (8, 8))])
def test_a_bridge_brings_features_to_the_receivers_shape(sender: tuple[int, int], receiver: tuple[int, int]) -> None:
    bridge = Bridge(Stage((), *sender), Stage((), *receiver))
    x = torch.rand(2, sender[0], 64 // sender[1], 64 // sender[1])
    assert bridge(x).shape == (2, receiver[0], 64 // receiver[1], 64 // receiver[1])


def test_the_report_tells_each_stage_and_pair() -> None:
    report = build(sharing={1: "hard", 2: "gate", 4: "cross_stitch", 5: "none"}).sharing_report()
    others = {task: [other for other in TASKS if other != task] for task in TASKS}
    assert report == {
        "1": {"kind": "hard", "coefficients": {task: {"segmentation": 1.0} for task in TASKS[:2]}},
        "2": {
            "kind": "gate",
            "coefficients": {t: dict.fromkeys(others[t], pytest.approx(0.1192, abs=1e-4)) for t in TASKS},
        },
        "4": {"kind": "cross_stitch", "coefficients": {t: dict.fromkeys(others[t], 0.0) | {t: 1.0} for t in TASKS}},
    }
    assert build().sharing_report() == {}


def test_only_the_sub_networks_of_the_tasks_are_built() -> None:
    network = build("mtl_net", "segmentation", "classification", sharing={2: "gate"})
    assert network.tasks == ("classification", "segmentation")
    assert list(network.subnets) == ["classification", "segmentation"]
    assert set(network.eval()(torch.rand(1, 3, 32, 32))) == {"classification", "segmentation"}


@pytest.mark.parametrize("name", NETWORK_TASKS)
@pytest.mark.parametrize("size", [32, 96])
def test_every_network_takes_every_size(name: str, size: int) -> None:
    network = build(name).eval()
    assert set(network(torch.rand(1, 3, size, size))) == set(NETWORK_TASKS[name])


def test_a_task_that_the_network_lacks_is_an_error() -> None:
    with pytest.raises(TrainingError, match="yolov3 cannot learn classification; it learns detection"):
        build("yolov3", "classification")
    with pytest.raises(TrainingError, match="mtl_net cannot learn nothing at all"):
        build_network(ModelSpec(), {})


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_network(ModelSpec(name="alexnet", width=0.1), {"classification": ("a", "b")})
    assert torch.equal(torch.rand(1), expected)


def test_seeds_make_a_difference() -> None:
    torch.manual_seed(1)
    a = build_network(ModelSpec(name="mtl_lite", width=0.1), {"classification": ("a", "b")})
    torch.manual_seed(2)
    b = build_network(ModelSpec(name="mtl_lite", width=0.1), {"classification": ("a", "b")})
    assert not torch.equal(next(a.parameters()), next(b.parameters()))


def test_copies_and_conversions_keep_a_network_whole() -> None:
    """Modules that are replaced after construction, as SyncBatchNorm replaces BatchNorm, are the ones that run."""
    network = build(sharing={1: "hard", 2: "gate"}).eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    assert_same_outputs(network, converted)
    for norm in (m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)):
        nn.init.zeros_(norm.weight)
    images = torch.rand(1, 3, 32, 32)
    for x, y in zip(tensors(network(images)), tensors(converted(images)), strict=True):
        assert not torch.allclose(x, y)


@pytest.mark.parametrize("sharing", KINDS[1:])
def test_mixed_precision_does_not_fall_back_to_full_precision(sharing: dict[int, SharingKind]) -> None:
    network = build(sharing=sharing)
    seen: set[torch.dtype] = set()
    for exchange in network.sharing.values():
        exchange.register_forward_hook(lambda _m, _i, out: seen.update(x.dtype for x in out.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.rand(2, 3, 64, 64))
    assert seen == {torch.bfloat16}


def test_weights_decay_and_nothing_else_does() -> None:
    network = build(sharing={1: "cross_stitch", 2: "gate"})
    decayed, spared = decay_groups(network)
    names = {id(p): name for name, p in network.named_parameters()}
    assert len({id(p) for p in decayed + spared}) == len(decayed) + len(spared) == len(names)
    assert all(p.ndim in (2, 4) and names[id(p)].endswith("weight") for p in decayed)
    assert all(p.ndim < 2 or "sharing.1" in names[id(p)] for p in spared)


def test_batch_norm_momentum_is_each_networks_own_unless_the_job_says_otherwise() -> None:
    classes: dict[Task, tuple[str, ...]] = {"detection": ("a",), "segmentation": ("background", "a")}

    def momenta(**model: float) -> set[float | None]:
        network = build_network(ModelSpec(width=0.0625, **model), classes)
        return {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)}

    assert momenta() == {0.01, 0.1}
    assert momenta(batch_norm_momentum=0.05) == {0.05}
