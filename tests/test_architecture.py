"""The tables of docs/architecture.md, compared with the contracts in pyproject.toml, the code and its imports."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import grimp
import pytest

from mtl_cloud.backends import BACKENDS
from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.runs.paths import RunPaths

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtl_cloud"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table below a heading."""
    table = re.search(r"(?:^\|.*\n)+", PAGE.partition(f"\n## {heading}\n")[2], re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in table[0].splitlines()[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


LAYERS = {quoted(package)[0]: int(number) for number, package, _contents, _libraries in rows("Layers")}
"""Package -> its layer; 1 is the highest."""
LIBRARIES = {quoted(package)[0]: set(quoted(libraries)) for _number, package, _contents, libraries in rows("Layers")}
"""Package -> the top-level modules of other projects that it imports."""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("mtl_cloud", include_external_packages=True)


def package_of(module: str) -> str:
    """``runs`` for ``mtl_cloud.runs.paths``; the empty text for the root package."""
    return module.partition("mtl_cloud")[2].strip(".").partition(".")[0]


def imported(imports: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    """Module of ours, and a module that it imports, wherever in its code it does."""
    for module in imports.modules:
        if module.startswith("mtl_cloud.") and module != "mtl_cloud.__main__":
            yield from ((module, other) for other in imports.find_modules_directly_imported_by(module))


def test_the_table_of_layers_is_the_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    assert [list(names) for _, names in groupby(LAYERS, LAYERS.__getitem__)] == [
        re.findall(r"\w+", layer) for layer in contract["layers"]
    ]
    assert contract["exhaustive"]


def test_every_module_is_in_one_layer(imports: grimp.ImportGraph) -> None:
    assert list(LAYERS.values()) == sorted(LAYERS.values())
    assert len(rows("Layers")) == len(LAYERS)
    ours = {package_of(module) for module in imports.modules if module.startswith("mtl_cloud.")}
    assert ours - {"__main__"} == set(LAYERS)


def test_no_import_goes_up_or_sideways(imports: grimp.ImportGraph) -> None:
    lowest, wrong = max(LAYERS.values()), []
    for module, other in imported(imports):
        here, there = package_of(module), package_of(other)
        if there and here != there:
            sideways = LAYERS[here] == LAYERS[there] != lowest
            if sideways or LAYERS[there] < LAYERS[here]:
                wrong.append((module, other))
    assert wrong == []


def test_the_table_names_the_libraries_that_each_package_imports(imports: grimp.ImportGraph) -> None:
    found: dict[str, set[str]] = {package: set() for package in LAYERS}
    for module, other in imported(imports):
        library = other.partition(".")[0]
        if library not in {"mtl_cloud", *sys.stdlib_module_names}:
            found[package_of(module)].add(library)
    assert found == LIBRARIES


# --- names in the page -----------------------------------------------------------------------------------------------


def functions(file: Path) -> set[str]:
    """Functions and classes of a module, and methods as ``Class.method``."""
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    methods = {f"{node.name}.{member.name}" for node in nodes if isinstance(node, ast.ClassDef)
               for member in node.body if isinstance(member, ast.FunctionDef)}  # fmt: skip
    return methods | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize(("_step", "names", "file"), rows("The flow of a run"))
def test_the_flow_names_functions_that_exist(_step: str, names: str, file: str) -> None:
    assert set(quoted(names)) <= functions(ROOT / quoted(file)[0])


def files_in(text: str) -> list[str]:
    """Paths in backquotes, relative to the package, to the repository, or with a placeholder."""
    return [name for name in quoted(text) if re.fullmatch(r"[\w./<>-]+(?:/|\.(?:py|json|yaml|toml|md))", name)]


def test_paths_in_the_page_exist() -> None:
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    names = [name for name in files_in(prose) if "<" not in name]
    assert len(names) > 30
    assert [name for name in names if not ((ROOT / name).exists() or (PACKAGE / name).exists())] == []


@pytest.mark.parametrize(("change", "cell"), rows("Where a change goes"))
def test_a_change_touches_at_most_three_files(change: str, cell: str) -> None:
    """Files are separated by semicolons, and one of them may have an alternative."""
    parts = [part for part in cell.split(";") if any(not name.startswith("infra/") for name in files_in(part))]
    assert 1 <= len(parts) <= 3, change
    assert all(len(files_in(part)) == 1 or " or " in part for part in parts), change


# --- what the page says about the code -------------------------------------------------------------------------------


def keys() -> Iterator[str]:
    """Every key and prefix that ``RunPaths`` builds below a run, with the arguments that the page uses."""
    paths = RunPaths("run")
    for name, member in inspect.getmembers(RunPaths):
        if isinstance(member, property) and name != "root":
            yield getattr(paths, name)
        elif inspect.isfunction(member) and not name.startswith("_") and not name.endswith("_of"):
            parameters = list(inspect.signature(member).parameters)[1:]
            yield member(paths, *("<instance>" if parameter == "instance" else 1 for parameter in parameters))


def test_the_tree_shows_every_key_of_the_record() -> None:
    tree = PAGE.partition("<storage>/runs/<run-id>/\n")[2].partition("```")[0]
    shown = {line.split()[0] for line in tree.splitlines()}
    found = {key.removeprefix("runs/run/").replace("0000000001-0001", "<step>-<attempt>") for key in keys()}
    assert shown <= found
    prefixes = {key for key in found - shown if any(whole.startswith(key) for whole in shown)}
    assert found - shown == prefixes


def test_every_backend_and_dataset_of_the_tables_has_its_module() -> None:
    for place in [*(backend.launcher for backend in BACKENDS.values()), *(known.opener for known in DATASETS.values())]:
        module = ROOT / place.partition(":")[0].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__init__.py").exists()
