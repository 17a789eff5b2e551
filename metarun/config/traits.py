"""What a component declares about itself beside its settings, read from source. Never imports torch."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "regression", "control"]
Inputs = Literal["numbers", "ngrams"]  # a network reads one of them
Order = Literal["mixed", "support first"]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the wiring needs to know about an algorithm."""

    kinds: tuple[Kind, ...]  # kinds of task that it can learn
    exact: bool = True  # its meta-gradient is the slope of its loss (with `first_order` false, if it has that)
    carried: tuple[str, ...] = ()  # components of theta that tasks hand on: a step subtracts the whole mean gradient
    order: Order | None = None  # the order in which it reads a task's examples; None: any
    string_labels: bool = False  # its setting `labels` may be "strings"
    supervised: bool = False  # trained on minibatches of `batch_size` examples of all training classes, not on tasks
    sized: bool = False  # its weights depend on the number of labels although it has no head
    ragged: bool = False  # it passes over padding, because examples count by their loss or class alone
    remembers: bool = False  # in control, its network also reads the last action and reward, and where episodes begin
    sees_queries: bool = False  # its `adapt` also takes the queries' inputs where its setting `transductive` is true


@dataclass(frozen=True, kw_only=True)
class DatasetTraits:
    """The kind of a dataset's tasks, and the metric that judges them; None: that of the kind."""

    kind: Kind
    metric: str | None = None
    published: bool = False  # the same data wherever it lies: its path is no part of a run's identity
    rules: tuple[str, ...] = ()  # what else acts in a world, the best first, or predicts values: rows of the result
    baselines: tuple[str, ...] = ()  # what needs no training, of `metarun.engine.baselines`: rows of the result
    continuous: bool = False  # its setting `values` may be "continuous": then its tasks are of regression
    pooled: bool = False  # it has tasks of the split `all`, the classes of all splits together
    duplicates: bool = False  # different examples may have equal inputs, and one may be in tasks of several splits

    @property
    def headline(self) -> str:
        return self.metric or HEADLINES[self.kind]


@dataclass(frozen=True, kw_only=True)
class BackboneTraits:
    """What a network reads."""

    inputs: Inputs = "numbers"
    pictures: bool = False  # it reads no other numbers


@dataclass(frozen=True, kw_only=True)
class EncoderTraits:
    """What an encoder reads, and which data its weights were learned from."""

    reads: Literal["pictures", "strings"]
    learned_from: str = "unknown"  # "nothing": a rule; "imagenet": the 1,000 classes of ILSVRC 2012
    needs: tuple[str, ...] = ()  # packages
    extra: str = "encoders"  # of metarun's, that brings them


@dataclass(frozen=True, kw_only=True)
class ProbeTraits:
    """Which runs a probe can look at."""

    kinds: tuple[Kind, ...]
    pictures: bool = False  # it changes pictures
    ragged: bool = False  # tasks may differ in size


@dataclass(frozen=True, kw_only=True)
class LoggerTraits:
    """The package that a logger needs."""

    needs: str


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is read and shown; its function is registered under the same name."""

    higher_is_better: bool
    worst: float  # what a sweeper is told about a run without a finite score
    tolerance: float  # how far from a published figure a reproduced one may be, in shown units
    relative: bool = False  # the tolerance is a share of the published figure
    unit: str = ""  # shown behind a number
    scale: float = 1.0  # factor from a number to the shown one
    decimals: int = 4  # of a shown number
    chance: Literal["1/ways"] | float | None = None  # what guessing gets; None: there is no such number
    axis: Literal["linear", "log"] = "linear"

    def shown(self, mean: float, ci95: float | None = None) -> str:
        """A figure as a person reads it: "98.12 ± 0.25 %"."""
        numbers = [f"{self.scale * value:.{self.decimals}f}" for value in (mean, ci95) if value is not None]
        return " ± ".join(numbers) + (f" {self.unit}" if self.unit else "")

    def guessed(self, ways: int) -> float | None:
        """What guessing gets in tasks of so many ways, unscaled; None if there is no such number."""
        return 1 / ways if self.chance == "1/ways" else self.chance

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        return a > b if self.higher_is_better else a < b

    def allowed(self, published: float) -> float:
        """How far from this published figure, in shown units, a reproduced one may be."""
        return self.tolerance * abs(published) if self.relative else self.tolerance


HEADLINES: dict[Kind, str] = {"classification": "accuracy", "regression": "mse", "control": "return"}
DECLARABLE = {
    kind.__name__: kind
    for kind in (Traits, DatasetTraits, BackboneTraits, EncoderTraits, ProbeTraits, LoggerTraits, Metric)
}
