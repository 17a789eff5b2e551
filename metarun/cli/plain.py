"""A plain command, `metarun algo=maml dataset=omniglot`, takes the settings that the method has on the data.

They are those of an experiment, whose name says what it is for: `maml/omniglot_5w1s`, `lstm/omniglot_5w`,
`maml/sinusoid`. With any other ending, as `maml/omniglot_5w1s_paper`, it is taken only where it is named. If none is
for these ways and shots, the nearest one says how to train and nothing about the tasks; so does one for other data that
is read in the same way, as miniImageNet's for a folder of pictures.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ConfigDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

NONE = "experiment=null"  # typed by who wants the settings of the groups alone
TASK = ("ways", "shots", "queries")
LIKE = "like"  # beside the choices of groups: the experiment that only says how to train

Load = Callable[[Sequence[str]], DictConfig]


class Cell(NamedTuple):
    """What an experiment is for; None: any."""

    experiment: str
    dataset: str
    ways: int | None
    shots: int | None

    def fits(self, dataset: str, ways: int, shots: int) -> bool:
        return self.dataset == dataset and self.ways in (None, ways) and self.shots in (None, shots)


def read_cell(experiment: str) -> Cell:
    """Take a name apart; what else stands at its end counts as part of the dataset's name."""
    match = re.fullmatch(r"(?:.*/)?(.+?)(?:_(\d+)w(?:(\d+)s)?)?", experiment)
    assert match is not None
    ways, shots = (int(text) if text else None for text in match.groups()[1:])
    return Cell(experiment, match[1], ways, shots)


def find_table(experiment: str, datasets: Collection[str]) -> str:
    """The dataset that an experiment is on, by its name: "omniglot" of "maml/omniglot_5w1s"; "" if there is none.

    One that is tested on another dataset is in a table of both: "omniglot_emnist" of "maml/omniglot_emnist_5w1s".
    """
    found, rest = list[str](), experiment.partition("/")[2]
    while fitting := [name for name in datasets if rest == name or rest.startswith(f"{name}_")]:
        found.append(max(fitting, key=len))
        rest = rest.removeprefix(found[-1]).removeprefix("_")
    return "_".join(found)


def find_nearest(cells: Sequence[Cell], ways: int, shots: int) -> Cell:
    """The cell of these ways and shots, or the one whose ways, then shots are nearest to them."""
    return min(cells, key=lambda cell: (abs((cell.ways or ways) - ways), abs((cell.shots or shots) - shots)))


class Loader(ConfigLoaderImpl):
    """Hydra's loader, which completes plain commands.

    A single run, all jobs of a sweep, whoever chooses them, and `--cfg job` have this place in common.
    """

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        def load(words: Sequence[str]) -> DictConfig:
            return ConfigLoaderImpl.load_configuration(
                self, config_name, list(words), run_mode, from_shell, validate_sweep_overrides
            )

        typed = OverridesParser.create().parse_overrides(overrides)
        named = [override for override in typed if override.key_or_group == "experiment"]
        if named and named[-1].value() is None:  # Hydra takes no null for the option of a group
            config = load([override.input_line or "" for override in typed if override not in named])
            config.hydra.overrides.task.append(NONE)
            return config
        if named or run_mode is RunMode.MULTIRUN or config_name != "config":
            return load(overrides)
        groups = self.list_groups("")
        head = load(choose(typed, {*groups, *TASK}))
        cell = self.find_cell(head)
        return complete(load, typed, groups, head, cell) if cell else load(overrides)

    def find_cell(self, head: DictConfig) -> Cell | None:
        """The experiment of the method on the data, or on data that is read in the same way."""
        choices = head.hydra.runtime.choices
        if head.get("encoder"):  # experiments train networks that read the data itself
            return None
        try:
            algo, dataset, ways, shots = str(choices["algo"]), choices["dataset"], int(head.ways), int(head.shots)
        except (OmegaConfBaseException, KeyError, ValueError, TypeError):  # a mistake, which is told of elsewhere
            return None
        known = self.get_group_options("dataset")
        cells = [read_cell(f"{algo}/{name}") for name in self.get_group_options(f"experiment/{algo}")]
        for table in sorted({cell.dataset for cell in cells} & set(known), key=lambda name: name != dataset):
            nearest = find_nearest([cell for cell in cells if cell.dataset == table], ways, shots)
            if table == dataset or self.find_form(table) == head.dataset.name:
                return nearest
        return None

    def find_form(self, dataset: str) -> str | None:
        """The registered name of an option of the group: "images" of "cub". Composing it would take 20 files."""
        file = self.repository.load_config(f"dataset/{dataset}")
        if file is None or not isinstance(file.config, DictConfig):
            return None
        values = file.config.get("dataset", file.config)
        parents = [default.path for default in file.defaults_list or () if isinstance(default, ConfigDefault)]
        return values.get("name") or next((form for path in parents if path and (form := self.find_form(path))), None)


def choose(typed: Sequence[Override], keys: Collection[str], below: Collection[str] = ()) -> list[str]:
    """The overrides of these keys, of those below some keys, and of Hydra itself."""

    def is_wanted(override: Override) -> bool:
        key = override.key_or_group
        return override.is_hydra_override() or key in keys or key.partition(".")[0] in below

    return [override.input_line or "" for override in typed if is_wanted(override)]


def complete(load: Load, typed: Sequence[Override], groups: Sequence[str], head: DictConfig, cell: Cell) -> DictConfig:
    """Compose what was typed over an experiment's settings. head: composed of the typed groups and task alone.

    A group whose option was typed and is another than the experiment's has its own settings.
    """
    choices, keys = head.hydra.runtime.choices, {override.key_or_group for override in typed}
    added = [f"experiment={cell.experiment}", *(f"{group}={choices[group]}" for group in ("algo", "dataset"))]
    config = load([*added, *(override.input_line or "" for override in typed)])
    exact = cell.fits(choices["dataset"], head.ways, head.shots)
    if not exact or keys & {*groups, *TASK} - {"algo", "dataset"}:
        theirs = load([f"experiment={cell.experiment}"])
        others = theirs.hydra.runtime.choices
        kept = {group for group in {*keys.intersection(groups), "dataset"} if choices[group] != others[group]}
        kept |= set() if exact else {*TASK, "eval"}
        followed = {key for key in keys.intersection(TASK) if config[key] != theirs[key]} if exact else set()
        with open_dict(config):
            if kept:
                ours, trained = load(choose(typed, groups, kept)), config.eval.algo
                config.update({key: ours[key] for key in kept})
                config.eval.algo = trained
            for key in followed:  # as without an experiment a test has the training's number, unless its own is typed
                if not keys & {"eval", f"eval.{key}"}:
                    config.eval[key] = f"${{{key}}}"
            if not exact:
                config.hydra.runtime.choices.update({"experiment": None, LIKE: cell.experiment})
    del config.hydra.overrides.task[: len(added)]
    return config
