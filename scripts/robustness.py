"""Write the tables of docs/robustness.md from the runs under docs/robustness: methods by what probes found.

    python scripts/robustness.py                              # the tables
    METARUN_DATA=data python scripts/robustness.py runs       # train and probe all methods below `runs` first
    METARUN_DATA=data python scripts/robustness.py runs maml  # or these

Each folder there has the result.json of a run and its probes/*.json, as `metarun probe` writes them. Those whose names
end in -full are whole trainings of an experiment, which were probed with tasks=200 shots=5 queries=15.
"""

import json
import shutil
import sys
from pathlib import Path

from experiments import SHORT

import metarun
from metarun.cli.retest import probe
from metarun.reports.collect import read_runs
from metarun.reports.tables import Report
from metarun.reports.text import format_table

ROOT = Path(__file__).parents[1]
PAGE, RUNS = ROOT / "docs/robustness.md", ROOT / "docs/robustness"
START, END = "<!-- written by scripts/robustness.py -->", "<!-- end -->"

PROBES, TASKS = "attack,calibration,corruption", "tasks=40 shots=5 queries=5"
OF_SUPPORTS = ",imbalance,noise"  # LSTM and MANN read support and queries in one order, and have none
NOT_15 = "~eval.variants.queries15"  # a further row of the test, which no table shows
METHODS = {  # name -> what differs from SHORT
    "alfa": "",
    "anil": "",
    "baseline": "",
    "baselinepp": "",
    "boil": "",
    "cavia": "",
    "fomaml": NOT_15,
    "imaml": NOT_15,
    "lrd2": "",
    "lstm": "",
    "maml": NOT_15,
    "mamlpp": "",
    "mann": "",
    "matchingnet": "",
    "metal": "",
    "metanet": "",
    "metasgd": "",
    "protonet": "",
    "r2d2": "",
    "relationnet": f"backbone=conv4_relation {NOT_15}",  # it compares maps, not vectors
    "reptile": "",
    "siamese": "",
    "simpleshot": "",
    "snail": "",
}


def measure(folder: Path, method: str) -> None:
    """Train a method by the short setting, unless it is there, probe it, and keep its figures."""
    run, kept = folder / f"{method}-short", RUNS / method
    words = {word.partition("=")[0]: word for word in f"{SHORT} {METHODS[method]}".split()}  # the last of a key
    metarun.run(f"algo={method}", *words.values(), "device=cpu", "trainer.workers=1", f"hydra.run.dir={run}")
    probe([str(run), PROBES + OF_SUPPORTS * (method not in ("lstm", "mann")), *TASKS.split()])
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    result["config"]["data_dir"] = None  # a folder of this machine
    (kept / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (found,) = run.glob("tests/*/probes")
    shutil.copytree(found, kept / "probes", ignore=shutil.ignore_patterns("*.png"))


def document() -> str:
    """The page with its tables as they should be now."""
    report = Report(read_runs([RUNS]))
    sections = [*report.robustness, *report.calibration]
    parts = [f"**{part.title}**\n\n" + "\n\n".join(format_table(*table) for table in part.tables) for part in sections]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    content = "\n\n".join(parts)
    return f"{before}{START}\n{content}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    folder, *names = sys.argv[1:] or [""]
    for name in names or (METHODS if folder else ()):
        measure(Path(folder).absolute(), name)
    PAGE.write_text(document(), encoding="utf-8")
