"""The page of a report: whole, inert and by itself, and in a real browser readable wherever it is opened."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from metarun.reports import charts, web
from metarun.reports.collect import found
from metarun.reports.tables import Report
from tests.support.browser import CHROMIUM, Tab, browser
from tests.support.tiny_runs import omniglot_result, sinusoid_result, write_course, write_run, write_seeds

HOSTILE = """<script>document.title="hit"</script><img src=x onerror='document.title="hit"'> "quoted" & so on"""
LONG = "a_name_" + "w" * 150
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed")


class Seen(HTMLParser):
    """What a browser would make of the page: tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several seeds and methods with curves and scores; a regression; one with neither; names that do their worst."""
    place = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    hard = rng.integers(2, 6, size=200) / 5
    write_seeds(place, np.stack([hard, np.roll(hard, 1)]))
    write_seeds(place, hard[None] / 2, algo="anil")
    write_seeds(place / "worst", hard[None] / 3, algo=HOSTILE)
    for folder in (place / "maml0", place / "maml1", place / "anil0"):
        write_course(folder, "accuracy", [0.3, 0.5, 0.7, 0.9], [0.6, 0.8])
    sine = sinusoid_result()
    write_run(place / "sine", sine, "- experiment=maml/sinusoid\n")
    (place / "sine" / "scores").mkdir()
    (place / "sine" / "scores" / "test.csv").write_text("task,mse\n0,0.01\n1,0.1\n2,10.0\n")
    write_course(place / "sine", "mse", [3.0, 0.3, float("nan"), 0.03], [0.5, 0.05])
    bare = omniglot_result()
    bare["choices"]["experiment"] = LONG
    write_run(place / "bare", bare, f"- experiment={LONG}\n- seed=1\n")
    return place


@pytest.fixture(scope="module")
def text(runs: Path) -> str:
    return web.page(Report(found([runs])))


def test_the_page_says_all_that_the_other_forms_do(runs, text) -> None:
    report, seen = Report(found([runs])), Seen(text)
    told = re.sub(r"\s+", " ", seen.text)
    tables = [report.overview, *(table for part in report.papers + report.comparisons for table in part.tables)]
    entries = {entry for table in tables for row in table.rows for entry in row}
    assert len(entries) > 40
    for entry in entries | set(report.notes) | set(report.commands):
        assert re.sub(r"\[\^(\w+)\]", r" \1", entry) in told
    assert "no run (99.9 ± 0.1)" in told
    assert "Beside published figures: " in told
    assert "1900 MiB" in told
    assert f"Without a metrics.csv: {HOSTILE}/omniglot_5w1s, {LONG}." in told
    assert f"Without scores: {LONG} test, {LONG} test_inductive." in told


def test_settings_that_differ_are_shown_with_their_values(text) -> None:
    table = text[text.index('id="settings-that-differ"') : text.index('id="where-runs-are-not')]
    assert "algo.<wbr>name" in table or "algo.name" in table
    assert "<td>anil</td>" in table
    assert "shots" not in table  # the same in all


def test_names_are_inert(text) -> None:
    seen = Seen(text)
    assert not {"script", "img", "iframe", "object", "link"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert seen.text.count(HOSTILE) > 3


def test_nothing_is_fetched(text) -> None:
    """Links lead to papers and to places in the page, and the page forbids the browser all else."""
    seen = Seen(text)
    assert not seen.all("src")
    links, places = seen.all("href"), seen.all("id")
    assert len(places) == len(set(places))
    assert {link for link in links if not link.startswith("https://")} <= {f"#{place}" for place in places}
    assert not re.search(r"url\(|@import|<meta[^>]*refresh", text)
    assert "default-src 'none'" in seen.all("content")[1]


def test_each_seed_has_its_curves(text) -> None:
    """Two seeds of MAML, one of ANIL and of the regression; the two others have none."""
    assert text.count("<figure>") == 3
    assert (text.count('class="train" d="M'), text.count('class="val" d="M')) == (5, 5)  # and the key


def test_a_curve_is_drawn_to_scale() -> None:
    """Steps 0 to 20 over 288 units, values 0 to 1 over 174; what is not finite is left out."""
    course = {"train": [(0.0, 0.0), (10.0, float("nan")), (20.0, 1.0)], "val": [(10.0, 0.5)]}
    chart = charts.curves([course], log=False)
    assert 'class="train" d="M46.0 184.0L334.0 10.0"' in chart
    assert 'class="val dots" d="M190.0 97.0h0"' in chart
    assert charts.curves([{"train": [(1.0, float("nan"))]}, {}], log=False) is None
    assert 'class="train dots" d="M334.0 97.0h0"' in charts.curves([{"train": [(1.0, 0.2)]}], log=False)  # no line
    logarithmic = charts.curves([{"train": [(0.0, 0.01), (1.0, 0.1), (2.0, 1.0), (3.0, 0.0)]}], log=True)
    assert 'd="M46.0 184.0L190.0 97.0L334.0 10.0"' in logarithmic


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    points = [(float(step), 0.0) for step in range(1001)]
    kept = charts.thinned(points)
    assert len(kept) <= charts.MOST + 1
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert charts.thinned(points[:1]) == points[:1]


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0, 10000, False, [0, 2000, 4000, 6000, 8000, 10000]),
        (61.3, 99.2, False, [70, 80, 90]),
        (0.03, 4.1, True, [0.03, 0.1, 0.3, 1, 3]),
        (0.3, 4.1, True, [0.5, 1, 2]),
        (1e-9, 1e9, True, [1e-9, 1e-5, 1e-1, 1e3, 1e7]),
        (0.5, 0.5, False, []),
    ],
)
def test_ticks_are_round_and_few(low, high, log, ticks) -> None:
    assert charts.Scale(low, high, 0, 1, log).ticks(5) == pytest.approx(ticks)


def test_bars_count_tasks() -> None:
    """Of four tasks three score 1: the bar there is three times as high, 32 units; the mean is at 3/4 of the range."""
    scores = np.array([0.5, 1.0, 1.0, 1.0])
    chart = charts.distribution(scores, charts.span([scores], log=False))
    assert re.findall(r"v-([\d.]+)h", chart) == ["10.7", "32.0"]
    assert f'class="mean" d="M{8 + 0.75 * 224}' in chart
    many = charts.distribution(np.arange(1000.0), charts.span([np.arange(1000.0)], log=False))
    assert len(re.findall("v-", many)) == charts.BARS


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_left_out_of_the_picture(bad) -> None:
    scores = np.array([0.5, 1.0, bad])
    chart = charts.distribution(scores, charts.span([scores], log=True))
    assert re.findall(r"v-([\d.]+)h", chart) == ["32.0", "32.0"]
    assert 'class="mean"' not in chart
    assert "v-" not in charts.distribution(np.array([bad]), charts.span([np.array([bad])], log=True))


# in a browser --------------------------------------------------------------------------------------------------------

CONTRAST = """
(() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => parts(text).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const opaque = text => parts(text).length < 4 || parts(text)[3] > 0;
  const behind = e => { const c = getComputedStyle(e).backgroundColor;
    return opaque(c) ? c : e.parentElement ? behind(e.parentElement) : "rgb(255, 255, 255)"; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const found = {};
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e), written = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
    const kind = e.tagName + "." + (e.getAttribute("class") || "");
    if (written) found[kind + " text"] = ratio(e.closest("svg") ? style.fill : style.color, behind(e));
    if (e.matches(".train, .val, .mean")) found[kind + " line"] = ratio(style.stroke, behind(e));
    if (e.matches(".bars")) found[kind + " bars"] = ratio(style.fill, behind(e));
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(text, encoding="utf-8")
    return file


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 390])
def test_the_page_is_readable(tab, page, width, scheme, tmp_path: Path) -> None:
    """No sideways scrolling but within tables, everything legible (WCAG 2.2 AA), nothing asked for, nothing run."""
    tab.asked.clear()
    tab.open(page, width, scheme)
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("[...document.querySelectorAll('.box')].some(box => box.scrollWidth > box.clientWidth)")
    dark = tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")
    ratios = tab.value(CONTRAST)
    assert len(ratios) > 20
    needed = {"text": 4.5, "line": 3.0, "bars": 2.0}  # bars have a line for their mean and figures beside them
    assert {kind: ratio for kind, ratio in ratios.items() if ratio < needed[kind.split()[-1]]} == {}
    assert tab.value("document.querySelector('figure').clientWidth") > 0.9 * charts.WIDTH  # its letters have 11 pixels
    assert tab.value("document.title") == "metarun: results"
    assert (tab.asked, tab.said) == ([page.as_uri()], [])
    tab.photograph(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@in_a_browser
def test_the_browser_itself_would_refuse_what_got_in(tab, text, tmp_path: Path) -> None:
    """Were a name not escaped: no script is run, no picture fetched."""
    file = tmp_path / "report.html"
    attack = '<script>document.title = "hit"</script><img src="https://example.invalid/picture.png">'
    file.write_text(text.replace("<h1>", f"{attack}<h1>"), encoding="utf-8")
    tab.open(file, 1366, "light")
    assert tab.value("document.title") == "metarun: results"
    assert tab.refused == ["csp"]
    assert len([entry for entry in tab.said if "Content Security Policy" in str(entry)]) == 2
    tab.said.clear()
