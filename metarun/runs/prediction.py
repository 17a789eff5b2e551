"""What a trained model says after it was adapted to a support."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from metarun.datasets.preprocessing import Items, Named
from metarun.engine.calibration import choose_sets
from metarun.runs.inputs import Given, Label


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says about n inputs; column j of the tensors belongs to `classes[j]`."""

    classes: list[Label]
    logits: Tensor  # [n, N], on the CPU: the method's own scores, higher for the more likely class
    names: list[str]  # of the inputs: files, or numbers from 0
    temperature: float | None = None  # of the model; see `Model.temperature`
    threshold: float | None = None  # of the model's sets of answers

    @property
    def probabilities(self) -> Tensor:
        """[n, N], the softmax of the logits by the temperature. Without one they are not calibrated: a method may be
        right more or less often than it says.
        """
        return (self.logits / (self.temperature or 1.0)).softmax(-1)

    @property
    def labels(self) -> list[Label]:
        """The most likely class of each input."""
        return [self.classes[j] for j in self.logits.argmax(-1).tolist()]

    @property
    def sets(self) -> list[list[Label]] | None:
        """The classes of each input that together were to hold the true one in 90 % of the cases, the likeliest first.

        None without a threshold; it is fitted for as many classes and examples as the validation tasks have.
        """
        if self.threshold is None:
            return None
        chosen, order = choose_sets(self.probabilities, self.threshold), self.logits.argsort(-1, descending=True)
        return [[self.classes[j] for j in row.tolist() if held[j]] for row, held in zip(order, chosen)]

    def __len__(self) -> int:
        return len(self.logits)


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """A model that was adapted to the classes of a support set."""

    classes: list[Label]
    _columns: Tensor  # [N], where the method's logits have these classes
    _read: Callable[[Given], Named]
    _predict: Callable[[Items], Tensor]
    unused: int  # classes of a fixed last layer that the support does not have
    temperature: float | None = None
    threshold: float | None = None

    def predict(self, x: Given) -> Prediction:
        """Tell the classes of x: inputs in any form of the support's, or files. Raises ConfigError for another form."""
        named = self._read(x)
        logits = self._predict(named.items)[:, self._columns]
        return Prediction(self.classes, logits, named.names, self.temperature, self.threshold)

    def __repr__(self) -> str:
        return f"Classifier({', '.join(map(repr, self.classes))})"


@dataclass(frozen=True, eq=False, repr=False)
class Regressor:
    """A model that was adapted to the points of a support set."""

    _read: Callable[[Given], Named]
    _predict: Callable[[Items], Tensor]

    def predict(self, x: Given) -> Tensor:
        """Return values [n, *output], on the CPU, for inputs x [n, *input]. Raises ConfigError for another form."""
        return self._predict(self._read(x).items)

    def __repr__(self) -> str:
        return "Regressor()"
