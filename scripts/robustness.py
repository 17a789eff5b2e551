"""Write the tables of docs/robustness.md from the runs under docs/robustness: methods by what probes found.

Each folder there has the result.json of a run and its probes/*.json, as `metarun probe` writes them.
"""

from pathlib import Path

from metarun.reports.collect import read_runs
from metarun.reports.tables import Report
from metarun.reports.text import format_table

ROOT = Path(__file__).parents[1]
PAGE, RUNS = ROOT / "docs/robustness.md", ROOT / "docs/robustness"
START, END = "<!-- written by scripts/robustness.py -->", "<!-- end -->"


def document() -> str:
    """The page with its tables as they should be now."""
    report = Report(read_runs([RUNS]))
    sections = [*report.robustness, *report.calibration]
    parts = [f"**{part.title}**\n\n" + "\n\n".join(format_table(*table) for table in part.tables) for part in sections]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    content = "\n\n".join(parts)
    return f"{before}{START}\n{content}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
