"""A trained model as a program that runs without metarun: its network, or the whole way from a support to predictions.

The programs are those of `torch.export`. They read what the network reads: the pictures are resized before, as
`metarun.load(RUN).preprocessing` says, which is also in the file.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from metarun.config.errors import ConfigError
from metarun.core.files import open_bytes, write_whole
from metarun.core.objectives import adapt_to, predict_queries
from metarun.core.types import Episode, Examples, Theta
from metarun.engine.build import build_few_shot
from metarun.runs.model import Model

TOLERANCE = 1e-5  # between the program and the model, as a share of the largest number


class Predictor(nn.Module):
    """(support_x [s, *input], support_y [s], query_x [q, *input]) -> logits [q, ways], higher for the likelier."""

    def __init__(self, model: Model, ways: int) -> None:
        super().__init__()
        row = model._row(per_query=True)
        spec, columns = model._place_classes(row, ways)
        self.algo = build_few_shot(row.algo, model._build_backbone(row), spec, trained=model.spec)
        self.names = {name: list(params) for name, params in model.theta.items()}
        self.weights = nn.ParameterList(
            nn.Parameter(p, requires_grad=False) for params in model.theta.values() for p in params.values()
        )
        self.columns: Tensor
        self.register_buffer("columns", columns.to(model.device))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        weights = iter(self.weights)
        theta: Theta = {name: {key: next(weights) for key in keys} for name, keys in self.names.items()}
        query = Examples(query_x, query_x.new_zeros(query_x.shape[0]))  # labels that nothing reads
        episode = Episode(Examples(support_x, self.columns[support_y]), query)
        logits = predict_queries(self.algo, theta, adapt_to(self.algo, theta, episode), episode)
        return logits[:, self.columns]


def export_model(model: Model, file: Path, ways: int | None = None) -> Iterator[str]:
    """Write the network, or with `ways` the prediction for supports of so many classes. Yields what there is to say.

    A file `.onnx` is for ONNX, any other for PyTorch. Raises ConfigError for a method whose adaptation is no fixed
    program, and where the package for ONNX is missing.
    """
    check_package(file)
    module: nn.Module = model.build_network() if ways is None else Predictor(model, ways)
    reads = ["x"] if ways is None else ["support_x", "support_y", "query_x"]
    program = trace(model, module.eval(), draw_inputs(model, ways), ways)
    facts = describe(model, reads, ways)
    if file.suffix == ".onnx":
        with silence():
            converted = torch.onnx.export(program, dynamo=True, input_names=reads, verbose=False)
        assert converted is not None
        write_whole(file, converted.model_proto.SerializeToString())
    else:
        with open_bytes(file) as content:  # PyTorch aborts the process if the disk is full
            torch.export.save(program, content, extra_files={"metarun.json": json.dumps(facts, indent=2)})
    shape = ", ".join(map(str, model.spec.input_shape))
    what = "features [n, D]" if ways is None else f"logits [q, {ways}]"
    limit = find_limit(program)
    number = "any number" if limit is None else f"at most {limit}"
    yield f"{file}: {', '.join(reads)} -> {what}; inputs are [n, {shape}], n is {number}"
    if file.suffix != ".onnx":
        yield "compared with the model on other inputs: the same numbers to 1e-5"


def check_package(file: Path) -> None:
    """Raise ConfigError if a file for ONNX cannot be written here."""
    if file.suffix == ".onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise ConfigError(f"{file} needs a package that is not there: pip install 'metarun[onnx]'")


def draw_inputs(model: Model, ways: int | None, shots: int = 2, queries: int = 3) -> tuple[Tensor, ...]:
    """Draw inputs of the right form: x, or a support with its labels and queries."""
    shape, generator = model.spec.input_shape, torch.Generator().manual_seed(shots)

    def draw(number: int) -> Tensor:
        if model.spec.inputs == "ngrams":
            return torch.randint(1, 2**31 - 1, (number, *shape), generator=generator, dtype=torch.int32).to(
                model.device
            )
        return torch.rand(number, *shape, generator=generator).to(model.device)

    if ways is None:
        return (draw(queries),)
    return draw(ways * shots), torch.arange(ways, device=model.device).repeat_interleave(shots), draw(queries)


def name_dims(ways: int | None) -> tuple[dict[int, Any], ...]:
    """The axis of each input that may have any length."""
    if ways is None:
        return ({0: Dim("n", min=1)},)
    support = Dim("s", min=1)
    return {0: support}, {0: support}, {0: Dim("q", min=1)}


def trace(model: Model, module: nn.Module, inputs: tuple[Tensor, ...], ways: int | None) -> ExportedProgram:
    """Trace a module and compare the program with it on inputs of another size. Raises ConfigError."""
    try:
        with torch.no_grad(), silence():
            try:
                program = torch.export.export(module, inputs, dynamic_shapes=name_dims(ways), strict=False)
            except (UserError, ConstraintViolationError):  # lengths are limited, as a solver's that has two forms
                within = tuple({0: Dim.AUTO} for _ in inputs)
                program = torch.export.export(module, inputs, dynamic_shapes=within, strict=False)
            others = draw_inputs(model, ways, shots=3, queries=5)
            found, expected = program.module()(*others), module(*others)
    except Exception as error:  # whatever PyTorch cannot trace
        if isinstance(error, ConfigError):
            raise
        if ways is None:
            raise ConfigError(f"this network cannot be exported: {str(error).partition(chr(10))[0]}") from error
        raise ConfigError(
            f"algo={model.algo} has no program of its own from a support of any size to predictions: "
            "export its network, without --ways"
        ) from error
    if not torch.allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max()))):
        raise ConfigError(f"algo={model.algo}: the traced program has other numbers than the model, and is not written")
    return program


def find_limit(program: ExportedProgram) -> int | None:
    """The largest length that one of a program's inputs may have; None if there is no limit."""
    uppers = [int(found.upper) for found in program.range_constraints.values() if found.upper < 2**31]
    return min(uppers, default=None)


@contextmanager
def silence() -> Iterator[None]:
    """Keep back what PyTorch says to its own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def describe(model: Model, reads: list[str], ways: int | None) -> dict[str, Any]:
    """What to know of a program: its inputs, and how a picture becomes one."""
    form = model.preprocessing
    return {
        "algo": model.algo,
        "inputs": reads,
        "input_shape": list(model.spec.input_shape),
        "ways": ways,
        "step": model.step,
        "preprocessing": {"kind": form.kind, **asdict(form)} if is_dataclass(form) and hasattr(form, "kind") else {},
    }
