"""The page, parsed: its content, its text alternatives, and that it needs no network."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image
from run_example import DIGITS, PLAN, SPEC, example_report, round_record, scene

from mtl_cloud.errors import MissingExtraError, RecordError
from mtl_cloud.report.build import Report
from mtl_cloud.report.render import render_html
from mtl_cloud.runs.schema import RoundSamples


class Page(HTMLParser):
    """Parses a page into tags, words and open tags."""

    _VOID = frozenset({"meta", "img", "link", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attrs["id"] for attrs in self.all("section")]

    @property
    def numbers(self) -> set[float]:
        return {float(attrs["value"] or "nan") for attrs in self.all("data")}


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_html(example_report()))


def test_a_finished_run_shows_every_section_and_closes_every_tag(page: Page) -> None:
    tasks = ["classification", "detection", "segmentation"]
    assert page.sections == ["headline", "warnings", "rounds", *tasks, "samples", "sharing", "run", "spec"]
    assert page.open == []


def test_every_number_of_every_round_is_on_the_page(page: Page) -> None:
    for record in example_report().rounds:
        scalars: set[float | None] = {
            record.round,
            record.epoch,
            record.step,
            record.images,
            record.images_per_s,
            record.data_wait,
        }
        scalars |= {record.seconds, record.validation_s, record.learning_rate, record.usd, record.attempt}
        scalars |= {*record.train_losses.values(), *record.val_losses.values()}
        scalars |= {value for values in record.metrics.values() for value in values.values()}
        # the first column of a table is its row header, whose number is plain text
        assert {value for value in scalars - {record.round} if value is not None} <= page.numbers


def test_the_round_that_is_kept_as_the_best_is_marked_in_every_table_of_rounds(page: Page) -> None:
    *before, last = example_report().rounds
    last = replace(last, best_round=2, best_metric="detection/map50_voc", best_value=0.609)
    chosen = Page(render_html(replace(example_report(), rounds=(*before, last))))
    assert chosen.words.count("2 (best)") == 4  # of all rounds, and of each task
    assert "Best round 2, detection mAP@.5 60.9 %" in chosen.text
    assert "best" not in page.text.lower()


def test_every_class_of_the_newest_round_is_on_the_page(page: Page) -> None:
    per_class = example_report().rounds[-1].per_class
    wanted = {v for metrics in per_class.values() for values in metrics.values() for v in values.values()} - {None}
    assert wanted <= page.numbers


def test_the_headline_compares_the_newest_round_with_the_first(page: Page) -> None:
    rounds = example_report().rounds
    first, last = (100 * (r.metrics["detection"]["map50_voc"] or 0) for r in (rounds[0], rounds[-1]))
    assert f"detection {last:.1f} % mAP@.5 {first:.1f} % after round 1" in page.text


def test_the_confusion_matrix_shows_its_counts(page: Page) -> None:
    confusion = example_report().rounds[-1].confusion or []
    assert {str(count) for row in confusion for count in row if count} <= set(page.words)


def test_cost_attempts_warnings_and_the_job_file_are_on_the_page(page: Page) -> None:
    for words in ("$19.40", "$21.96 an hour", "spot notice", "ip-10-0-2-9", *PLAN.warnings):
        assert words in page.text
    assert SPEC in page.words


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    references = [
        v or "" for _, attrs in page.tags for name, v in attrs.items() if name in {"src", "href", "xlink:href"}
    ]
    assert references
    assert all(reference.startswith(("#", "data:image/")) for reference in references)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "@import" not in page.text
    assert not re.search(r"url\((?!#)", page.text)


def test_every_picture_has_a_text_alternative(page: Page) -> None:
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["aria-label"] for attrs in page.all("svg"))
    assert len(page.all("img")) == 2 * 4


def test_ids_are_unique_although_many_figures_share_the_page(page: Page) -> None:
    ids = [attrs["id"] for tag, attrs in page.tags if "id" in attrs and tag not in {"g", "path"}]
    defined = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    used = {(attrs.get("xlink:href") or "#").removeprefix("#") for attrs in page.all("use")}
    assert len(ids) == len(set(ids))
    assert used <= defined


def test_figures_take_their_colours_from_the_theme() -> None:
    figures = re.findall(r"<svg.*?</svg>", render_html(example_report()), re.DOTALL)
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", " ".join(figures)))
    assert colours
    assert {colour for colour in colours if not colour.startswith(("var(--", "none"))} == set()


def test_the_same_report_gives_the_same_page() -> None:
    assert render_html(example_report()) == render_html(example_report())


def test_a_run_without_a_round_is_shown_as_waiting() -> None:
    report = replace(example_report(0), samples=None, result=None, attempts=())
    page = Page(render_html(report))
    assert page.sections == ["headline", "warnings", "rounds", "run", "spec"]
    assert "No round is complete yet" in page.text
    assert "waiting" in page.text


def test_a_task_without_a_label_and_metrics_without_a_value_are_dashes_not_errors() -> None:
    absent: dict[str, Any] = {
        "train_losses": {"classification": 0.5, "detection": None},
        "val_losses": {"classification": None, "detection": None},
        "metrics": {"classification": {"top1": None}, "detection": {}},
        "per_class": {"classification": {"recall": {"0": None}}},
        "confusion": None,
        "classes": {},
        "sharing": {},
        "weights": {"classification": 1.0},
        "usd": None,
        "learning_rate": None,
    }
    page = Page(render_html(replace(example_report(), rounds=(round_record(1, **absent),), samples=None)))
    assert page.sections == ["headline", "warnings", "rounds", "classification", "detection", "run", "spec"]
    assert "No sample has a label of this task." in page.text
    assert "nan" not in page.text.lower()


def test_many_classes_are_listed_weakest_first_with_their_largest_confusions() -> None:
    names = [f"class {index}" for index in range(100)]
    matrix = [[50 if i == j else 0 for j in range(100)] for i in range(100)]
    matrix[17][4] = 50
    recall = {"recall": {name: 1 - index / 100 for index, name in enumerate(names)}}
    record = round_record(1, confusion=matrix, classes={"classification": names}, per_class={"classification": recall})
    page = Page(render_html(replace(example_report(), rounds=(record,))))
    assert page.text.index("class 99") < page.text.index("class 98")
    assert "class 17 class 4 50 50.0 %" in page.text


def test_hostile_names_stay_text() -> None:
    plan = replace(PLAN, warnings=["<script>alert(1)</script>"], tags={"a": '"><img src=x>'})
    names = ['<b>"&', "$x_1$", *DIGITS[2:]]
    record = round_record(1, classes={"classification": names})
    page = Page(render_html(replace(example_report(), plan=plan, spec_yaml="</pre><script>", rounds=(record,))))
    assert page.all("script") == []
    assert {'<b>"&', "$x_1$", "</pre><script>", "<script>alert(1)</script>"} <= {word.strip() for word in page.words}


def test_boxes_and_masks_are_drawn_where_they_are() -> None:
    page = render_html(example_report())
    pictures = [_picture(uri) for uri in re.findall(r'src="(data:image/[^"]+)"', page)]
    plain = Image.open(io.BytesIO(base64.b64decode(scene(0)["image"]))).convert("RGB")
    factor = pictures[0].width // plain.width
    inside, outside = pictures[0].getpixel((25 * factor, 27 * factor)), pictures[0].getpixel((80 * factor, 20 * factor))
    assert _distance(inside, plain.getpixel((25, 27))) > 60
    assert _distance(outside, plain.getpixel((80, 20))) < 40


def _picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def _distance(one: Any, other: Any) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def test_a_damaged_sample_is_named() -> None:
    broken = {"key": "2008_000008", "image": "bm90IGFuIGltYWdl", "truth": {}, "prediction": {}}
    report: Report = replace(example_report(), samples=RoundSamples(round=1, classes={}, samples=[broken]))
    with pytest.raises(RecordError, match="2008_000008"):
        render_html(report)


def test_a_missing_extra_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="'report'") as caught:
        render_html(example_report())
    assert caught.value.hint == "pip install 'mtl-cloud[report]'"


def test_the_facts_used_by_the_plan_are_on_the_page(page: Page) -> None:
    assert any(json.loads(word) == PLAN.facts for word in page.words if word.strip().startswith('{\n  "prices"'))
