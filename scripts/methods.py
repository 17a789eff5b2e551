"""Write README's table of methods anew: from what each declares, its YAML, and the results under docs/results.

python scripts/methods.py
"""

import ast
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from metarun.cli.compose import compose, described_options
from metarun.cli.hydra_app import CONFIGS
from metarun.config.load import plain
from metarun.config.registry import declaration
from metarun.reports.collect import Cell, cells, found
from metarun.reports.tables import score, task
from metarun.reports.text import table

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results"
START, END = "<!-- written by scripts/methods.py -->\n", "\n<!-- to here -->"
HEADER = ("`algo=`", "family", "learns", "adapts to a task", "norm layers at meta-test", "paper", "reproduced")
NORM = {"batch": "batch: transductive", "running": "running: inductive", "per_query": "per query: inductive"}


def methods(tested: list[Cell]) -> str:
    """The table: a line for each file in configs/algo, by family, year and authors."""

    def order(cells: tuple[str, ...]) -> tuple[str, list[str], str]:
        citation = cells[5].lstrip("[").partition("]")[0]
        return cells[1], re.findall(r"\d{4}", citation), citation

    ours = {path.stem for path in (CONFIGS / "algo").iterdir()}
    rows = (row(algo, line, tested) for algo, line in described_options("algo").items() if algo in ours)
    return table(HEADER, sorted(rows, key=order))


def row(algo: str, comment: str, tested: list[Cell]) -> tuple[str, ...]:
    """What a method declares; of one that is another's class with other settings, what the YAML's comment says."""
    described = re.fullmatch(r".+?: .+ \((?P<citation>.+)\)", comment)
    text = (CONFIGS / "algo" / f"{algo}.yaml").read_text(encoding="utf-8")
    facts = re.search(
        r"^# family: (?P<family>.+?); learns: (?P<learns>.+?); adapts: (?P<adapts>.+)$", text, re.MULTILINE
    )
    values = plain(compose([f"algo={algo}"]))["algo"]
    declared = declaration("algo", values["name"])
    if described is None or facts is None:
        header = "'# Name: what it is (Authors year)' and '# family: ...; learns: ...; adapts: ...'"
        raise SystemExit(f"configs/algo/{algo}.yaml must begin with the comments {header}")
    return (
        f"`{algo}`",
        facts["family"],
        facts["learns"],
        facts["adapts"],
        NORM[values["norm"]],
        linked(described["citation"], declared.module),
        "<br>".join(reproduced(cell for cell in tested if cell.first.algo == algo)) or "glyphs only",
    )


def linked(citation: str, module: str) -> str:
    """The citation as a link to the first address in the module's docstring; a paper may have none."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    address = re.search(r"https://[\w./?=-]*\w", docstring)
    return f"[{citation}]({address[0]})" if address else citation


def reproduced(tested: Iterable[Cell]) -> Iterator[str]:
    """Every setting's own test and what else has a published figure beside it."""
    for cell in tested:
        if cell.row == "test" or cell.published:
            beside = f" (published {cell.published})" if cell.published else ""
            setting = cell.name.removeprefix(cell.first.name).strip()
            mode = "inductive" if cell.row.endswith("_inductive") else ""  # beside the transductive test
            what = ", ".join(filter(None, (cell.first.dataset, task(cell.test), mode, setting)))
            yield f"{what}: {score(cell)}{beside}"


def rewritten(readme: str, tested: list[Cell]) -> str:
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{methods(tested)}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8"), list(cells(found([RESULTS])))), encoding="utf-8")
