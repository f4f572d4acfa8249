"""The table of layers in docs/architecture.md, against the contract in pyproject.toml and against the real imports."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import grimp
import pytest

from mtl_cloud.backends import BACKENDS
from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.runs.paths import RunPaths

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
Layers = list[list[str]]


@pytest.fixture(scope="module")
def documented() -> Layers:
    """The packages of each layer, highest first."""
    rows = re.findall(r"^\| \d+ \| (.+?) \|", PAGE, re.MULTILINE)
    return [re.findall(r"`(\w+)`", row) for row in rows]


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("mtl_cloud")


def test_the_table_is_the_contract(documented: Layers) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    assert documented == [re.findall(r"\w+", layer) for layer in contract["layers"]]
    assert contract["exhaustive"]


def test_every_module_is_in_one_layer(documented: Layers, imports: grimp.ImportGraph) -> None:
    named = list(chain.from_iterable(documented))
    assert len(named) == len(set(named))
    modules = {name.split(".")[1] for name in imports.modules if name != "mtl_cloud"}
    assert modules - {"__main__"} == set(named)


def test_no_import_goes_up_or_sideways(documented: Layers, imports: grimp.ImportGraph) -> None:
    layer = {name: number for number, names in enumerate(documented) for name in names}
    lowest = len(documented) - 1
    wrong = []
    for module in imports.modules:
        for imported in imports.find_modules_directly_imported_by(module):
            above, below = (name.split(".")[1] if "." in name else "" for name in (module, imported))
            if above not in layer or below not in layer or above == below:
                continue
            if layer[below] < layer[above] or (layer[below] == layer[above] and layer[above] != lowest):
                wrong.append((module, imported))
    assert wrong == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(mtl_cloud/[\w/.]+)`", PAGE))))
def test_files_in_the_page_exist(name: str) -> None:
    assert (ROOT / name).exists()


def test_functions_in_the_page_exist() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+`) \| `(mtl_cloud/[\w/]+\.py)` \|", PAGE, re.MULTILINE)
    assert len(rows) > 8
    for functions, file in rows:
        text = (ROOT / file).read_text(encoding="utf-8")
        for function in re.findall(r"`([\w.]+)`", functions):
            assert re.search(rf"(?:def|class) {function.rpartition('.')[2]}\b", text), f"{function} is not in {file}"


@pytest.mark.parametrize(
    "cell", re.findall(r"^\| \w[\w ]+ \| ((?:[^|]*`[\w/]+\.(?:py|json)`[^|]*)) \|$", PAGE, re.MULTILINE)
)
def test_a_change_touches_at_most_three_files(cell: str) -> None:
    files = [name for name in re.findall(r"`([\w/<>.]+\.(?:py|json))`", cell) if "<" not in name]
    assert len(re.findall(r"`[\w/<>.]+\.(?:py|json)`", cell)) <= 4  # one of two alternatives counts once
    assert all((ROOT / "mtl_cloud" / name).exists() for name in files), cell


def test_the_tree_shows_every_key_of_the_record() -> None:
    paths = RunPaths("run")
    tree = PAGE.partition("<storage>/runs/<run-id>/\n")[2].partition("```")[0]
    keys = [
        paths.spec_yaml, paths.spec_json, paths.plan, paths.moved_plan(1), paths.cancel, paths.result, paths.attempt(1),
        paths.start(1), paths.heartbeat(1), paths.exit(1), paths.log_segment(1, 1), paths.round(1), paths.samples(1),
        paths.events(1), paths.backend,
    ]  # fmt: skip
    shown = [key.removeprefix(f"{paths.root}/") for key in keys]
    assert [
        key for key in shown if key.replace("moves/0001/plan.json", "moves/0001/spec.json, plan.json") not in tree
    ] == []
    assert all(part in tree for part in ("boots/<instance>.json", "checkpoints/<step>-<attempt>/", "manifest.json"))


def test_every_backend_and_dataset_is_registered_once() -> None:
    """A new one is an entry in one table, and a module of its own."""
    for place in [*(backend.launcher for backend in BACKENDS.values()), *(known.opener for known in DATASETS.values())]:
        module = ROOT / place.partition(":")[0].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__init__.py").exists()
