"""Write the tables of methods: one line per method into docs/methods.md, one line per family into README.md.

And the speeds of the published runs into metarun/cli/speeds.yaml, from which the duration of others is told.

The facts come from the YAML files under configs/algo, the docstrings under metarun/algos and the runs under
docs/results.

    python scripts/methods.py
"""

import ast
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from metarun.cli.compose import compose, describe_options
from metarun.cli.hydra_app import CONFIGS
from metarun.cli.outlook import SPEEDS
from metarun.cli.plain import NONE
from metarun.config.load import resolve
from metarun.config.registry import declaration
from metarun.reports.collect import Cell, Run, make_cells, read_runs
from metarun.reports.text import format_table

ROOT = Path(__file__).parents[1]
README, PAGE, RESULTS = ROOT / "README.md", ROOT / "docs" / "methods.md", ROOT / "docs" / "results"
START, END = "<!-- written by scripts/methods.py -->\n", "\n<!-- to here -->"
NORM = {"batch": "batch: transductive", "running": "running: inductive", "per_query": "per query: inductive"}
FAMILIES = {  # family -> how its methods solve a new task
    "gradient": "take a few gradient steps from learned starting weights",
    "learned loss": "take gradient steps on a loss that was learned",
    "learned optimiser": "let a learned network change the weights",
    "fast weights": "compute weights for the task from gradients on its support",
    "memory": "read the support as a sequence and remember it",
    "metric": "compare each query with the support in a learned feature space",
    "solver": "fit a linear layer or a Gaussian process exactly, on learned features",
    "head": "classify by features that are there: raw inputs, or a network that another method trained",
    "rule": "act by a rule of the world: what learned policies are compared with",
    "transfer": "train a new last layer on the features of an ordinary classifier",
}


class Method(NamedTuple):
    """A line of the table, in the order of its columns."""

    algo: str
    family: str
    learns: str
    adapts: str
    norm: str
    paper: str
    reproduced: str


HEADER = Method("`algo=`", "family", "learns", "adapts to a task", "norm layers at meta-test", "paper", "reproduced")


def list_methods(tested: list[Cell]) -> list[Method]:
    """Every file in configs/algo, by family, year and authors."""

    def order(method: Method) -> tuple[str, list[str], str]:
        citation = method.paper.lstrip("[").partition("]")[0]
        return method.family, re.findall(r"\d{4}", citation), citation

    ours = {path.stem for path in (CONFIGS / "algo").iterdir()}
    options = describe_options("algo").items()
    return sorted((describe(algo, line, tested) for algo, line in options if algo in ours), key=order)


def describe(algo: str, comment: str, tested: list[Cell]) -> Method:
    """Collect the facts about one method. `comment` is the first line of its YAML file."""
    header = re.fullmatch(r".+?: .+ \((?P<citation>.+)\)", comment)
    text = (CONFIGS / "algo" / f"{algo}.yaml").read_text(encoding="utf-8")
    pattern = r"^# family: (?P<family>.+?); learns: (?P<learns>.+?); adapts: (?P<adapts>.+)$"
    facts = re.search(pattern, text, re.MULTILINE)
    if header is None or facts is None:
        wanted = "'# Name: what it is (Authors year)' and '# family: ...; learns: ...; adapts: ...'"
        raise SystemExit(f"configs/algo/{algo}.yaml must begin with the comments {wanted}")
    if facts["family"] not in FAMILIES:
        raise SystemExit(f"configs/algo/{algo}.yaml: {facts['family']} is not a family of {Path(__file__).name}")
    values = resolve(compose([f"algo={algo}", NONE]))["algo"]
    return Method(
        f"`{algo}`",
        facts["family"],
        facts["learns"],
        facts["adapts"],
        NORM.get(values.get("norm", ""), ""),
        link(header["citation"], declaration("algo", values["name"]).module),
        "<br>".join(reproductions(cell for cell in tested if cell.first.algo == algo)) or "glyphs only",
    )


def link(citation: str, module: str) -> str:
    """Link the citation to the first address in the module's docstring, if there is one."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    address = re.search(r"https://[\w./?=-]*\w", docstring)
    return f"[{citation}]({address[0]})" if address else citation


def reproductions(tested: Iterable[Cell]) -> Iterator[str]:
    """Describe each setting's own test, and every other row that has a published figure beside it."""
    for cell in tested:
        published = cell.published
        if cell.row == "test" or published:
            beside = f" (published {published})" if published else ""
            world = published.column.removeprefix(published.cell).strip() if published else ""
            setting = cell.name.removeprefix(cell.first.name).strip()
            mode = "inductive" if cell.row.endswith("_inductive") else ""  # beside the transductive test
            what = ", ".join(filter(None, (cell.first.dataset, world, cell.task, mode, setting)))
            yield f"{what}: {cell.score}{beside}"


def table_of_methods(methods: list[Method]) -> str:
    return format_table(HEADER, methods)


def table_of_families(methods: list[Method]) -> str:
    names = {family: [method.algo for method in methods if method.family == family] for family in FAMILIES}
    rows = [(family, how, " ".join(names[family])) for family, how in FAMILIES.items() if names[family]]
    return format_table(("family", "to solve a new task, they", "`algo=`"), rows)


def insert(document: str, content: str) -> str:
    """Replace what stands between the two marks of a document."""
    before, _, rest = document.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{content}\n{END}{after}"


def list_speeds(runs: Iterable[Run]) -> str:
    """Experiment -> training tasks per second and device, of the longest run of each with tasks of its size."""
    lines = {}
    for run in sorted(runs, key=lambda run: run.result.training.seconds):
        name, config, training = run.result.choices["experiment"], run.result.config, run.result.training
        if name and has_size(config, resolve(compose([f"experiment={name}"]))):
            rate = training.steps * config["trainer"]["tasks_per_step"] / training.seconds
            lines[name] = f'{name}: [{rate:.3g}, "{run.result.device}"]\n'
    head = "# Written by scripts/methods.py from docs/results: training tasks per second, and where\n"
    return head + "".join(lines[name] for name in sorted(lines))


def has_size(config: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(config[key] == wanted[key] for key in ("ways", "shots", "queries"))


def documents() -> dict[Path, str]:
    """The documents with their tables, and the speeds, as they should be now."""
    runs = read_runs([RESULTS])
    methods = list_methods(list(make_cells(runs)))
    tables = {README: table_of_families(methods), PAGE: table_of_methods(methods)}
    found = {path: insert(path.read_text(encoding="utf-8"), content) for path, content in tables.items()}
    return {**found, SPEEDS: list_speeds(runs)}


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
