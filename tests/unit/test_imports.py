"""The direction of imports, the bare install and the speed of `ehrseq --help`, as DESIGN states them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ehrsequencing

ROOT = Path(ehrsequencing.__file__).parent
SHARED = {"errors", "io", "config", "options", ""}
ALLOWED = {
    "objectives": {"objectives"},
    "data": {"data"},
    "tasks": {"tasks", "data"},
    "models": {"models", "objectives"},
    "tracking": {"tracking"},
    "diagnostics": {"diagnostics", "evaluation"},
    "training": {"training", "data", "objectives", "models", "tracking", "tasks", "diagnostics", "evaluation"},
    "evaluation": {"evaluation", "data", "models", "objectives"},
    "baselines": {"baselines", "data", "evaluation"},
    "utils": {"utils", "tracking"},
}
HEAVY = {"torch", "lightning", "peft", "sklearn", "xgboost", "matplotlib", "transformers", "torchmetrics"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    for path in modules(package):
        for name in imported(path):
            if name.split(".")[0] == "ehrsequencing":
                part = [*name.split("."), ""][1]
                assert part in ALLOWED[package] | SHARED, f"{path.name} imports {name}"


def test_objectives_know_torch_only() -> None:
    for path in modules("objectives"):
        outside = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "ehrsequencing"}, path.name


def test_data_knows_torch_in_batching_only() -> None:
    for package in ("data", "tasks"):
        for path in modules(package):
            if path.name != "batching.py":
                assert not {name.split(".")[0] for name in imported(path)} & HEAVY, path.name


def test_nobody_imports_the_command_line_or_benchmarks() -> None:
    for package in (*ALLOWED, "."):
        for path in sorted((ROOT / package).glob("*.py")):
            if path.name == "__main__.py":
                continue
            assert not any(
                name.startswith(("ehrsequencing.cli", "ehrsequencing.benchmarks")) for name in imported(path)
            )


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_does_not_import_the_heavy_libraries() -> None:
    code = (
        "import sys\nfrom ehrsequencing.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set(sys.modules) & {HEAVY | {'polars', 'pydantic', 'numpy', 'pyarrow'}!r}))"
    )
    assert run(code).strip().splitlines()[-1] == "[]"


def test_verbs_without_torch() -> None:
    code = (
        "import sys\nimport ehrsequencing.data.prepare, ehrsequencing.data.synthetic, ehrsequencing.data.sources\n"
        "import ehrsequencing.tasks.cohorts, ehrsequencing.tasks.audit\n"
        "import ehrsequencing.tasks.temporal, ehrsequencing.evaluation.sample_size\nprint('torch' in sys.modules)"
    )
    assert run(code).strip() == "False"


def test_a_bare_install_imports() -> None:
    """Every module imports with the core dependencies alone: no test or development package is drawn in."""
    code = (
        "import sys, pkgutil, importlib\n"
        "for name in ('pytest', 'hypothesis', 'ruff', 'mypy'):\n    sys.modules[name] = None\n"
        "import ehrsequencing\n"
        "for module in pkgutil.walk_packages(ehrsequencing.__path__, 'ehrsequencing.'):\n"
        "    if not module.name.endswith('__main__'):\n        importlib.import_module(module.name)\n"
        "print('imported')"
    )
    assert run(code).strip().endswith("imported")
