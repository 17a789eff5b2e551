"""Tables of finished runs beside the published figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metarun.folder import write_text
from metarun.reporting import pages
from metarun.reporting.runs import cells, found


def written(folders: Sequence[Path], to: Path) -> Iterator[Path]:
    """Write the report on every finished run below `folders`; the files, one after another. Raises ConfigError."""
    runs = found(folders)
    table = list(cells(runs))
    to.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.md", pages.markdown(table, pages.commands(runs))),
        ("report.csv", pages.as_csv(table)),
        ("report.tex", pages.latex(table)),
    ):
        write_text(to / name, text)
        yield to / name
