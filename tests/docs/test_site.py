"""The documentation site: its pages, their links, and that it loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="pip install 'metarun[docs]'")

import doctests
import pages

ROOT = Path(__file__).parents[2]
PLACES = ("index.md", "methods.md", "RESULTS.md", "CONTRIBUTING.md", "api/types.md", "images/curves.png")


@pytest.mark.parametrize(
    ("folder", "link", "rewritten"),
    [
        ("", "[methods](docs/methods.md)", "[methods](methods.md)"),
        ("", "[why](docs/methods.md#batch-statistics)", "[why](methods.md#batch-statistics)"),
        ("", "[`metarun/algos`](metarun/algos)", "`metarun/algos`"),
        ("", "![curves](docs/images/curves.png)", "![curves](images/curves.png)"),
        ("", "[nothing](docs/nothing.md)", "[nothing](docs/nothing.md)"),
        ("", "[elsewhere](https://arxiv.org/abs/1703.03400)", "[elsewhere](https://arxiv.org/abs/1703.03400)"),
        ("", "[below](#use)", "[below](#use)"),
        ("docs", "[results](../RESULTS.md)", "[results](RESULTS.md)"),
        ("docs", "[start](../README.md)", "[start](index.md)"),
        ("docs", "[figures](../metarun/reports/published.yaml)", "figures"),
        ("docs/api", "[adding](../../CONTRIBUTING.md#adding-a-method)", "[adding](../CONTRIBUTING.md#adding-a-method)"),
        ("docs/api", "[methods](../methods.md)", "[methods](../methods.md)"),
    ],
)
def test_links_are_rewritten_for_the_site(folder: str, link: str, rewritten: str) -> None:
    assert pages.link(f"See {link}.", ROOT / folder, PLACES) == f"See {rewritten}."


def test_doctests_become_blocks_of_code() -> None:
    docstring = "Add.\n\n>>> 1 + 1\n2\n\nAlso:\n\n>>> sum(\n...     [1, 2]\n... )\n3\n"
    fenced = "Add.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nAlso:\n\n```pycon\n>>> sum(\n...     [1, 2]\n... )\n3\n```\n"
    assert doctests.fence(docstring) == fenced


class Loads(HTMLParser):
    """Collects the addresses that a browser fetches without a click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        fetched = (values.get("src"), values.get("srcset"), values.get("data"), values.get("poster"))
        self.found += [address for address in fetched if address]
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(values["href"] or "")


@pytest.mark.integration
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = sorted(site.rglob("*.html"))
    assert len(written) > 10
    for page in written:
        parser = Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found
        assert [address for address in parser.found if re.match(r"(?:\w+:)?//", address)] == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == [], style
