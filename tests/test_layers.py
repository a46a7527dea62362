"""The layers: who imports whom, read from the syntax trees and seen in fresh processes; and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# "Who may import whom": for each module, those of ours that it may import. `ui` stands for all of dp/ui.
# Standard library only: every module may import them.
BASE = {"ages", "checks", "environment", "proxies", "records", "streams"}
RANK_0 = {"schedules", "images", "atomic", "runs", "device"}
LIBRARY = RANK_0 | {"samplers", "settings", "noise", "rin", "decoder", "data", "state", "policy", "checkpoint"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "checks": set(),
    "records": {"checks"},
    "schedules": set(),
    "images": set(),
    "streams": set(),
    "ages": set(),
    "environment": {"checks"},
    "proxies": {"checks"},
    "startup": {"checks", "environment", "proxies", "streams"},
    "device": {"checks", "environment"},
    "atomic": set(),
    "runs": {"atomic"},
    "samplers": {"schedules"},
    "rin": set(),
    "excerpt": set(),
    "png": {"excerpt"},
    "metadata": {"excerpt", "png"},
    "color": set(),
    "tiff": {"checks"},
    "pixels": {"images", "color"},
    "cut_jpeg": set(),
    "formats": {"excerpt", "tiff"},
    "decoder": {"excerpt", "tiff", "color", "metadata", "pixels", "cut_jpeg", "formats"},
    "archives": set(),
    "limits": {"decoder"},
    "zip_directory": set(),
    "zips": {"archives", "decoder", "limits", "zip_directory"},
    "unpacking": {"archives", "decoder", "limits"},
    "tar_blocks": {"archives", "decoder", "unpacking"},
    "tars": {"archives", "decoder", "limits", "tar_blocks", "unpacking"},
    "data": {"images", "decoder"},
    "findings": {"images", "data"},
    "sources": {"archives", "decoder", "data", "limits", "tar_blocks", "tars", "zip_directory", "zips"},
    "intake": {"images", "archives", "atomic", "decoder", "data", "findings", "limits", "sources"},
    "film": {"images"},
    "settings": {"samplers", "schedules"},
    "plan": {"samplers", "schedules", "settings"},
    "noise": {"settings"},
    "state": {"noise", "plan", "samplers", "settings"},
    "policy": {"plan", "samplers", "schedules", "settings", "state"},
    "card": set(),
    "checkpoint": {"policy", "rin", "card"},
    "calls": {"card", "proxies"},
    "hub": {"policy", "checkpoint", "card", "calls"},
    "inside": {"policy", "rin", "settings", "state"},
    "shelf": {"atomic", "checkpoint", "hub"},
    "resident": {"policy", "checkpoint", "runs", "shelf"},
    "tickets": {"images", "settings", "state"},
    "engine": LIBRARY | {"inside", "resident", "tickets"},
    "resume": {"runs", "checkpoint", "records"},
    "journal": {"atomic", "runs"},
    "trainer": LIBRARY | {"resume", "journal"},
    "recipe": set(),
    "begin": {"__init__", "archives", "atomic", "jobs", "recipe", "runs"},
    "train": {"__init__", "away", "begin", "runs"},  # the rest by dp's own names, after it has waited for the device
    "jobs": {"atomic", "recipe", "runs"},
    "machines": {"card", "calls"},
    "mirror": {"atomic", "runs", "calls"},
    "aboard": {"runs", "jobs", "calls", "mirror", "streams"},
    "remote": {"runs", "jobs", "card", "calls", "machines", "mirror", "aboard"},
    "away": {"runs", "calls", "machines", "remote"},
    "export": {"images", "film", "tickets"},
    "sample": {
        "hub",
        "atomic",
        "runs",
        "streams",
        "device",
        "schedules",
        "samplers",
        "settings",
        "checkpoint",
        "tickets",
        "engine",
        "export",
    },
    "publish_space": {"calls", "checks", "streams"},
    "ui": {
        "ui",
        "engine",
        "atomic",
        "records",
        "recipe",
        "export",
        "device",
        "tickets",
        "jobs",
        "machines",
        "remote",
        "runs",
        "images",
        "film",
        "data",
        "decoder",
        "pixels",
        "findings",
        "archives",
        "limits",
        "sources",
        "tar_blocks",
        "intake",
        "card",
        "checkpoint",
        "settings",
        "schedules",
        "calls",
        "hub",
        "shelf",
    },
    "app": {"ui", "engine", "jobs", "runs", "device", "startup"},
}
# Foreign packages that only some modules may import.
ONLY = {"gradio": {"ui", "app"}, "av": {"film"}, "accelerate": {"trainer", "journal"}, "ema_pytorch": {"trainer"}}
# Modules that may import nothing foreign but these.
NOTHING_BUT = {
    "schedules": {"torch"},
    "samplers": {"torch"},
    "settings": set(),
    "plan": {"torch"},
    "checks": set(),
    "records": set(),
    "recipe": set(),
    "atomic": set(),
    "archives": set(),
    "runs": {"filelock"},
    "jobs": {"filelock"},
    "__init__": set(),
}
# The one place that reaches up a layer, in the bodies of its functions: see the end of policy.py.
REACHES_UP = {("policy", name, "dp.checkpoints.folder") for name in ("from_pretrained", "save_pretrained")}
REACHES_UP |= {("policy", name, "dp.hub.models") for name in ("from_pretrained", "push_to_hub")}

# Ceilings on lines. A file past its own says why, in a line of its docstring that starts with "Over budget:".
BUDGETS = {
    "app.py": 60,
    "dp/__init__.py": 30,
    "dp/diffusion/schedules.py": 180,
    "dp/diffusion/samplers.py": 260,
    "dp/networks/rin.py": 360,
    "dp/data/codec.py": 200,
    "dp/data/dataset.py": 260,
    "dp/checkpoints/folder.py": 200,
    "dp/training/run_folder.py": 220,
    "dp/training/trainer.py": 380,
    "dp/training/worker.py": 60,
    "dp/training/processes.py": 220,
    "dp/training/remote/job.py": 220,
    "dp/ui/app.py": 80,
    "dp/ui/tabs/denoise.py": 220,
    "dp/ui/tabs/compare.py": 200,
    "dp/ui/tabs/train.py": 300,
    "dp/ui/training/publish.py": 120,
    "dp/ui/hub_models.py": 120,
    "dp/ui/training/remote_training.py": 120,
}
BUDGET_OF_OTHERS = 400  # past it, a file is split along a seam that has a name


class Import(NamedTuple):
    """One imported module, by its full name, and the function in whose body that happens ('' for the module's own)."""

    name: str
    function: str
    line: int


def sources() -> list[Path]:
    return [*sorted((ROOT / "dp").rglob("*.py")), *ROOT.glob("app.py")]


def name_of(path: Path) -> str:
    """The row of the tables above: 'policy' for dp/diffusion/policy.py, 'ui' for all of dp/ui."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "ui" if "ui" in parts[:-1] else parts[-1]


def imports(path: Path) -> list[Import]:
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    return list(_imports(ast.parse(path.read_text(encoding="utf-8")), package, ""))


def _imports(node: ast.AST, package: str, function: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, function, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (child.level - 1)] if child.level else []
            module = ".".join([*above, *([child.module] if child.module else [])])
            # `from dp import policy` imports dp.diffusion.policy; `from dp.diffusion.policy import Step` imports dp.diffusion.policy too.
            names = [f"dp.{alias.name}" for alias in child.names] if module == "dp" else [module]
            yield from (Import(name, function, child.lineno) for name in names)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imports(child, package, child.name)
        else:
            yield from _imports(child, package, function)


def ours(name: str) -> str | None:
    """'policy' for 'dp.diffusion.policy', 'ui' for 'dp.ui.tabs.denoise', None for what is not ours."""
    parts = name.split(".")
    return (parts[1] if len(parts) > 1 else "__init__") if parts[0] == "dp" else None


EACH_SOURCE = pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())


@EACH_SOURCE
def test_a_module_imports_only_the_layers_below_it(path):
    module = name_of(path)
    assert module in MAY_IMPORT, f"{module} has no place in the table of who may import whom"
    for name, function, line in imports(path):
        target = ours(name)
        if target is not None and (module, function, name) not in REACHES_UP:
            assert target in MAY_IMPORT[module] | (set() if module in BASE else BASE), (
                f"{path}:{line}: {module} may not import {name}"
            )


@EACH_SOURCE
def test_imports_stand_at_the_top_of_the_file(path):
    inside = [found for found in imports(path) if found.function]
    assert [f for f in inside if (name_of(path), f.function, f.name) not in REACHES_UP] == []


@EACH_SOURCE
def test_foreign_packages_stay_where_they_belong(path):
    module = name_of(path)
    for name, _, line in imports(path):
        package = name.split(".")[0]
        assert module in ONLY.get(package, {module}), f"{path}:{line}: {module} may not import {package}"
        if module in NOTHING_BUT and package != "dp" and package not in sys.stdlib_module_names:
            assert package in NOTHING_BUT[module], f"{path}:{line}: {module} may not import {package}"


@EACH_SOURCE
def test_nothing_is_imported_by_name_behind_the_back_of_these_tests(path):
    if path == ROOT / "dp" / "__init__.py":
        return  # hands out the public names lazily, with import_module
    names = {node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    assert not names & {"import_module", "__import__"}
    assert "importlib" not in {found.name.split(".")[0] for found in imports(path)}


@EACH_SOURCE
def test_a_file_stays_within_its_budget_or_says_why_not(path):
    relative, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    lines, budget = len(text.splitlines()), BUDGETS.get(relative, BUDGET_OF_OTHERS)
    docstring = ast.get_docstring(ast.parse(text)) or ""
    says_why = any(line.startswith("Over budget:") and len(line.split()) > 2 for line in docstring.splitlines())
    assert lines <= budget or says_why, f"{relative} has {lines} lines, its budget is {budget}"


@EACH_SOURCE
def test_every_module_says_what_it_is_for(path):
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def those_there(*modules: str) -> list[str]:
    """Some of these modules come with later issues."""
    return [f"dp.{name}" for name in modules if (ROOT / "dp" / f"{name}.py").exists()]


@pytest.mark.parametrize(
    "modules, absent",
    [
        (those_there("runs", "jobs", "train"), {"torch", "numpy", "PIL", "gradio"}),
        (those_there("policy", "checkpoint", "images", "engine"), {"accelerate", "ema_pytorch", "gradio"}),
        (those_there(*(MAY_IMPORT.keys() - {"__init__", "ui", "app"})), {"gradio"}),
    ],
    ids=["runs", "policy", "all-below-the-ui"],
)
def test_a_fresh_process_loads_no_more_than_it_needs(modules, absent):
    script = f"import sys, {', '.join(modules)}; print(*sorted({absent!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
