"""The package as installed: what it holds, what it loads, what it costs, which instruction set it chose."""

import ast
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest

import pyllama
from pyllama import _kernels, cli
from pyllama.architecture import FAMILIES
from pyllama.version import __version__

PACKAGE = Path(pyllama.__file__).parent
# Set by whoever runs the tests on a CPU he knows (tools/aarch64.sh): a silent fall-back must fail.
EMULATED = os.environ.get("PYLLAMA_EMULATED") == "1"
EXPECTED_ISA = os.environ.get("PYLLAMA_EXPECT_ISA", "")
EXPECTED_FEATURES = os.environ.get("PYLLAMA_EXPECT_FEATURES", "")

# Each costs more to load than all of pyllama; the function that needs one imports it.
LOADED_LATE = {"jinja2", "sentencepiece", "regex", "argparse", "asyncio", "http.client", "mpi4py"}


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
            declared[node.name] = {
                getattr(part, "name", None) or getattr(part, "target", part).id
                for part in node.body
                if not isinstance(part, (ast.Expr, ast.Pass))
            }
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = {argument.arg for argument in node.args.args + node.args.kwonlyargs}
        elif isinstance(node, ast.AnnAssign):
            declared[node.target.id] = set()
    offered = {
        name
        for name, value in vars(_kernels).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", _kernels.__name__) == _kernels.__name__
    }
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
    required = {re.match(r"[\w.-]+", line).group() for line in distribution().requires or () if "extra ==" not in line}
    assert required == {"numpy", "jinja2", "sentencepiece"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_between_modules() -> dict[str, set[str]]:
    """module -> the modules of pyllama it imports, wherever in it: also in a function, for a type checker, by name."""
    known = {module_name(path): path for path in modules()}
    found: dict[str, set[str]] = {name: set() for name in [*known, "pyllama._kernels"]}
    for own, path in known.items():
        package = own.split(".") if path.name == "__init__.py" else own.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[own] |= {alias.name for alias in node.names} & found.keys()
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = f"{module}.{alias.name}"
                    found[own] |= {name if name in found else module} & found.keys()
    found["pyllama._kernels"] = {"pyllama.errors"}  # by _kernels.pyx, which is not installed
    found["pyllama.architecture"] |= {type(family).__module__ for family in FAMILIES.values()}
    return {own: others - {own} for own, others in found.items()}


def test_imports_go_round_in_no_circle():
    TopologicalSorter(imports_between_modules()).prepare()  # raises CycleError, which names the circle


def test_imports_go_down_only():
    """By the table of docs/architecture.md. What stands in no row of it all may use, and it uses no wing."""
    page = Path(__file__).parents[1] / "docs" / "architecture.md"
    if not page.is_file():
        pytest.skip("no docs beside the tests")
    (section,) = re.findall(r"^## The wings$.*?^## ", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    wings = [re.sub(r"/|\.pyx?", "", name) for row in rows for name in re.findall(r"`(.+?)`", row)]
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(wings)

    def place(module: str) -> int:
        name = (module.split(".") + ["loading"])[1]  # the package itself is load() and what that returns
        return -1 if name == "__main__" else wings.index(name) if name in wings else len(wings)

    arrows = [(module, other) for module, others in imports_between_modules().items() for other in others]
    assert [(module, other) for module, other in arrows if place(module) > place(other)] == []


def test_completions_are_made_with_nothing_but_the_sources():
    """setup.py makes them before the kernels are built, in an environment without the package's dependencies."""
    run_python(
        "import sys\n"
        "for name in ('pyllama._kernels', 'numpy', 'jinja2', 'sentencepiece'): sys.modules[name] = None\n"
        "from pyllama.cli import build_parser; from pyllama.cli.completion import SHELLS, script\n"
        "for shell in SHELLS: script(build_parser(), shell)"
    )


def test_a_command_is_parsed_without_the_others():
    code = (
        "import os, sys; os.environ['XDG_CONFIG_HOME'] = '/no/such'; os.environ.pop('PYLLAMA_CONFIG', None)\n"
        "from pyllama.cli import main; main(['rm', '/no/such'])"
    )
    loaded = run_python(f"{code}\nprint(*sys.modules)").split()
    assert "pyllama.cli.rm" in loaded and "pyllama.cli.serve" not in loaded


def test_every_word_for_a_command_is_known_before_the_commands_are():
    words = next(action.choices for action in cli.build_parser()._actions if action.choices)
    named = {word: cli._OTHERWISE_CALLED.get(word, word) for word in words}
    assert set(named.values()) == set(cli.COMMANDS)
    for word, module in named.items():
        (alone,) = (action.choices for action in cli.build_parser([module])._actions if action.choices)
        assert word in alone


def test_import_loads_nothing_heavy():
    names = set(
        run_python(
            "import sys, numpy; before = set(sys.modules); import pyllama; print('\\n'.join(set(sys.modules) - before))"
        ).split()
    )
    assert "pyllama" in names
    assert names & LOADED_LATE == set()


def test_load_is_there_without_the_decoder():
    """Which all families come with, and whoever only asks what there is does not need."""
    names = run_python("import sys, pyllama; pyllama.load, pyllama.Model; print(*sys.modules)").split()
    assert "pyllama.model" in names
    assert [name for name in names if name.startswith(("pyllama.decoder", "pyllama.architecture"))] == []


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
    assert _kernels.isa() in EXPECTED_ISA.split(",")


@pytest.mark.skipif(not EXPECTED_FEATURES, reason="PYLLAMA_EXPECT_FEATURES does not say what this CPU has")
def test_the_expected_cpu_features_were_detected():
    assert sorted(_kernels.cpu_features()) == sorted(EXPECTED_FEATURES.split(","))


def test_isa_can_be_chosen_by_the_environment():
    for isa in _kernels.supported_isas():
        done = subprocess.run(
            [sys.executable, "-c", "from pyllama import _kernels; print(_kernels.isa())"],
            env=os.environ | {"PYLLAMA_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == isa


def test_the_project_file_and_the_package_agree_on_python():
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("no pyproject.toml beside the tests")
    needs = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["requires-python"]
    assert distribution().metadata["Requires-Python"] == needs
