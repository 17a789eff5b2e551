"""The vocabulary of the whole package: one task in, one scalar out.

Shape letters, the same in every file: `T` tasks, `N` ways, `K` shots, `Q` queries per class,
`n` examples, `D` features.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metarun.config.traits import Inputs, Kind

Params = dict[str, Tensor]  # parameter name -> tensor
Theta = dict[str, Params]  # component ("backbone", "norm", "head", ...) -> Params
Metrics = dict[str, Tensor]  # name -> tensor of any shape, for one task
Split = Literal["train", "val", "test"]
Part = Split | Literal["all"]  # all: the classes of the three together

PADDING = -100  # the label of what is no example; PyTorch's cross-entropy passes it over


class Examples(NamedTuple):
    """x: [n, *input]; y: [n] class indices, or [n, *output] in regression.

    Where tasks differ in size, small ones are filled up to the largest: y is PADDING there, or in regression nan. x
    should repeat an example there, because norm layers that normalise by the batch see it.
    """

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task's data. A batch of tasks is the same type with a leading T on every tensor."""

    support: Examples
    query: Examples


class Trial(NamedTuple):
    """One task of control: the hidden parameters of a world, and the number that all chance in it is hashed from.

    A batch of trials has a leading T on every tensor, as a batch of episodes has.
    """

    latent: Params  # [...] each
    salt: Tensor  # [] int64, below metarun.core.seeding.SALTS


Task = Episode | Trial


class TaskShape(NamedTuple):
    """How large a task is: classes, support examples per class, query examples per class.

    In control, ways have no meaning; shots are episodes that do not count, queries those that do.
    """

    ways: int
    shots: int
    queries: int


class Seen(NamedTuple):
    """What an agent knows before it acts. `action` and `reward` are of the step before, zero at first."""

    observation: Tensor  # [P, O]
    action: Tensor  # [P, A], one-hot where actions are choices
    reward: Tensor  # [P]
    begins: Tensor  # [P], 1 where an episode begins, 0 within it


class Agent(Protocol):
    """What acts in a world: a policy with its weights, or a rule."""

    @property
    def chances(self) -> int:
        """How many uniform numbers an act takes."""
        ...

    def start(self, trajectories: int) -> Any:
        """The memory before the first step. It is kept from episode to episode."""
        ...

    def act(self, memory: Any, seen: Seen, chance: Tensor) -> tuple[Any, Tensor, Tensor]:
        """chance: [P, chances] -> the new memory, actions [P] or [P, A], and what is to be recorded [P, ...]."""
        ...


class World(Protocol):
    """A family of tasks of control, as pure tensor functions of one task's latent parameters.

    `P` trajectories run side by side; a state is any pytree of tensors [P, ...]. All functions run under vmap over
    tasks. Uniform numbers `chance` are their only randomness.
    """

    @property
    def observed(self) -> int:
        """How many numbers a policy observes, O."""
        ...

    @property
    def actions(self) -> int:
        """How many actions there are to choose from, or numbers in one action, A."""
        ...

    @property
    def discrete(self) -> bool:
        """Whether an action is one of the numbers 0 .. A - 1, not A numbers."""
        ...

    @property
    def horizon(self) -> int:
        """The number of steps of an episode, H."""
        ...

    @property
    def chances(self) -> int:
        """How many uniform numbers a reset, and a step, takes."""
        ...

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Draw the hidden parameters of tasks: [T, ...] each, on the generator's device."""
        ...

    def reset(self, latent: Params, chance: Tensor) -> Any:
        """The state at the beginning of an episode. chance: [P, chances]."""
        ...

    def observe(self, latent: Params, state: Any) -> Tensor:
        """What a policy sees of the state: [P, O]."""
        ...

    def step(self, latent: Params, state: Any, action: Tensor, chance: Tensor) -> tuple[Any, Tensor]:
        """action: [P] or [P, A], chance: [P, chances] -> the next state, and the reward [P]."""
        ...

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """What acts by one of the rules in the `rules` of the world's traits, for so many episodes."""
        ...


@runtime_checkable
class Visible(World, Protocol):
    """A world that shows what happens in it; no world must."""

    def draw(self, axes: Any, latent: Params, states: Any) -> None:
        """Draw the last of the moments [t, ...] of an episode, and the way to it, on Matplotlib's axes."""
        ...


Rule = Callable[[str, Examples, Tensor], Tensor]  # its name, support, x [n, *input] -> predictions [n, *output]


