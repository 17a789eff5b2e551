"""The papers' tables, with our result beside each figure."""

from collections.abc import Iterable, Iterator, Sequence

from metarun.reports.collect import Cell
from metarun.reports.published import READ, Figure, read_figures, read_sources

Header = tuple[str, ...]
Lines = list[tuple[str, ...]]


def tabulate_papers(datasets: Sequence[str], cells: Sequence[Cell]) -> Iterator[tuple[str, Header, Lines]]:
    """Title, header and rows of the tables for the datasets: our result beside each figure, or "no run"."""
    for dataset in datasets:
        if figures := _find_results(dataset):
            yield f"The papers' figures on {dataset}", *_tabulate_results(figures, cells)
    for dataset in datasets:
        if figures := _find_instances(dataset):
            yield f"The papers' figures on {dataset}, by instance", *_tabulate_instances(figures, cells)


def _find_results(dataset: str) -> list[Figure]:
    """The published figures on a dataset: one per cell and mode. Of figures by inner step, the last."""
    shown = (figure for figure in read_figures() if figure.dataset == dataset and figure.by != "instance")
    return list({(figure.source, figure.algo, figure.column, figure.mode): figure for figure in shown}.values())


def _find_instances(dataset: str) -> list[Figure]:
    """The published figures by instance of a class on a dataset."""
    return [figure for figure in read_figures() if figure.dataset == dataset and figure.by == "instance"]


def cite(datasets: Iterable[str]) -> dict[str, str]:
    """Key -> citation, for the papers of all figures on the datasets."""
    shown: dict[str, dict[str, None]] = {}
    for dataset in datasets:
        for figure in (*_find_results(dataset), *_find_instances(dataset)):
            shown.setdefault(figure.source, {})[_describe_source(figure)] = None
    return {key: f"{text}: {'; '.join(shown[key])}" for key, text in read_sources().items() if key in shown}


def _describe_source(figure: Figure) -> str:
    """Where a figure is printed, how it was read, and what is not known of its protocol."""
    unknown = f", not known: {', '.join(figure.unknown)}" if figure.unknown else ""
    return figure.where + READ[figure.read] + unknown


def _tabulate_results(figures: Sequence[Figure], cells: Sequence[Cell]) -> tuple[Header, Lines]:
    """A line for each method, mode and paper, with a column for each kind of task."""
    ours: dict[Figure, list[Cell]] = {}
    for cell in cells:
        if cell.published:
            ours.setdefault(cell.published, []).append(cell)
    columns = tuple(dict.fromkeys(figure.column for figure in figures))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for figure in figures:
        row = rows.setdefault((figure.algo, figure.mode, figure.source), {})
        row[figure.column] = f"{_format_ours(ours.get(figure, []))} ({figure})"
    lines = [
        (f"{algo}[^{source}]", mode, *(row.get(cell, "") for cell in columns))
        for (algo, mode, source), row in rows.items()
    ]
    return ("algo", "mode", *columns), lines


def _tabulate_instances(figures: Sequence[Figure], cells: Sequence[Cell]) -> tuple[Header, Lines]:
    """Methods that are told each label after they were asked for it: a figure for each instance of a class."""
    tested = {
        (cell.first.algo, cell.setup.cell): cell for cell in cells if cell.published and "instance" in cell.vectors
    }
    rows: dict[tuple[str, str, str], dict[int, str]] = {}
    for figure in figures:
        cell, entry = tested.get((figure.algo, figure.cell)), figure.entry or 0
        ours = "no run" if cell is None else _format_instance(cell, entry)
        rows.setdefault((figure.algo, figure.source, figure.cell), {})[entry] = f"{ours} ({figure})"
    columns = tuple(dict.fromkeys(entry for row in rows.values() for entry in row))
    lines = [
        (f"{algo}[^{source}]", task.partition("w")[0], *(row.get(entry, "") for entry in columns))
        for (algo, source, task), row in rows.items()
    ]
    return ("algo", "classes", *(f"instance {entry}" for entry in columns)), lines


def _format_instance(cell: Cell, entry: int) -> str:
    """Our figure at an instance of a class, from 1 on; tasks may have fewer than the paper's."""
    found = cell.vectors["instance"]
    assert isinstance(found.mean, list)
    assert not isinstance(found.ci95, float)
    if entry > len(found.mean):
        return "not asked"
    mark = " †" if cell.deviations else ""
    return cell.metric.shown(found.mean[entry - 1], found.ci95[entry - 1] if found.ci95 else None) + mark


def _format_ours(cells: list[Cell]) -> str:
    """Our result. Of several settings none is shown: to choose by their test would flatter us."""
    if len(cells) != 1:
        return f"{len(cells)} settings, above" if cells else "no run"
    return f"{cells[0].score} †" if cells[0].deviations else cells[0].score
