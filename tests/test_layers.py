"""The layers: who may import whom, and how large a function may be. `python tests/test_layers.py` prints the packages'
import graph.

Everything is read from the syntax trees, except what a fresh process loads.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One row per package: the packages that it may import. `app` is app.py; the public names in dp/__init__.py and the
# commands in dp/__main__.py are looked up by name, when they are first used.
MAY_IMPORT: dict[str, set[str]] = {
    "dp": set(),
    "system": set(),
    "worlds": {"system"},
    "diffusion": {"system"},
    "data": {"system"},
    "networks": {"system", "diffusion"},
    "checkpoints": {"system", "diffusion", "networks"},
    "hub": {"system", "checkpoints"},
    "training": {"dp", "system", "diffusion", "data", "networks", "checkpoints", "hub"},
    "serving": {"system", "diffusion", "data", "networks", "checkpoints", "hub", "training"},
    "ui": {"system", "diffusion", "data", "networks", "checkpoints", "hub", "training", "serving"},
    "app": {"system", "data", "training", "serving", "ui"},
}
# Imports in the bodies of functions: the policy's convenience methods import higher packages, and an optional package
# is loaded only where it is used.
POLICY, FOLDER, MODELS = "dp.diffusion.policy", "dp.checkpoints.folder", "dp.hub.models"
EXCEPTIONS = {(POLICY, name, FOLDER) for name in ("from_pretrained", "save_pretrained")}
EXCEPTIONS |= {(POLICY, name, MODELS) for name in ("from_pretrained", "push_to_hub")}
EXCEPTIONS |= {("dp.serving.backends", "load_openvino", "openvino")}
EXCEPTIONS |= {("dp.ui.web.graph", "load_onnx", name) for name in ("onnx", "onnxscript")}

# Foreign packages that only some packages may import, and the foreign packages to which a part of dp is limited.
ONLY_IN = {"gradio": {"ui", "app"}, "accelerate": {"training"}, "ema_pytorch": {"training"}, "av": {"data"}}
ONLY_IN |= {"openvino": {"serving"}, "onnx": {"ui"}, "onnxscript": {"ui"}}
LIMITED_TO = {
    "dp.diffusion.": {"torch"},
    "dp.data.archives.archive_kinds": set(),
    "dp.data.limits": set(),
    "dp.worlds.": {"numpy"},
    "dp.training.presets": set(),
    "dp.training.locks": {"filelock"},
    "dp.training.run_folder": {"filelock"},
    "dp.training.status": set(),
    "dp.training.processes": {"filelock"},
    **{f"dp.system.{name}": set() for name in ("atomic_files", "records", "stdio", "timestamps", "validation")},
}

FUNCTION_LINES = 60
LONGER_FUNCTIONS = {
    "dp.training.trainer.Trainer.__init__": "one check and one attribute for each of its settings",
}
FILE_LINES = 400


class Import(NamedTuple):
    """The target of an import statement and the function that contains it ('' at the top of the file)."""

    importer: str
    function: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module by its dotted name."""
    paths = [*sorted((ROOT / "dp").rglob("*.py")), ROOT / "app.py"]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8")) for name, path in named.items()}


def package_of(module: str) -> str:
    """'training' for dp.training.remote.job, 'dp' for dp itself and for dp.__main__."""
    parts = module.split(".")
    return parts[0] if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("dp", "app")


@cache
def imports() -> list[Import]:
    return [found for name, tree in modules().items() for found in _imports(tree, name, "")]


