"""What the documentation says is so: its Python runs, and its options are those of --help."""

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyllama
from pyllama.cli import build_parser
from pyllama.cli.hints import commands_of

DOCS = Path(__file__).parent.parent / "docs"
MODEL = "models/SmolLM2-135M-Instruct"

if not DOCS.is_dir():
    pytest.skip("the documentation is not here, only the tests", allow_module_level=True)


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(first line, text) of each fenced block of a language."""
    text = path.read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n"), match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def test_the_examples_of_the_api_run(chat_folder, tmp_path, monkeypatch, capsys):
    """In order and in one namespace, with a tiny model where the page has a real one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / MODEL).parent.mkdir()
    (tmp_path / MODEL).symlink_to(chat_folder)
    namespace: dict = {}
    examples = blocks(DOCS / "api.md", "python")
    assert len(examples) > 5
    for line, code in examples:
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, "docs/api.md", "exec"), namespace)
    assert "user : What is the capital of France?" in capsys.readouterr().out


def commands() -> dict[str, argparse.ArgumentParser]:
    return commands_of(build_parser())


def option_row(action: argparse.Action) -> str:
    """The table row of an option, from what --help prints of it."""
    names = ", ".join(action.option_strings) or str(action.metavar)
    value = ""
    if action.option_strings and action.nargs != 0:
        value = " " + (action.metavar or "{" + ",".join(action.choices or ()) + "}")
    return f"| `{names}{value}` | {action.help} |"


@pytest.mark.parametrize("command", sorted(commands()))
def test_the_options_in_cli_md_are_those_of_help(command):
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    section = re.search(rf"^## pyllama {command}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section 'pyllama {command}'"
    parser = commands()[command]
    expected = [option_row(action) for action in parser._actions if action.dest != "help"]
    table = re.search(r"^\| option \| meaning \|\n\|---\|---\|\n((?:\|.*\n)*)", section[1], re.MULTILINE)
    assert table and table[1].splitlines() == expected
    assert " ".join((parser.description or "").split()) in " ".join(section[1].split())


def test_cli_md_has_no_other_command():
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## pyllama (\w+)$", text, re.MULTILINE)) == sorted(commands())


def test_the_api_page_has_every_sampling_option():
    import dataclasses

    from pyllama.generation.sampler import SamplingParams

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    section = text[text.index("## Sampling") : text.index("## Conversations")]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(documented) == sorted(field.name for field in dataclasses.fields(SamplingParams))


def test_every_file_that_the_architecture_names_is_there():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tree = DOCS.parent / "pyllama"
    package = tree if tree.is_dir() else Path(pyllama.__file__).parent
    named = set(re.findall(r"`((?:[\w.*-]+/)*[\w.*-]+(?:\.py|\.pyx|\.h|\.c|/))`", text))
    assert len(named) > 40
    names = {name for name in named if "NAME" not in name}
    wings = [package, package / "csrc", package / "tokenizer", package / "server", package / "engine", DOCS.parent]
    wings += [path for path in package.iterdir() if path.is_dir()]
    for name in sorted(names):
        if package is not tree and (
            name.endswith((".h", ".c", ".pyx", "csrc/")) or "csrc" in name or name == "setup.py"
        ):
            continue  # not in the wheel
        assert any(list(wing.glob(name.rstrip("/"))) for wing in wings), name


def test_nothing_makes_people_install_the_project_that_has_our_name():
    """On the package index, `pyllama` is somebody else's."""
    package = Path(pyllama.__file__).parent
    pages = [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md"), *package.rglob("*.py"), *package.rglob("*.html")]
    assert len(pages) > 100
    wrong = re.compile(r"install (-\S+ )*[\"']?pyllama\b(?![-/])")
    assert [path.name for path in pages if wrong.search(path.read_text(encoding="utf-8"))] == []


def links(path: Path) -> list[str]:
    """The targets of a page's links, code left out."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^()\s]+)\)", text)


@pytest.mark.parametrize("path", ["README.md", "MODEL.md", "bench/README.md", *sorted(p.name for p in DOCS.glob("*"))])
def test_links_lead_to_files(path):
    page = (DOCS.parent if path in {"README.md", "MODEL.md", "bench/README.md"} else DOCS) / path
    targets = [target.partition("#")[0] for target in links(page) if not re.match(r"https?:|#", target)]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.fixture
def docs_pages():
    """tools/docs_pages.py, which needs no MkDocs for what is tested of it."""
    spec = importlib.util.spec_from_file_location("docs_pages", DOCS.parent / "tools" / "docs_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("here", "name", "text", "expected"),
    [
        ("docs/api.md", "api.md", "[a](../MODEL.md#numerics)", "[a](MODEL.md#numerics)"),
        ("docs/api.md", "api.md", "[a](cli.md) and [b](#here)", "[a](cli.md) and [b](#here)"),
        ("README.md", "index.md", "[docs/cli.md](docs/cli.md#settings)", "[docs/cli.md](cli.md#settings)"),
        ("bench/README.md", "bench/README.md", "[x](../docs/arm.md)", "[x](../arm.md)"),
        ("docs/arm.md", "arm.md", "[the script](../tools/mca.py)", "the script"),
        ("docs/arm.md", "arm.md", "[wrong](../tools/no_such.py)", "[wrong](../tools/no_such.py)"),
        ("docs/cli.md", "cli.md", r"| 0 | (`run \| head`) |", "| 0 | (`run | head`) |"),
    ],
)
def test_links_of_the_repository_lead_to_pages(docs_pages, here, name, text, expected):
    known = {"index.md", "MODEL.md", "bench/README.md", "api.md", "arm.md", "cli.md"}
    assert docs_pages.relink(text, here, name, known) == expected


def test_the_pages_build_without_a_warning(tmp_path):
    """Every page is in the navigation; every link leads to a page, and to a heading that is there."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in ("index.html", "cli/index.html", "MODEL/index.html", "bench/index.html", "bench/neon_instructions.csv"):
        assert (tmp_path / "site" / page).is_file(), page
    assert "run ... | head" in (tmp_path / "site" / "cli" / "index.html").read_text(encoding="utf-8")
