"""The sub-commands: one function each, which gets the words after its name.

A new command is a function here, with a docstring whose first line `metarun --help` shows, and an entry in COMMANDS.
"""

import argparse
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from metarun.cli import reproduce as table
from metarun.cli.compose import change, compose
from metarun.cli.grammar import expand_home, show
from metarun.cli.hydra_app import Request, check_folder
from metarun.cli.overview import wrap, write_group, write_overview
from metarun.cli.plain import NONE
from metarun.cli.sweep import plan, sweep
from metarun.config.errors import ConfigError, Failed
from metarun.config.load import load_settings, resolve
from metarun.config.registry import LISTED, declaration, known
from metarun.config.schema import Settings
from metarun.config.words import count, printable
from metarun.runs.folder import RunFolder, check_writable

if TYPE_CHECKING:
    from metarun.core.types import Split
    from metarun.datasets.preprocessing import Named
    from metarun.runs.model import Model

READ_LIKE = {"pictures": "folder", "strings": "texts"}  # the dataset whose files an encoder's are read like

# Settings of `metarun evaluate` that are not below `eval`
ELSEWHERE = ("eval.", "device=", "data_dir=", "dataset.path=", "dataset.placement=", "dataset.test_tasks=")
# How a network reads pictures: the name of a fact in its checkpoint -> that of a dataset's setting
FORM = {"size": "image_size"} | {name: name for name in ("channels", "resize", "filter", "ink", "mean", "std")}


