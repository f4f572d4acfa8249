"""Comparisons against hand-computed and published numbers."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_example import round_record

from mtl_cloud.compare import Comparison, Entry, Measure, Row, compare, delta_m, differences
from mtl_cloud.errors import UsageError
from mtl_cloud.jobspec.job import JobSpec

MODELS = {"classification": "vgg16", "detection": "yolov3", "segmentation": "fcn_resnet50"}
CLASSES = {"classification": ["cat", "dog"], "detection": ["cat", "dog"], "segmentation": ["background", "cat", "dog"]}
HEADLINES = {"classification": "top1", "detection": "map50_voc", "segmentation": "miou"}

ASTMT_SINGLE = {"edge": 72.7, "seg": 68.30, "parts": 60.70, "normals": 14.61, "sal": 65.40}
"""Single-task ResNet-101 on PASCAL-Context. These three tables are in the README of facebookresearch/astmt."""
ASTMT_PLAIN = {"edge": 69.2, "seg": 63.20, "parts": 55.10, "normals": 16.04, "sal": 63.60}
ASTMT = {"edge": 72.4, "seg": 68.00, "parts": 61.12, "normals": 14.68, "sal": 65.71}


def job(model: str = "mtl_net", **training: Any) -> JobSpec:
    recipe = {"image_size": 64, "batch_size": 8, "rounds": 2, "loader_workers": 4, **training}
    return JobSpec.model_validate({"dataset": {"name": "voc"}, "model": {"name": model}, "training": recipe})


def entry(run_id: str, job: JobSpec, *courses: dict[str, float], images: int = 80, **changes: Any) -> Entry:
    """A finished run with one round for each entry of ``courses``, its headline metrics."""
    rounds = [
        round_record(
            number,
            step=10 * number,
            epoch=number,
            seconds=4.0,
            images=images,
            data_wait=0.25,
            metrics={task: {HEADLINES[task]: value} for task, value in course.items()},
            classes=CLASSES,
        )
        for number, course in enumerate(courses, start=1)
    ]
    return Entry(run_id, job, tuple(rounds), **{"outcome": "done", "usd": 1.5, "devices": ("cpu",), **changes})


def single(task: str, *values: float, run_id: str = "", **training: Any) -> Entry:
    return entry(run_id or task, job(MODELS[task], **training), *({task: value} for value in values))


def joint(run_id: str, *courses: tuple[float, float, float], **training: Any) -> Entry:
    return entry(run_id, job(**training), *(dict(zip(HEADLINES, course, strict=True)) for course in courses))


def rows_of(comparison: Comparison) -> dict[str, Row]:
    return {row.run_ids[0]: row for row in comparison.rows}


SINGLES = [single("classification", 0.5, 0.8), single("detection", 0.3, 0.5), single("segmentation", 0.2, 0.4)]


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("multi", "published"), [(ASTMT_PLAIN, -6.81), (ASTMT, -0.04)])
def test_delta_m_of_the_published_table(multi: dict[str, float], published: float) -> None:
    assert delta_m(multi, ASTMT_SINGLE, lower_is_better={"normals"}) == pytest.approx(published, abs=0.01)


@given(st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 1), min_size=1), st.floats(0.5, 2))
def test_delta_m_of_metrics_that_all_change_by_one_factor_is_that_change(one: dict[str, float], factor: float) -> None:
    scaled = {task: factor * value for task, value in one.items()}
    assert delta_m(scaled, one) == pytest.approx(100 * (factor - 1), abs=1e-6)
    assert delta_m(scaled, one, lower_is_better=set(one)) == pytest.approx(100 * (1 - factor), abs=1e-6)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_are_one_row_with_mean_and_sample_deviation() -> None:
    values = {0: 0.70, 1: 0.74, 2: 0.78}
    runs = [single("classification", 0.1, value, run_id=f"run-{seed}", seed=seed) for seed, value in values.items()]
    (row,) = compare(runs).rows
    assert (row.seeds, row.run_ids, row.variant) == ((0, 1, 2), ("run-0", "run-1", "run-2"), {})
    top1 = row.metrics["classification"]["top1"]
    assert (top1.mean, top1.std) == pytest.approx((0.74, 0.04))
    assert top1.n == 3


def test_a_single_run_has_no_deviation() -> None:
    assert Measure.of([0.5]) == Measure(0.5, None, 1)
    assert Measure.of([None]) == Measure(None, None, 0)


def test_equal_seeds_in_a_row_are_noted() -> None:
    runs = [single("classification", 0.1, run_id="a"), single("classification", 0.2, run_id="b")]
    assert any("same seed" in note for note in compare(runs).notes)


def test_a_recipe_that_differs_is_another_row_and_the_field_names_it() -> None:
    runs = [single("classification", 0.1, run_id="a"), single("classification", 0.2, run_id="b", precision="bf16")]
    assert [row.label for row in compare(runs).rows] == [
        "vgg16 training.precision=fp32",
        "vgg16 training.precision=bf16",
    ]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_time_speed_waiting_and_cost_are_those_of_all_rounds() -> None:
    (row,) = compare([single("classification", 0.5, 0.8)]).rows
    assert (row.training_s.mean, row.images_per_s.mean, row.data_wait.mean) == (8.0, 20.0, 0.25)
    assert (row.usd.mean, row.epochs, row.steps, row.images) == (1.5, 2, 20, 160)


def test_the_best_round_is_one_for_all_tasks_and_is_noted_as_optimistic() -> None:
    run = joint("a", (0.9, 0.5, 0.1), (0.8, 0.6, 0.4), (0.7, 0.2, 0.5))
    comparison = compare([run], at="best")
    assert comparison.rows[0].rounds == (2,)
    assert comparison.rows[0].metrics["classification"]["top1"].mean == 0.8
    assert "optimistic" in comparison.notes[0]


def test_the_last_round_is_the_default() -> None:
    assert compare([joint("a", (0.9, 0.9, 0.9), (0.1, 0.2, 0.3))]).rows[0].rounds == (2,)


def test_four_loader_workers_against_one() -> None:
    slow, fast = single("detection", 0.5, run_id="slow", loader_workers=1), single("detection", 0.5, run_id="fast")
    fast = Entry(
        fast.run_id, fast.job, (round_record(1, step=10, epoch=1, seconds=1.0, images=80, classes=CLASSES),), ("cpu",)
    )
    (effect,) = compare([fast, slow]).workers
    assert (effect.fewer.workers, effect.more.workers, effect.speedup) == (1, 4, 4.0)


# --- joint against single --------------------------------------------------------------------------------------------


def test_delta_m_of_a_joint_run_by_hand() -> None:
    rows = rows_of(compare([joint("joint", (0.1, 0.1, 0.1), (0.84, 0.45, 0.42)), *SINGLES]))
    delta = rows["joint"].delta
    assert delta is not None
    assert delta.measure.mean == pytest.approx(100 / 3 * (0.04 / 0.8 - 0.05 / 0.5 + 0.02 / 0.4))
    assert delta.baselines == {task: (task,) for task in MODELS}
    assert [rows[task].delta for task in MODELS] == [None, None, None]


def test_delta_m_over_seeds_is_against_the_mean_of_the_baselines() -> None:
    first = joint("a", (0.8, 0.5, 0.4), seed=0)
    second = joint("b", (0.88, 0.5, 0.4), seed=1)
    singles = [single(task, value) for task, value in {"detection": 0.5, "segmentation": 0.4}.items()]
    seeds = [single("classification", value, run_id=f"c{n}", seed=n) for n, value in enumerate((0.7, 0.9))]
    delta = compare([first, second, *singles, *seeds]).rows[0].delta
    assert delta is not None
    assert delta.measure.mean == pytest.approx(fmean([0, 10 / 3]))
    assert delta.measure.std == pytest.approx(10 / 3 / 2**0.5)
    assert delta.baselines["classification"] == ("c0", "c1")


def test_of_several_baselines_the_strongest_counts() -> None:
    weak = entry("weak", job("alexnet"), {"classification": 0.1}, {"classification": 0.2})
    delta = compare([joint("joint", (0, 0, 0), (0.8, 0.5, 0.4)), weak, *SINGLES]).rows[0].delta
    assert delta is not None
    assert delta.baselines["classification"] == ("classification",)
    assert delta.measure.mean == pytest.approx(0)


def test_a_baseline_with_as_many_loader_workers_goes_before_a_stronger_one() -> None:
    other = single("classification", 0.5, 0.9, run_id="one-worker", loader_workers=1)
    delta = compare([joint("joint", (0, 0, 0), (0.8, 0.5, 0.4)), other, *SINGLES]).rows[0].delta
    assert delta is not None
    assert delta.baselines["classification"] == ("classification",)


def test_without_a_baseline_of_its_budget_there_is_no_delta_m_and_a_note_says_why() -> None:
    half = single("segmentation", 0.2, 0.4, run_id="other-batch", batch_size=4)
    comparison = compare([joint("joint", (0, 0, 0), (0.8, 0.5, 0.4)), *SINGLES[:2], half])
    delta = comparison.rows[0].delta
    assert delta is not None
    assert (delta.measure, "segmentation" in delta.baselines) == (Measure(None, None, 0), False)
    assert any("delta_m needs single-task runs of segmentation" in note for note in comparison.notes)


# --- refused comparisons ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (single("detection", 0.5, run_id="b", image_size=96), "image size: 64 in a; 96 in b"),
        (single("detection", 0.4, 0.5, run_id="b"), "length: 1 epochs in a; 2 epochs in b"),
        (
            entry(
                "b",
                JobSpec.model_validate({**job("yolov3").model_dump(), "dataset": {"name": "embedded"}}),
                {"detection": 0.5},
            ),
            "dataset: voc train/val in a; embedded train/val in b",
        ),
    ],
)
def test_runs_that_learnt_from_something_else_are_refused_by_name(other: Entry, field: str) -> None:
    with pytest.raises(UsageError, match="are not comparable") as raised:
        compare([single("detection", 0.5, run_id="a"), other])
    assert field in str(raised.value)
    assert raised.value.hint is not None
    assert "--force" in raised.value.hint


def test_a_segmenter_alone_sees_its_masks_as_often_as_a_joint_network_with_more_images_does() -> None:
    fewer = entry("segmentation", job("fcn_resnet50"), {"segmentation": 0.2}, {"segmentation": 0.4}, images=10)
    delta = compare([joint("joint", (0, 0, 0), (0.8, 0.5, 0.4)), *SINGLES[:2], fewer]).rows[0].delta
    assert delta is not None
    assert delta.measure.mean == pytest.approx(0)


def test_where_epochs_are_cut_short_runs_are_as_long_as_the_images_they_saw() -> None:
    runs = [
        entry(f"{images}", job("yolov3", max_steps_per_epoch=10), {"detection": 0.5}, images=images)
        for images in (80, 88)
    ]
    with pytest.raises(UsageError, match="length: 80 images in 80; 88 images in 88"):
        compare(runs)


def test_forced_rows_are_marked_and_noted() -> None:
    comparison = compare([single("detection", 0.5), single("detection", 0.5, run_id="b", image_size=96)], force=True)
    assert [row.differs for row in comparison.rows] == [(), ("image size",)]
    assert any(note.startswith("Forced: the runs differ in image size") for note in comparison.notes)


def test_a_forced_delta_m_names_the_differing_budget_but_never_crosses_data() -> None:
    short = single("segmentation", 0.4, run_id="short")
    runs = [joint("joint", (0, 0, 0), (0.8, 0.5, 0.4)), *SINGLES[:2], short]
    delta = compare(runs, force=True).rows[0].delta
    assert delta is not None
    assert delta.differs == ("length",)
    assert delta.measure.mean == pytest.approx(0)
    large = single("segmentation", 0.2, 0.4, run_id="large", image_size=96)
    delta = compare([*runs[:3], large], force=True).rows[0].delta
    assert delta is not None
    assert delta.measure.n == 0


def test_other_classes_of_the_same_task_are_another_task() -> None:
    other = single("detection", 0.5, run_id="b")
    renamed = round_record(
        1, step=10, epoch=1, seconds=4.0, images=80, classes={"detection": ["cat", "cow"]}, metrics={}
    )
    found = differences([single("detection", 0.5, run_id="a"), Entry("b", other.job, (renamed,))])
    assert found == {"detection classes": {"2 (cat, dog)": ["a"], "2 (cat, cow)": ["b"]}}


def test_a_run_without_a_round_is_refused() -> None:
    with pytest.raises(UsageError, match="early: no round is complete yet"):
        compare([Entry("early", job(), ())])


def test_a_run_that_is_not_done_is_noted() -> None:
    notes = compare([entry("cut", job(), {"classification": 0.5}, outcome="cancelled")]).notes
    assert "cut is not done (cancelled): its metrics are those of the rounds it completed." in notes


def test_the_document_is_json() -> None:
    document = compare([joint("joint", (0, 0, 0), (0.8, 0.5, 0.4)), *SINGLES]).document()
    assert json.loads(json.dumps(document))["rows"][0]["delta"]["measure"]["n"] == 1
