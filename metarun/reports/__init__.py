"""Tables of finished runs beside the published figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metarun.config.errors import ConfigError
from metarun.core.files import write_text
from metarun.reports.collect import read_runs
from metarun.reports.tables import Report
from metarun.reports.text import to_csv, to_latex, to_markdown


def write_report(folders: Sequence[Path], to: Path) -> Iterator[Path]:
    """Report on every finished run below `folders`. Yields each file once it is written. Raises ConfigError."""
    from metarun.reports.web import to_html  # imports Matplotlib, which other users of this package do without

    skipped: list[str] = []
    report = Report(read_runs(folders, skipped), skipped)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--to is {to}: the folder cannot be made: {error.strerror}") from error
    for name, text in (
        ("report.md", to_markdown(report)),
        ("report.html", to_html(report)),
        ("report.csv", to_csv(report.cells)),
        ("report.tex", to_latex(report.cells)),
    ):
        write_text(to / name, text)
        yield to / name
