"""The package as installed: what it holds, what it loads, what it costs, which instruction set it chose."""

import ast
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest

import pyllama
from pyllama import _kernels
from pyllama.version import __version__

PACKAGE = Path(pyllama.__file__).parent
# Set by whoever runs the tests on a CPU he knows (tools/aarch64.sh): a silent fall-back must fail.
EMULATED = os.environ.get("PYLLAMA_EMULATED") == "1"
EXPECTED_ISA = os.environ.get("PYLLAMA_EXPECT_ISA", "")
EXPECTED_FEATURES = os.environ.get("PYLLAMA_EXPECT_FEATURES", "")

# Imports go down only: nothing imports what stands to its right, directly or through others.
CHAIN = ("errors", "config", "checkpoint", "decoder", "streaming", "generation", "model", "cli", "__main__")

# Each costs more to load than all of pyllama; the function that needs one imports it.
LOADED_LATE = {"jinja2", "sentencepiece", "regex", "huggingface_hub", "argparse", "asyncio", "http.client"}


def distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("pyllama")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pyllama is not installed here, only on the path")


def run_python(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def test_the_tests_see_the_installed_package_and_not_the_tree():
    installed = Path(distribution().locate_file("pyllama/__init__.py"))
    assert installed.samefile(PACKAGE / "__init__.py")


def test_interpreters_started_by_tests_see_the_same_package():
    assert Path(run_python("import pyllama; print(pyllama.__file__)").strip()).parent == PACKAGE


def test_version_is_the_same_everywhere():
    assert pyllama.__version__ == __version__
    assert distribution().version == __version__


def test_extension_uses_the_limited_api():
    name = Path(_kernels.__file__).name
    if not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled():
        assert name == "_kernels.abi3.so"


def test_the_package_is_typed():
    assert files("pyllama").joinpath("py.typed").is_file()
    assert files("pyllama").joinpath("_kernels.pyi").is_file()


def test_sources_of_the_extension_are_not_installed():
    if PACKAGE.parent.joinpath("setup.py").exists():
        pytest.skip("in place: the tree is the package")
    assert [path.name for path in PACKAGE.rglob("*") if path.suffix in {".c", ".h", ".pyx", ".pxd"}] == []


def test_stub_names_what_the_extension_offers():
    stub = ast.parse(PACKAGE.joinpath("_kernels.pyi").read_text(encoding="utf-8"))
    declared = {}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            declared[node.name] = {getattr(part, "name", None) or getattr(part, "target", part).id
                                   for part in node.body if not isinstance(part, (ast.Expr, ast.Pass))}
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = {argument.arg for argument in node.args.args + node.args.kwonlyargs}
        elif isinstance(node, ast.AnnAssign):
            declared[node.target.id] = set()
    offered = {name for name, value in vars(_kernels).items() if not name.startswith("_")
               and not inspect.ismodule(value)
               and getattr(value, "__module__", _kernels.__name__) == _kernels.__name__}
    assert {name for name in declared if not name.startswith("_")} == offered
    for name in offered:
        value = getattr(_kernels, name)
        if inspect.isclass(value):
            members = {member for member in vars(value) if not member.startswith("_")}
            assert {member for member in declared[name] if not member.startswith("_")} == members, name


def test_console_script_is_the_command_line():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="pyllama")
    if not scripts:
        pytest.skip("pyllama is not installed here, only on the path")
    (script,) = scripts
    assert script.value == "pyllama.cli:main"
    assert callable(script.load())


def test_runtime_dependencies_are_the_light_ones():
    required = {re.match(r"[\w.-]+", line).group() for line in distribution().requires or ()
                if "extra ==" not in line}
    assert required == {"numpy", "jinja2"}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from executed(child)


def imported_by(path: Path) -> set[str]:
    """The top-level modules and subpackages of pyllama that this file imports, wherever in it."""
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    found = set()
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "pyllama":
                found.add(name[1] if len(name) > 1 and name[1] in TOP_LEVEL else "__init__")
    return found


TOP_LEVEL = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} | {"_kernels"}


@cache
def imports_between_modules() -> dict[str, set[str]]:
    found = {name: set() for name in TOP_LEVEL}
    for path in modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found[own] |= imported_by(path) - {own}
    return found


def test_imports_go_round_in_no_circle():
    TopologicalSorter(imports_between_modules()).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", CHAIN)
def test_imports_go_down_only(name: str):
    imports = imports_between_modules()
    reached, ahead = set(), [name]
    while ahead:
        for other in imports[ahead.pop()] - reached:
            reached.add(other)
            ahead.append(other)
    assert reached & set(CHAIN[CHAIN.index(name) + 1:]) == set()


def test_import_loads_nothing_heavy():
    names = set(run_python("import sys, numpy; before = set(sys.modules); import pyllama; "
                           "print('\\n'.join(set(sys.modules) - before))").split())
    assert "pyllama" in names
    assert names & LOADED_LATE == set()


@pytest.mark.skipif(EMULATED, reason="counts the emulator's memory too")
def test_import_keeps_the_resident_set_under_60_mb():
    status = run_python("import pyllama; print(open('/proc/self/status').read())")
    (peak_kb,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kb < 60_000


@pytest.mark.skipif(EMULATED, reason="times the emulator")
def test_import_costs_under_150_ms_more_than_numpy():
    code = "import time, numpy; t = time.perf_counter(); import pyllama; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.150


def test_isa_is_one_of_those_supported():
    assert _kernels.isa() in _kernels.supported_isas()
    assert "scalar" in _kernels.supported_isas()


@pytest.mark.skipif(not EXPECTED_ISA, reason="PYLLAMA_EXPECT_ISA does not say what this CPU is")
def test_the_expected_isa_was_chosen():
    assert _kernels.isa() == EXPECTED_ISA


@pytest.mark.skipif(not EXPECTED_FEATURES, reason="PYLLAMA_EXPECT_FEATURES does not say what this CPU has")
def test_the_expected_cpu_features_were_detected():
    assert sorted(_kernels.cpu_features()) == sorted(EXPECTED_FEATURES.split(","))


def test_isa_can_be_chosen_by_the_environment():
    for isa in _kernels.supported_isas():
        done = subprocess.run(
            [sys.executable, "-c", "from pyllama import _kernels; print(_kernels.isa())"],
            env=os.environ | {"PYLLAMA_ISA": isa}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == isa


def test_the_project_file_and_the_package_agree_on_python():
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("no pyproject.toml beside the tests")
    needs = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["requires-python"]
    assert distribution().metadata["Requires-Python"] == needs