def _imports(node: ast.AST, module: str, function: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(module, function, alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"{module}:{child.lineno}: a relative import"
            # `from dp.data import codec` imports the module dp.data.codec, `from dp import RIN` a name of dp.
            full = [f"{child.module}.{alias.name}" for alias in child.names]
            targets = {name if name in modules() else child.module for name in full}
            yield from (Import(module, function, target, child.lineno) for target in sorted(targets))
        else:
            inner = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            yield from _imports(child, module, inner)


def is_exception(found: Import) -> bool:
    return (found.importer, found.function, found.target) in EXCEPTIONS


def functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    """Return the dotted name and the length of every function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}.{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child.end_lineno - child.lineno + 1
            yield from functions(child, name)
        else:
            yield from functions(child, prefix)


def graph() -> dict[str, Counter[str]]:
    """Count the imports from each package to each other one, without the exceptions."""
    edges: dict[str, Counter[str]] = {package: Counter() for package in MAY_IMPORT}
    for found in imports():
        source, target = package_of(found.importer), package_of(found.target)
        if is_ours(found.target) and source != target and not is_exception(found):
            edges[source][target] += 1
    return edges


def test_a_package_imports_only_packages_below_it():
    assert {package_of(name) for name in modules()} == MAY_IMPORT.keys()
    wrong = [
        str(found)
        for found in imports()
        if is_ours(found.target)
        and package_of(found.target) not in MAY_IMPORT[package_of(found.importer)] | {package_of(found.importer)}
        and not is_exception(found)
    ]
    assert wrong == []


def test_there_is_no_import_cycle():
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        if found.target in below and not is_exception(found):
            below[found.importer].add(found.target)
    while leaves := [name for name, targets in below.items() if not targets]:
        below = {name: targets.difference(leaves) for name, targets in below.items() if targets}
    assert below == {}, "each of these imports another one, in a circle"


def test_checkpoints_and_hub_know_networks_and_configs_but_not_the_policy():
    wrong = [str(f) for f in imports() if package_of(f.importer) in ("checkpoints", "hub") and f.target == POLICY]
    assert wrong == []


def test_the_exceptions_are_used():
    assert {(f.importer, f.function, f.target) for f in imports()} >= EXCEPTIONS


def test_foreign_packages_stay_where_they_belong():
    wrong = []
    for found in imports():
        package = found.target.split(".")[0]
        if is_ours(found.target) or package in sys.stdlib_module_names:
            continue
        limits = [allowed for prefix, allowed in LIMITED_TO.items() if f"{found.importer}.".startswith(prefix)]
        is_limited = any(package not in allowed for allowed in limits)
        if is_limited or package_of(found.importer) not in ONLY_IN.get(package, MAY_IMPORT):
            wrong.append(str(found))
    assert wrong == []


def test_imports_are_at_the_top_of_the_file():
    assert [str(found) for found in imports() if found.function and not is_exception(found)] == []


def test_only_dp_itself_imports_by_name():
    """Imports by name would escape these tests."""
    wrong = []
    for module, tree in modules().items():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        targets = {found.target.split(".")[0] for found in imports() if found.importer == module}
        if package_of(module) != "dp" and (names & {"import_module", "__import__"} or "importlib" in targets):
            wrong.append(module)
    assert wrong == []


def test_dp_has_at_most_ten_entries():
    entries = {path.name for path in (ROOT / "dp").iterdir()} - {"__init__.py", "__main__.py", "__pycache__"}
    assert len(entries) <= 10, sorted(entries)


def test_the_init_files_of_packages_are_empty():
    inits = sorted((ROOT / "dp").rglob("__init__.py"))
    assert [path.parent.name for path in inits if path.parent.name != "dp" and path.read_text(encoding="utf-8")] == []


def test_a_function_fits_on_a_screen_or_is_listed_with_a_reason():
    lengths = {name: lines for module, tree in modules().items() for name, lines in functions(tree, module)}
    long = {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES}
    assert {name: lines for name, lines in long.items() if name not in LONGER_FUNCTIONS} == {}
    assert sorted(LONGER_FUNCTIONS.keys() - long.keys()) == [], "listed, but short enough"


def test_a_file_has_at_most_400_lines():
    paths = [*(ROOT / "dp").rglob("*.py"), ROOT / "app.py"]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in paths}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def test_every_module_has_a_docstring():
    inits = {".".join(path.relative_to(ROOT).parts[:-1]) for path in (ROOT / "dp").rglob("__init__.py")} - {"dp"}
    assert [module for module, tree in modules().items() if module not in inits and not ast.get_docstring(tree)] == []


def below_ui() -> list[str]:
    inits = {".".join(path.relative_to(ROOT).parts[:-1]) for path in (ROOT / "dp").rglob("__init__.py")}
    return sorted(name for name in modules().keys() - inits if package_of(name) not in ("dp", "app", "ui"))


WITHOUT_TORCH = ["locks", "status", "run_folder", "processes", "presets", "cli", "worker"]
WITHOUT_TORCH += [f"remote.{name}" for name in ("hardware", "sync", "job", "worker", "cli")]


# In this order, each with what must not be loaded after it and all before it.
LOADED = {
    "dp": (["dp"], {"torch", "numpy", "PIL", "gradio", "huggingface_hub", "filelock"}),
    "the app's limits": (["dp.data.limits"], {"torch", "numpy", "PIL", "gradio", "huggingface_hub", "filelock"}),
    "training without torch": ([f"dp.training.{name}" for name in WITHOUT_TORCH], {"torch", "PIL", "gradio"}),
    "worlds": ([f"dp.worlds.{name}" for name in ("metrics", "expert")], {"torch", "PIL", "gradio"}),
    "preparing images": (["dp.data.prepare"], {"torch", "gradio"}),
    "serving": ([POLICY, FOLDER, "dp.serving.engine"], {"accelerate", "ema_pytorch", "gradio"}),
    "all below the ui, and the exported page": ([*below_ui(), "dp.ui.web.cli"], {"gradio", "onnx"}),
}


@cache
def too_much() -> dict[str, list[str]]:
    """Import all of LOADED in one fresh process and return, for each, what was loaded although it must not be."""
    script = "import sys, json, importlib; found = {}\n"
    script += f"for name, (modules, absent) in {LOADED}.items():\n"
    script += "    for module in modules: importlib.import_module(module)\n"
    script += "    found[name] = sorted(absent & sys.modules.keys())\n"
    script += "print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", LOADED)
def test_a_fresh_process_loads_no_more_than_it_needs(name):
    assert too_much()[name] == []


if __name__ == "__main__":
    for package, targets in graph().items():
        print(f"{package:<12}", ", ".join(f"{name} ({targets[name]})" for name in MAY_IMPORT if targets[name]) or "-")
