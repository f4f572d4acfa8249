"""Invariants of every task: partial labels, order, merging, and no wait for the device."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from narrowing import grad_of
from task_cases import CLASSES, pick, pick_batch, random_batch, random_outputs, tensors

from mtl_cloud.jobspec.job import ModelSpec
from mtl_cloud.tasks import HEADLINE, TASKS, Task
from mtl_cloud.train.data.batch import Batch
from mtl_cloud.train.tasks import build_heads
from mtl_cloud.train.tasks.base import TaskHead, TaskMetrics

CASES = [*((task, False) for task in TASKS), ("classification", True)]
each_task = pytest.mark.parametrize(("task", "multi_label"), CASES)


def head_of(task: Task, multi_label: bool = False) -> TaskHead:
    return build_heads(ModelSpec(), dict.fromkeys(TASKS, CLASSES), multi_label=multi_label)[task]


def unlabelled(batch: Batch) -> Batch:
    return replace(batch, has={task: torch.zeros_like(present) for task, present in batch.has.items()})


def joined(a: Batch, b: Batch) -> Batch:
    together: dict[str, Any] = {
        name: torch.cat([getattr(a, name), getattr(b, name)])
        for name in ("images", "labels", "boxes", "box_class", "box_difficult", "masks")
    }
    has = {task: torch.cat([a.has[task], b.has[task]]) for task in TASKS}
    box_image = torch.cat([a.box_image, b.box_image + len(a)])
    return Batch(keys=a.keys + b.keys, has=has, box_image=box_image, **together)


def evaluated(head: TaskHead, pairs: list[tuple[Any, Batch]]) -> TaskMetrics:
    evaluator = head.evaluator()
    for output, batch in pairs:
        evaluator.update(output, batch)
    return evaluator.compute()


@each_task
def test_unlabelled_samples_change_neither_loss_nor_gradient_and_get_none(task: Task, multi_label: bool) -> None:
    head, batch = head_of(task, multi_label), random_batch(0, multi_label=multi_label)
    strangers = unlabelled(random_batch(1, multi_label=multi_label))
    alone, together = random_outputs(2)[task], random_outputs(2, images=8)[task]
    with torch.no_grad():
        for small, large in zip(tensors(alone), tensors(together), strict=True):
            large[:4] = small
    lone, joint = head.loss(alone, batch), head.loss(together, joined(batch, strangers))
    lone.total.backward()
    joint.total.backward()
    torch.testing.assert_close(joint.total, lone.total, rtol=1e-6, atol=0)
    assert joint.count == lone.count > 0
    for small, large in zip(tensors(alone), tensors(together), strict=True):
        torch.testing.assert_close(grad_of(large)[:4], grad_of(small), rtol=1e-6, atol=1e-7)
        assert not grad_of(large)[4:].any()


@each_task
def test_without_any_label_the_loss_is_zero_but_connected_and_metrics_are_none(task: Task, multi_label: bool) -> None:
    head, output = head_of(task, multi_label), random_outputs(0)[task]
    batch = unlabelled(random_batch(0, multi_label=multi_label))
    term = head.loss(output, batch)
    term.total.backward()
    assert [term.total.item(), term.count.item()] == [0, 0]
    assert all(t.grad is not None and not t.grad.any() for t in tensors(output))
    values = evaluated(head, [(output, batch)]).values
    assert set(values.values()) <= {None, 0.0}
    assert values[HEADLINE[task]] is None


@each_task
def test_the_order_of_images_in_a_batch_does_not_matter(task: Task, multi_label: bool) -> None:
    head, batch, output = head_of(task, multi_label), random_batch(3, multi_label=multi_label), random_outputs(4)[task]
    order = [2, 0, 3, 1]
    shuffled, shuffled_output = pick_batch(batch, order), pick(output, order)
    straight, other = head.loss(output, batch), head.loss(shuffled_output, shuffled)
    torch.testing.assert_close(other.total, straight.total, rtol=1e-6, atol=0)
    assert other.count == straight.count
    assert evaluated(head, [(shuffled_output, shuffled)]) == evaluated(head, [(output, batch)])


@each_task
def test_evaluators_of_parts_merge_into_the_evaluator_of_the_whole(task: Task, multi_label: bool) -> None:
    head = head_of(task, multi_label)
    pairs = [(random_outputs(10 + i)[task], random_batch(i, multi_label=multi_label)) for i in range(4)]
    first, second = head.evaluator(), head.evaluator()
    for i, (output, batch) in enumerate(pairs):
        (second if i % 2 else first).update(output, batch)
    first.merge(pickle.loads(pickle.dumps(second)))
    first.merge(head.evaluator())
    assert first.compute() == evaluated(head, pairs)


@each_task
def test_a_loss_never_waits_for_the_device(task: Task, multi_label: bool) -> None:
    """Tensors on the meta device have no values: reading one on the host fails."""
    meta = torch.device("meta")
    parts = tuple(t.to(meta) for t in tensors(random_outputs(0)[task]))
    shaped: dict[str, Any] = {"segmentation": dict(zip(("out", "aux"), parts, strict=False)), "detection": parts}
    output = shaped.get(task, parts[0])
    batch = random_batch(0, multi_label=multi_label).to(meta)
    heads = [
        build_heads(ModelSpec(box_loss=box_loss), dict.fromkeys(TASKS, CLASSES), multi_label=multi_label)[task]
        for box_loss in ("darknet", "giou", "ciou")
    ]
    for head in heads:
        assert head.loss(output, batch).total.shape == ()
    if task != "detection":  # NMS runs on the host
        heads[-1].evaluator().update(output, batch)


def test_heads_are_those_that_the_network_trains_and_the_data_label_in_fixed_order() -> None:
    classes: dict[Task, tuple[str, ...]] = {"segmentation": ("background", "ant"), "detection": ("ant",)}
    assert list(build_heads(ModelSpec(), classes, multi_label=False)) == ["detection", "segmentation"]
    assert list(build_heads(ModelSpec(name="yolov3"), classes, multi_label=False)) == ["detection"]
    assert list(build_heads(ModelSpec(tasks=("segmentation",)), classes, multi_label=False)) == ["segmentation"]
    assert build_heads(ModelSpec(), classes, multi_label=False)["detection"].classes == ("ant",)