class TaskSpec(NamedTuple):
    """What a task asks for. `output_size` is the number of classes, or of regressed values.

    `inputs` are numbers, or n-grams: hashes above 0, in any order, and 0 where a row has no more. `metric` names what
    its predictions are judged by, a registered one; None: accuracy, or mean squared error. `ways`
    is the number of classes in a task where there are more labels than that; None: `output_size`. `ragged` tasks have
    padding among their examples. Tasks of control have a `world`, with `episodes` that do not count and that do.
    `beside` are further metrics. `rule` predicts by one of the rules in the dataset's traits, where those of regression
    have some. `listed` is the number of tasks where they are a list: a test has each of them once.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    output_size: int
    inputs: Inputs = "numbers"
    metric: str | None = None
    ways: int | None = None
    ragged: bool = False
    world: World | None = None
    episodes: tuple[int, int] = (0, 0)
    beside: tuple[str, ...] = ()
    rule: Rule | None = None
    listed: int | None = None


class TaskSource(Protocol):
    """A distribution over tasks of one split and one shape."""

    @property
    def spec(self) -> TaskSpec: ...

    def sample(self, num_tasks: int, generator: torch.Generator) -> Any:
        """Draw a batch of tasks with a leading T, on the data's device; all randomness comes from the generator.

        An Episode, or in control a Trial.

        A source that is a list returns the first of it, at most all.
        """
        ...


@runtime_checkable
class ClassSource(TaskSource, Protocol):
    """A source whose tasks share classes or, as assays, are drawn several times: it can say which they are."""

    def draw_classes(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        """Draw the numbers of the classes alone, of the tasks that `sample` draws from such a generator.

        [T, N], in the order of the labels; or [T, 1], what a task is as a whole, such as its assay.
        """
        ...


class Dataset(Protocol):
    """A named collection that tasks are drawn from.

    One whose traits say `pooled` gives tasks of the split "all" as well: of the classes of all splits together.
    """

    def prepare(self) -> None:
        """Fetch, verify and pack what is missing; cheap if everything is there."""
        ...

    def tasks(self, split: Split, shape: TaskShape) -> TaskSource: ...

    def describe(self) -> str:
        """Say for a person where the data was found, what it holds split by split, or what is missing."""
        ...

    def notes(self) -> list[str]:
        """Say, a line each, what a person must know before relying on a figure. Prepares the data."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what was used, as JSON: counts, hashes and settings that tell two versions apart."""
        ...

    def preprocessing(self) -> dict[str, Any]:
        """How an example becomes a network's input, as JSON; see `metarun.datasets.preprocessing`. Reads no data."""
        ...


class Contents(NamedTuple):
    """What the rows of a dataset's tables were made from: pictures, or texts and molecules as strings."""

    number: int
    digest: str  # a hash of all of them
    read: Callable[[], Tensor | Sequence[str]]  # pictures [n, C, H, W] uint8, or strings; row i is made from the i-th


@runtime_checkable
class Encodable(Dataset, Protocol):
    """A dataset whose examples an encoder can read."""

    def contents(self) -> Contents: ...


class Encoder(Protocol):
    """A frozen network, or a fixed rule, from a picture or a string to a vector of features."""

    @property
    def size(self) -> int:
        """How many numbers a vector has, D."""
        ...

    def encode(self, items: Any) -> Tensor:
        """items: pictures [n, C, H, W] in 0..1, or n strings -> features [n, D], float32 on the CPU.

        The features of an item do not depend on the others. Raises ConfigError if a package or a file is missing, or an
        item cannot be read.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Return what features depend on, as JSON: settings, and the hash of the weights."""
        ...


@runtime_checkable
class Checking(Protocol):
    """An encoder of strings not all of which can be encoded."""

    def check(self, item: str) -> None:
        """Raises ConfigError if the string cannot be encoded."""
        ...


class Algorithm(Protocol):
    """A learning method, as pure functions of the meta-parameters `theta` and one task.

    What else the wiring needs to know stands beside the class's name, in its `metarun.config.traits.Traits`. No
    optimiser and no clipping touches the components of theta that are `carried` there: a step subtracts the whole mean
    gradient, so the pull 1/2 |c - stop(new)|^2 in the scalar replaces c by the tasks' mean of `new`.
    """

    def init(self) -> Theta: ...

    def task_loss(self, theta: Theta, task: Any, /) -> tuple[Tensor, Metrics]:
        """Return the scalar whose mean over tasks is descended in theta, and metrics to log.

        task: an Episode, or in control a Trial.
        """
        ...

    def task_metrics(self, theta: Theta, task: Any, /) -> Metrics:
        """Measure one task for meta-validation and meta-test."""
        ...


@runtime_checkable
class FewShotAlgorithm(Algorithm, Protocol):
    """A method whose tasks are episodes: it adapts to examples, and predicts others.

    `norm` says what norm layers normalise by at meta-test: the statistics of the "batch" at hand, with all
    queries in it, which is transductive; "per_query", of the support and one query at a time (Nichol et al. 2018,
    section 6.1); or "running" averages over training tasks.
    """

    @property
    def norm(self) -> str: ...

    def adapt(self, theta: Theta, support: Examples) -> Any:
        """Return the task-specific state phi that `predict` reads."""
        ...

    def predict(self, theta: Theta, phi: Any, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N] or regressed values [n, *output]."""
        ...


class Attention(NamedTuple):
    """Where a method looks: weights [rows, K, columns] of K heads or blocks, which sum to 1 over the columns.

    A row is an example that is predicted, with its label in `y` [rows]; a column is a support example, with its label
    in `seen` [columns], or a row of a memory, where `seen` is None.
    """

    weights: Tensor
    y: Tensor
    seen: Tensor | None


@runtime_checkable
class Attentive(FewShotAlgorithm, Protocol):
    """A method that shows where it looks within a task; no method must."""

    def attend(self, theta: Theta, episode: Episode) -> Attention:
        """Return the weights that a test of this task reads by, from the functions that `predict` uses."""
        ...


class Backbone(nn.Module):
    """A network from inputs [n, *input_shape] to features [n, feature_size].

    `feature_shape` is their shape before they were flattened: (C, H, W) of a convolutional network's last map.
    `modulated` names the parameters, of one value per unit or channel, through which a task's context enters. One that
    is random in training is `numbered`: a number comes with each input there (`metarun.datasets.sampling.numbered`).
    """

    feature_size: int
    feature_shape: tuple[int, ...]
    modulated: tuple[str, ...] = ()
    numbered: bool = False
    centre: Tensor | None = None  # mean features [feature_size] over training tasks, where a test uses such averages
    variance: Tensor | None = None  # of the features, in the same way

    def head(self, outputs: int) -> nn.Linear:
        """A last layer for these features: Xavier weights, zero biases."""
        layer = nn.Linear(self.feature_size, outputs)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer
