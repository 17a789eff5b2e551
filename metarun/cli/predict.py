"""The sub-commands that ask a trained model about one's own data: predict, embed and export."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from metarun.cli.compose import compose
from metarun.cli.grammar import expand_home
from metarun.cli.parser import Parser, check_file
from metarun.cli.plain import NONE
from metarun.config.errors import ConfigError
from metarun.config.load import load_settings, resolve
from metarun.config.registry import declaration
from metarun.config.words import printable

if TYPE_CHECKING:
    from metarun.core.types import Split
    from metarun.datasets.preprocessing import Named
    from metarun.runs.model import Model

READ_LIKE = {"pictures": "folder", "strings": "texts"}  # the dataset whose files an encoder's are read like


def predict(words: Sequence[str]) -> None:
    """Tell the classes of pictures or texts from a few examples of each.

    SUPPORT and QUERY are a folder or an archive of class folders, a folder with a labels.csv, or, for queries, pictures
    without labels; of texts and molecules a CSV file of text and label, of a regression one of x and y. DATASET:test in
    place of both draws a task of a dataset. If queries have labels, the accuracy is shown, and the confusion matrix and
    the mistakes are drawn beside the predictions. With --encoder instead of RUN a query is of the class whose mean
    feature is nearest: no run is needed. Settings of the encoder may stand beside it, as in
    --encoder torchvision encoder.model=resnet50 encoder.path=resnet50.pth.
    """
    parser = Parser("predict", predict)
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


def embed(words: Sequence[str]) -> None:
    """Write the features that a trained network has for pictures."""
    parser = Parser("embed", embed)
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
    parser = Parser("export", export)
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
