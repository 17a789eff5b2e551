"""A hook of MkDocs: documents of the repository's top folder are pages of the site too.

They stand beside the files of docs/, README.md as the home page; links between the two lose their folder. A link to
another file of the repository, which is no page, becomes plain text. A link to nothing stays as it is, and makes a
strict build fail.
"""

import re
from collections.abc import Collection
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
HOME, README = "index.md", "README.md"
DOCUMENTS = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", README, "RELEASING.md", "RESULTS.md", "SECURITY.md")
LINK = re.compile(r"(?P<start>!?\[(?P<text>[^\]\[]*)\]\()(?P<target>[^)#\s:]+)(?P<rest>#?[^)\s]*\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the top folder to the site's files."""
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, HOME if name == README else name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page for its place in the site."""
    source = page.file.src_uri
    folder = ROOT if source == HOME or source in DOCUMENTS else (ROOT / "docs" / source).parent
    return link(markdown, folder, files.src_uris)


def link(markdown: str, folder: Path, places: Collection[str]) -> str:
    """Rewrite the links of a document in `folder` of the repository. `places`: the site's files."""
    up = 0 if folder == ROOT else len(folder.relative_to(ROOT / "docs").parts)

    def rewrite(found: re.Match[str]) -> str:
        path = (folder / found["target"]).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            return found[0]
        name = path.relative_to(ROOT).as_posix()
        place = HOME if name == README else name.removeprefix("docs/")
        is_page = place in places and (name in DOCUMENTS or name.startswith("docs/"))
        return f"{found['start']}{'../' * up}{place}{found['rest']}" if is_page else found["text"]

    return LINK.sub(rewrite, markdown)
