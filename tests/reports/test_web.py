"""The page of a report: complete, inert, a single file, and readable in a real browser at several widths."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from metarun.reports import charts, web
from metarun.reports.collect import read_runs
from metarun.reports.tables import Report
from tests.support.browser import CHROMIUM, Tab, open_browser
from tests.support.tiny_runs import omniglot_result, sinusoid_result, write_course, write_run, write_seeds

HOSTILE = """<script>document.title="hit"</script><img src=x onerror='document.title="hit"'> "quoted" & so on"""
LONG = "a_name_" + "w" * 150


def in_a_browser(test: Callable[..., None]) -> Callable[..., None]:
    missing = pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed")
    marked: Callable[..., None] = pytest.mark.integration(missing(test))
    return marked


class Seen(HTMLParser):
    """The tags, attributes and text that a browser would read from the page."""

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
    """Several seeds and methods with curves and scores; a regression; one with neither; hostile and long names."""
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
    return web.to_html(Report(read_runs([runs])))


def test_the_page_has_every_entry_of_the_other_formats(runs: Path, text: str) -> None:
    report, seen = Report(read_runs([runs])), Seen(text)
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


def test_settings_that_differ_are_shown_with_their_values(text: str) -> None:
    table = text[text.index('id="settings-that-differ"') : text.index('id="where-runs-differ')]
    assert "algo.<wbr>name" in table or "algo.name" in table
    assert "<td>anil</td>" in table
    assert "shots" not in table  # the same in all


def test_names_are_inert(text: str) -> None:
    seen = Seen(text)
    assert not {"script", "img", "iframe", "object", "link"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert seen.text.count(HOSTILE) > 3


def test_nothing_is_fetched(text: str) -> None:
    """Links lead to papers or to places in the page, and the page forbids the browser to load anything."""
    seen = Seen(text)
    assert not seen.all("src")
    links, places = seen.all("href"), seen.all("id")
    assert len(places) == len(set(places))
    assert {link for link in links if not link.startswith("https://")} <= {f"#{place}" for place in places}
    assert not re.search(r"url\(|@import|<meta[^>]*refresh", text)
    assert "default-src 'none'" in seen.all("content")[1]


def test_ids_and_references_within_charts_are_their_own(text: str) -> None:
    """Two charts with the same id would share the marks of the first."""
    references = Seen(text).all("xlink:href")
    assert references
    assert {reference.removeprefix("#") for reference in references} <= set(Seen(text).all("id"))
    assert not re.search(r"<style[^>]*>\*", text)  # Matplotlib's would reach the whole page


def test_each_seed_has_its_curves(text: str) -> None:
    """Two seeds of MAML, one of ANIL and of the regression; the three others have none."""
    assert text.count("<figure>") == 3
    assert (len(paths(text, "train")), len(paths(text, "val"))) == (4, 4)


def paths(chart: str, ink: str) -> list[list[list[float]]]:
    """The points of every line in the colour of the page that is called `ink`."""
    found = re.findall(rf'<path d="([^"]*)" style="fill: none; stroke: var\(--{ink}\)', chart)
    return [[[float(number) for number in pair] for pair in re.findall(r"([\d.]+) ([\d.]+)", path)] for path in found]


def dots(chart: str) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"', chart)]


def draw(seeds: list[dict[str, list[tuple[float, float]]]], scale: Literal["linear", "log"] = "linear") -> str:
    with charts.page_style():
        chart = charts.draw_curves(seeds, scale, "c")
    assert chart is not None
    return chart


def test_a_curve_is_drawn_to_scale() -> None:
    """What is at half the steps and half the values is in the middle; what is not finite is left out."""
    chart = draw([{"train": [(0.0, 0.0), (10.0, float("nan")), (20.0, 1.0)], "val": [(10.0, 0.5)]}])
    ((start, end),) = paths(chart, "train")
    assert start[0] < end[0] < charts.CURVES[0]
    assert charts.CURVES[1] > start[1] > end[1]  # an SVG counts from the top
    assert dots(chart) == [pytest.approx([(start[0] + end[0]) / 2, (start[1] + end[1]) / 2], abs=0.01)]
    assert dots(draw([{"train": [(1.0, 0.2)]}]))  # no line
    assert charts.draw_curves([{"train": [(1.0, float("nan"))]}, {}], "linear", "c") is None
    ((low, middle, high),) = paths(draw([{"train": [(0.0, 0.01), (1.0, 0.1), (2.0, 1.0), (3.0, 0.0)]}], "log"), "train")
    assert middle == pytest.approx([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2], abs=0.01)


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    points = [(float(step), 0.0) for step in range(1001)]
    ((first, *rest),) = paths(draw([{"train": points}]), "train")
    assert len(rest) <= charts.MOST_POINTS
    ((start, end),) = paths(draw([{"train": [points[0], points[-1]]}]), "train")
    assert (first, rest[-1]) == (start, end)


@pytest.mark.parametrize(
    ("low", "high", "scale", "labels"),
    [
        (0, 10000, "linear", ["0", "2500", "5000", "7500", "10000"]),
        (61.3, 99.2, "linear", ["60", "70", "80", "90", "100"]),
        (0.03, 4.1, "log", ["0.03", "0.1", "0.3", "1", "3"]),
        (0.3, 4.1, "log", ["0.5", "1", "2"]),
        (0.31, 0.42, "log", ["0.325", "0.35", "0.375", "0.4", "0.425"]),
        (0.5, 0.5, "linear", ["0.5"]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, scale: Literal["linear", "log"], labels: list[str]) -> None:
    chart = draw([{"train": [(0.0, low), (1000.0, high)]}], scale)
    found = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    assert found[:5] == ["0", "250", "500", "750", "1,000"]
    assert found[5:] == labels


def distribution(scores: NDArray[np.float64], scale: Literal["linear", "log"] = "linear") -> tuple[list[float], str]:
    """The number of tasks in each bar, and the chart."""
    span = charts.Span.over([scores], scale)
    with charts.page_style():
        chart = charts.draw_distribution(scores, span, "d")
    return charts.count_scores(scores, span)[1].tolist(), chart


def test_bars_count_tasks() -> None:
    """Of four tasks three score 1: the bar there is three times as high; the mean is at 3/4 of the range."""
    counts, chart = distribution(np.array([0.5, 1.0, 1.0, 1.0]))
    assert counts == [1.0, 3.0]
    outline = re.search(r'<path d="([^"]*)" style="fill: var\(--bars\)"', chart)
    assert outline is not None
    x, y = np.array(re.findall(r"([\d.]+) ([\d.]+)", outline[1]), dtype=float).T
    low, *_, high = heights = sorted(set((y.max() - y).round(3)))
    assert (low, high) == (0.0, pytest.approx(3 * heights[1], abs=0.01))
    ((line, _),) = paths(chart, "text")
    places = (x.min() + x[x < x.mean()].max()) / 2, (x.max() + x[x > x.mean()].min()) / 2  # middles of the two bars
    assert line[0] == pytest.approx(places[0] + 0.75 * (places[1] - places[0]), abs=0.01)
    many, _ = distribution(np.arange(1000.0))
    assert (len(many), sum(many)) == (charts.MOST_BARS, 1000)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_left_out_of_the_picture(bad: float) -> None:
    counts, chart = distribution(np.array([0.5, 1.0, bad]), "log")
    assert counts == [1.0, 1.0]
    assert paths(chart, "text") == []  # there is no mean
    counts, chart = distribution(np.array([bad]), "log")
    assert counts == []
    assert "var(--bars)" not in chart


def test_a_chart_is_always_the_same() -> None:
    assert draw([{"val": [(1.0, 0.2), (2.0, 0.3)]}]) == draw([{"val": [(1.0, 0.2), (2.0, 0.3)]}])


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
    const ink = (e.getAttribute("style") || "").match(/var\\(--(\\w+)\\)/);
    if (e.matches("svg :is(path, use)") && !e.closest("defs") && ink && ink[1] != "line") {
      if (style.stroke != "none") found[ink[1] + " line"] = ratio(style.stroke, behind(e));
      if (style.fill != "none") found[ink[1] + " bars"] = ratio(style.fill, behind(e));
    }
    if (e.matches(".key")) found[kind + " line"] = ratio(style.borderTopColor, behind(e));
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(text, encoding="utf-8")
    return file


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_readable(tab: Tab, page: Path, width: int, scheme: str, tmp_path: Path) -> None:
    """Only tables scroll sideways, all text is legible (WCAG 2.2 AA), nothing is requested and no script runs."""
    tab.requested.clear()
    tab.open(page, width, scheme)
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.querySelectorAll('.box')].some(box => box.scrollWidth > box.clientWidth)")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")
    ratios = tab.evaluate(CONTRAST)
    assert len(ratios) > 20
    assert {"train line", "val line", "text line", "bars bars", "SPAN.key train line"} <= ratios.keys()
    needed = {"text": 4.5, "line": 3.0, "bars": 2.0}  # bars have a line for their mean and figures beside them
    assert {kind: ratio for kind, ratio in ratios.items() if ratio < needed[kind.split()[-1]]} == {}
    assert (
        tab.evaluate("document.querySelector('figure').clientWidth") > 0.9 * charts.CURVES[0]
    )  # its letters have 11 pixels
    assert tab.evaluate("document.title") == "metarun: results"
    assert (tab.requested, tab.console) == ([page.as_uri()], [])
    tab.save_screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@in_a_browser
def test_the_browser_itself_would_refuse_what_got_in(tab: Tab, text: str, tmp_path: Path) -> None:
    """If a name were not escaped, the browser would run no script and load no picture."""
    file = tmp_path / "report.html"
    attack = '<script>document.title = "hit"</script><img src="https://example.invalid/picture.png">'
    file.write_text(text.replace("<h1>", f"{attack}<h1>"), encoding="utf-8")
    tab.open(file, 1366, "light")
    assert tab.evaluate("document.title") == "metarun: results"
    assert tab.refused == ["csp"]
    assert len([entry for entry in tab.console if "Content Security Policy" in str(entry)]) == 2
    tab.console.clear()
