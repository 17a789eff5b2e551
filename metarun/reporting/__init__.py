"""Tables of finished runs beside the published figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metarun.folder import write_text
from metarun.reporting import pages, web
from metarun.reporting.runs import found
from metarun.reporting.tables import Report


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
