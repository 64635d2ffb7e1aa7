"""MkDocs hooks: pages that lie outside of docs/, and links as they must be once all pages stand in one place.

In the repository a link leads to a file, from docs/ as `../MODEL.md`, from the README as `docs/cli.md`. Among the
pages docs/ is the root, the README is `index.md`, and MODEL.md and bench/ stand beside the rest. Links to what is no
page, such as a file of the source, become its name. Refuses to know what the pages say.
"""

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Where a page lies in the repository -> its name among the pages.
ELSEWHERE = {"README.md": "index.md", "MODEL.md": "MODEL.md", "bench/README.md": "bench/README.md"}
#: A bar in the code of a table's cell: the repository's reader wants it escaped, and shows none of that; MkDocs does.
BAR = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
#: Files that are no pages, but are linked to and come along.
ATTACHED = ("bench/neon_instructions.csv",)
COLOURS = "colours.css"
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\(([^()\s]+)\)")


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages and files that lie outside of docs/, and the colours of code."""
    from mkdocs.structure.files import File
    from pygments.formatters import HtmlFormatter

    for path, name in [*ELSEWHERE.items(), *((path, path) for path in ATTACHED)]:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs("[data-bs-theme=dark] .highlight")
    files.append(File.generated(config, COLOURS, content=f"{light}\n{dark}\n"))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """The page's text, its links leading to pages."""
    name = page.file.src_uri
    here = {new: old for old, new in ELSEWHERE.items()}.get(name, f"docs/{name}")
    return relink(markdown, here, name, {file.src_uri for file in files})


def relink(markdown: str, here: str, name: str, known: set[str]) -> str:
    """`markdown` of the repository's file `here`, its relative links as the page `name` must say them.

    known   the names of all pages and attached files; what a link says of anything else becomes plain text
    """

    def replace(match: re.Match[str]) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if not (ROOT / path).exists():
            return match[0]  # a wrong link stays one, for --strict to find
        new = ELSEWHERE.get(path, path.removeprefix("docs/"))
        if new not in known:
            return text
        return f"[{text}]({posixpath.relpath(new, posixpath.dirname(name) or '.')}{mark}{anchor})"

    return BAR.sub(lambda match: match[0].replace(r"\|", "|"), LINK.sub(replace, markdown))
