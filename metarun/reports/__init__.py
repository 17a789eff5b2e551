"""Tables of finished runs beside the published figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metarun.reports import text as pages
from metarun.reports import web
from metarun.reports.collect import found
from metarun.reports.tables import Report
from metarun.runs.folder import write_text


def written(folders: Sequence[Path], to: Path) -> Iterator[Path]:
    """Write the report on every finished run below `folders`; the files, one after another. Raises ConfigError."""
    report = Report(found(folders))
    to.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.md", pages.markdown(report)),
        ("report.html", web.page(report)),
        ("report.csv", pages.as_csv(report.cells)),
        ("report.tex", pages.latex(report.cells)),
    ):
        write_text(to / name, text)
        yield to / name