class Parser(argparse.ArgumentParser):
    """The options of a sub-command; --config-dir and --help are common to all."""

    def __init__(self, command: Callable[..., None]) -> None:
        name = next(name for name, function in COMMANDS.items() if function is command)
        form = argparse.RawDescriptionHelpFormatter
        paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
        text = "\n\n".join("\n".join(wrap(paragraph, "")) for paragraph in paragraphs)
        super().__init__(f"metarun {name}", description=text, formatter_class=form, allow_abbrev=False)
        self.add_argument("--config-dir", metavar="DIR", help="a folder with YAML files of your own")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words; options may stand between them. Raises ConfigError."""
        found = self.parse_intermixed_args(words)
        if found.config_dir is not None:
            check_folder(found.config_dir)
        if "overrides" in found:
            found.overrides = list(map(expand_home, found.overrides))
        return found

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {show(message)}; see {self.prog} --help")


def resume(words: Sequence[str]) -> None:
    """Continue a run from its last checkpoint."""
    parser = Parser(resume)
    parser.add_argument("run", type=Path, help="the folder of the run, below outputs/")
    folder = RunFolder(parser.read(words).run.absolute())
    settings, values, choices = folder.settings(), folder.config(), folder.choices()
    from metarun.runs.run import run

    run(settings, folder, values, choices)


def evaluate(words: Sequence[str]) -> None:
    """Test a finished run again, with the same or other settings.

    Settings are those of eval, without the prefix (ways=20, shots=5, tasks=5000, checkpoint=last,
    algo.inner_steps=10), and device, data_dir, dataset.path, dataset.placement and dataset.test_tasks.
    Without any the run's own test is repeated.

    dataset=NAME, with dataset.path=... and so on, tests on another dataset: its pictures are resized as those of the
    training were. split=all takes the classes of all its splits.
    """
    parser = Parser(evaluate)
    parser.add_argument("run", type=Path, help="the folder of the run, below outputs/")
    parser.add_argument("overrides", nargs="*", default=[], help="settings to replace, for example ways=20")
    arguments = parser.read(words)
    folder = RunFolder(arguments.run.absolute())
    config, settings, changes = change_test(folder, arguments.overrides, arguments.config_dir)
    from metarun.runs.run import test_again

    test_again(settings, folder, config, changes)


def change_test(
    folder: RunFolder, overrides: Sequence[str], config_dir: str | None
) -> tuple[dict[str, Any], Settings, list[str]]:
    """Change the test of a run: its configuration, as settings too, and the changes by their full names.

    Raises ConfigError.
    """
    folder.settings()
    other = compose_dataset(overrides, config_dir, folder)
    moved = ("dataset=", "dataset.") if other else ()
    changes = [text if text.startswith((*ELSEWHERE, *moved)) else f"eval.{text}" for text in overrides]
    config = change(folder.config(), [text for text in changes if not text.startswith(moved)] if moved else changes)
    if other:
        config["eval"]["dataset"] = other
    settings = load_settings(config)
    path = (settings.eval.dataset if other else settings.dataset).get("path")
    if path is not None:  # named by what it means, wherever the command was given
        changes = [f"dataset.path={path}" if "dataset.path=" in text else text for text in changes]
    return config, settings, changes


def probe(words: Sequence[str]) -> None:
    """Look at a finished run by probes: what its accuracy hides.

    PROBES are names of metarun list probe, with commas between them; without any all that can look at the run.

    Settings are those of probes (noise.rates=[0,0.5]), the number of tasks (tasks=500), and those of metarun evaluate.
    Tables and pictures go to probes/ in the run's folder; with settings, below tests/ there.
    """
    parser = Parser(probe)
    parser.add_argument("run", type=Path, help="the folder of the run, below outputs/")
    parser.add_argument("words", nargs="*", default=[], metavar="PROBES", help="for example noise,attack tasks=500")
    arguments = parser.read(words)
    names = [name for word in arguments.words if "=" not in word for name in word.split(",") if name]
    for name in names:
        declaration("probe", name)
    overrides = [expand_home(word) for word in arguments.words if "=" in word]
    own = [text for text in overrides if text.partition(".")[0] in known("probe")]
    rest = [re.sub(r"^tasks=", "probe_tasks=", text) for text in overrides if text not in own]
    folder = RunFolder(arguments.run.absolute())
    _, settings, changes = change_test(folder, rest, arguments.config_dir)
    if strange := {text.partition(".")[0] for text in own} - set(names or known("probe")):
        raise ConfigError(f"{', '.join(sorted(strange))} is set, but is none of the probes {', '.join(names)}")
    from metarun.runs.run import probe_again

    probe_again(settings, folder, names, changes + own, change({}, own))


def compose_dataset(overrides: Sequence[str], config_dir: str | None, folder: RunFolder) -> dict[str, Any] | None:
    """Compose the dataset that `dataset=NAME` asks for, pictures in the form of the run's where no other is given; None
    if there is no such override. Raises ConfigError.
    """
    if not any(text.startswith("dataset=") for text in overrides):
        return None
    asked = [text for text in overrides if text.startswith(("dataset=", "dataset."))]
    values: dict[str, Any] = resolve(compose(asked, config_dir))["dataset"]
    given = {text.partition("=")[0].removeprefix("dataset.") for text in asked}
    from metarun.engine import checkpoint

    form = checkpoint.load(folder.checkpoint("last"))[1].get("preprocessing", {})
    read = {FORM[key]: value for key, value in form.items() if key in FORM and FORM[key] not in given}
    return values | {key: value for key, value in read.items() if key in values}


def data(words: Sequence[str]) -> None:
    """Fetch, verify and prepare a dataset; show what it holds."""
    parser = Parser(data)
    parser.add_argument("name", help="a dataset of metarun list")
    parser.add_argument("overrides", nargs="*", default=[], help="settings, for example dataset.path=/data")
    parser.add_argument("--check", action="store_true", help="only show what is there; fetch and prepare nothing")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw a few tasks into this file")
    arguments = parser.read(words)
    check_file("--preview", arguments.preview, ".png")
    named = any(text.startswith("experiment=") for text in arguments.overrides)
    words = [f"dataset={arguments.name}", *([] if named else [NONE]), *arguments.overrides]
    config = compose(words, arguments.config_dir)
    settings = load_settings(resolve(config))
    from metarun.engine.build import build_dataset

    dataset = build_dataset(settings)
    if not arguments.check:
        dataset.prepare()
    print(dataset.describe())
    if arguments.preview:
        from metarun.analysis.preview import draw
        from metarun.core.types import TaskShape

        draw(dataset, TaskShape(settings.ways, settings.shots, settings.queries), arguments.preview)
        print(f"some tasks of {count(settings.ways, 'way')} and {count(settings.shots, 'shot')}: {arguments.preview}")


def check_file(option: str, file: Path | None, *endings: str) -> None:
    """Raise ConfigError if a file that is to be written has another ending, or cannot be written."""
    if file is None:
        return
    if file.suffix.lower() not in endings or file.is_dir():
        raise ConfigError(f"{option} is {file}: give a file whose name ends with {' or '.join(endings)}")
    if not file.parent.is_dir():
        raise ConfigError(f"{option} is {file}: there is no folder {file.parent}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"{option} is {file}: no permission to write it")


def profile(words: Sequence[str]) -> None:
    """Show where the time of a training step goes."""
    parser = Parser(profile)
    parser.add_argument("overrides", nargs="*", default=[], help="the settings of a run, for example algo=maml")
    arguments = parser.read(words)
    config = compose(arguments.overrides, arguments.config_dir)
    settings = load_settings(resolve(config))
    from metarun.analysis.profile import describe

    print(*describe(settings), sep="\n")


def predict(words: Sequence[str]) -> None:
    """Tell the classes of pictures or texts from a few examples of each.

    SUPPORT and QUERY are a folder or an archive of class folders, a folder with a labels.csv, or, for queries, pictures
    without labels; of texts and molecules a CSV file of text and label, of a regression one of x and y. DATASET:test in
    place of both draws a task of a dataset. If queries have labels, the accuracy is shown, and the confusion matrix and
    the mistakes are drawn beside the predictions. With --encoder instead of RUN a query is of the class whose mean
    feature is nearest: no run is needed. Settings of the encoder may stand beside it, as in
    --encoder torchvision encoder.model=resnet50 encoder.path=resnet50.pth.
    """
    parser = Parser(predict)
    parser.add_argument("run", type=Path, nargs="?", help="the folder of the run, or a checkpoint")
    parser.add_argument("support", help="labelled examples of the classes")
    parser.add_argument("query", help="what is to be told apart")
    parser.add_argument("--encoder", metavar="NAME", help="an encoder of metarun list encoder, in place of RUN")
    parser.add_argument("--to", type=Path, default=Path("predictions.csv"), help="the table (predictions.csv)")
    parser.add_argument("--top", type=int, metavar="K", help="only the K likeliest classes of each query")
    parser.add_argument("--uncertain-first", action="store_true", help="sort by the probability of the likeliest class")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="a page with pictures and a map of the embedding")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (auto)")
    settings = [word for word in words if re.match(r"encoder\.\w+=", word)]
    arguments = parser.read([word for word in words if word not in settings])
    if settings and arguments.encoder is None:
        raise ConfigError(f"{settings[0]} is for --encoder NAME, which is not given: a run has its own encoder")
    if arguments.top is not None and arguments.top < 1:
        raise ConfigError(f"--top is {arguments.top}: it must be at least 1")
    check_file("--to", arguments.to, ".csv")
    check_file("--html", arguments.html, ".html")
    if arguments.to.resolve() in (Path(arguments.support).resolve(), Path(arguments.query).resolve()):
        raise ConfigError(f"--to is {arguments.to}: that is what is to be read, and would be overwritten")
    from metarun.reports.predictions import Request, predict_queries

    model = load_model(arguments, settings)
    support, query = read_task(arguments, model)
    request = Request(arguments.to, arguments.top, arguments.uncertain_first, arguments.html)
    print(*map(printable, predict_queries(model, support, query, request)), sep="\n")
    if arguments.encoder is not None:
        traits = declaration("encoder", arguments.encoder).traits
        print(f"classes seen in pre-training: {'no' if traits.learned_from == 'nothing' else 'unknown'}")


def load_model(arguments: argparse.Namespace, encoder_settings: Sequence[str]) -> "Model":
    """Load the run's model; or build the nearest class mean of an encoder's features. Raises ConfigError."""
    if (arguments.run is None) == (arguments.encoder is None):
        raise ConfigError("give the folder of a run, or --encoder NAME in its place")
    if arguments.encoder is None:
        from metarun.runs.model import load

        return load(arguments.run, device=arguments.device)
    reads = declaration("encoder", arguments.encoder).traits.reads
    wanted = [f"encoder={arguments.encoder}", f"dataset={READ_LIKE[reads]}", "algo=protonet", "backbone=raw"]
    wanted += [f"device={arguments.device}", *map(expand_home, encoder_settings)]
    settings = load_settings(resolve(compose(wanted, arguments.config_dir)))
    from metarun.runs.model import build_untrained

    return build_untrained(settings)


def embed(words: Sequence[str]) -> None:
    """Write the features that a trained network has for pictures."""
    parser = Parser(embed)
    parser.add_argument("run", type=Path, help="the folder of the run, or a checkpoint")
    parser.add_argument("files", help="a picture, or a folder or an archive of pictures")
    parser.add_argument("--to", type=Path, default=Path("embeddings.npz"), help="a .npz or .csv file (embeddings.npz)")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="a page with pictures and a map of the embedding")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (auto)")
    arguments = parser.read(words)
    check_file("--to", arguments.to, ".npz", ".csv")
    check_file("--html", arguments.html, ".html")
    from metarun.reports.predictions import embed_inputs
    from metarun.runs.model import load

    model = load(arguments.run, device=arguments.device)
    print(*map(printable, embed_inputs(model, model.read(arguments.files), arguments.to, arguments.html)), sep="\n")


def export(words: Sequence[str]) -> None:
    """Write a trained network as a program that needs no metarun.

    With --ways it is the whole way from a labelled support to the queries' logits, of methods that adapt without
    gradient steps. FILE ends with .pt2 (torch.export) or with .onnx (pip install 'metarun[onnx]').
    """
    parser = Parser(export)
    parser.add_argument("run", type=Path, help="the folder of the run, or a checkpoint")
    parser.add_argument("file", type=Path, help="what to write: model.pt2 or model.onnx")
    parser.add_argument("--ways", type=int, metavar="N", help="support to prediction, for supports of N classes")
    arguments = parser.read(words)
    check_file("FILE", arguments.file, ".pt2", ".onnx")
    if arguments.ways is not None and arguments.ways < 2:
        raise ConfigError(f"--ways is {arguments.ways}: it must be at least 2")
    from metarun.runs.export import export_model
    from metarun.runs.model import load

    model = load(arguments.run, device="cpu")
    print(*map(printable, export_model(model, arguments.file, arguments.ways)), sep="\n")


def read_task(arguments: argparse.Namespace, model: "Model") -> "tuple[Named, Named]":
    """Read support and queries; or draw both, where they are a dataset and its split. Raises ConfigError."""
    words = (arguments.support, arguments.query)
    found = [re.fullmatch(r"(\w+):(train|val|test)", word) for word in words]
    if not any(found):
        return model.read(words[0]), model.read(words[1])
    if found[0] is None or words[0] != words[1]:
        raise ConfigError(f"SUPPORT is {words[0]} and QUERY {words[1]}: give the same DATASET:SPLIT for both, or files")
    from metarun.core.types import TaskShape
    from metarun.runs.demonstration import draw_task

    (name, split), test = found[0].groups(), model.settings.eval
    other = name != model.dataset
    settings = (
        load_settings(resolve(compose([f"dataset={name}", NONE], arguments.config_dir))) if other else model.settings
    )
    return draw_task(settings, cast("Split", split), TaskShape(test.ways, test.shots, test.queries))


def explain(words: Sequence[str]) -> None:
    """Draw what a run has learned: a loss, rates, or how it acts.

    Drawings, and the numbers behind them or an animation, go to explained/ in the run's folder.
    """
    parser = Parser(explain)
    parser.add_argument("run", type=Path, help="the folder of the run, below outputs/")
    folder = RunFolder(parser.read(words).run.absolute())
    folder.settings()
    settings = load_settings(folder.config() | {"device": "cpu"})  # it is little work
    from metarun.analysis.explain import draw_learned
    from metarun.engine.build import Experiment

    print(*draw_learned(Experiment.build(settings), folder), sep="\n")


def report(words: Sequence[str]) -> None:
    """Write tables of finished runs beside the published figures.

    The files are report.html, report.md, report.csv and report.tex.
    """
    parser = Parser(report)
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("outputs")], help="folders with runs (outputs)")
    parser.add_argument("--to", type=Path, default=Path("report"), help="the folder for the report (report)")
    arguments = parser.read(words)
    check_writable(arguments.to, "the report's folder")
    from metarun.reports import write_report

    print(*write_report(arguments.runs, arguments.to), sep="\n")


def reproduce(words: Sequence[str]) -> None:
    """Run what is missing of a paper's table, then write the report.

    A table has the name of a dataset, its cells are the experiments on it. A command that was stopped goes on when it
    is given again.
    """
    parser = Parser(reproduce)
    parser.add_argument("table", help="omniglot, miniimagenet, sinusoid, ...")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        help="length=short (the default, for two CPU cores), paper or smoke; cells=maml/*,protonet/*; "
        "settings for all runs",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only show what would run, and how long if a run of that setting is there",
    )
    parser.add_argument("--to", type=Path, help="the folder for the report (report/TABLE-LENGTH)")
    arguments = parser.read(words)
    length, cells, overrides = table.read(arguments.overrides)
    to = arguments.to or Path("report") / f"{arguments.table}-{length}"
    check_writable(to, "the report's folder")
    chosen = table.choose(arguments.table, length, cells, arguments.config_dir)
    settings = [f"experiment={','.join(chosen)}", *(table.SMOKE if length == "smoke" else ()), *overrides]
    request = Request(settings, arguments.config_dir, multirun=True)
    jobs, root = plan(request)
    for line in table.estimate(jobs, root, arguments.config_dir):
        print(line, flush=True)
    if arguments.dry_run:
        return
    try:
        sweep(request)
    finally:
        from metarun.reports import write_report

        if finished := [job.folder.path for job in jobs if job.folder.result() is not None]:
            print(*write_report(finished, to), sep="\n")


def list_options(words: Sequence[str]) -> None:
    """Show the methods, datasets, backbones and experiments there are.

    Without a group: their names. With one: each with its description.
    """
    parser = Parser(list_options)
    parser.add_argument("group", nargs="?", help=", ".join(LISTED))
    parser.add_argument("pattern", nargs="?", default="*", help="which of them, for example 'maml/*'")
    parser.add_argument("--all", action="store_true", help="also the experiments at the paper's length")
    arguments = parser.read(words)
    if arguments.group is None:
        print(write_overview(arguments.config_dir))
    else:
        print(printable(write_group(arguments.group, arguments.pattern, arguments.all, arguments.config_dir)))


def check(words: Sequence[str]) -> None:
    """Run generic tests on a method, a dataset or a network.

    They are meant for one of your own; make it small by settings. Exit code 1 if one fails.
    """
    parser = Parser(check)
    parser.add_argument("component", help="algo=NAME, dataset=NAME or backbone=NAME")
    parser.add_argument("overrides", nargs="*", default=[], help="settings, for example algo.inner_steps=2")
    arguments = parser.read(words)
    from metarun.cli.check import find_checks

    failed = 0
    for test in find_checks(arguments.component, arguments.overrides, arguments.config_dir):
        try:
            test.run()
            print(f"ok      {test.title}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED  {test.title}: {error}", flush=True)
    if failed:
        raise Failed(f"{arguments.component}: {count(failed, 'check')} failed")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": list_options,
    "data": data,
    "resume": resume,
    "evaluate": evaluate,
    "probe": probe,
    "predict": predict,
    "embed": embed,
    "export": export,
    "report": report,
    "reproduce": reproduce,
    "profile": profile,
    "explain": explain,
    "check": check,
}


def summarise_commands() -> dict[str, str]:
    """Command -> the first line of its docstring."""
    return {name: (command.__doc__ or "").partition("\n")[0] for name, command in COMMANDS.items()}
