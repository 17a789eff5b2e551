"""The sub-commands that look at a finished run again: evaluate and probe."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.cli.compose import change, compose
from metarun.cli.grammar import expand_home
from metarun.cli.parser import Parser
from metarun.config.errors import ConfigError
from metarun.config.load import keep_form, load_settings, resolve
from metarun.config.registry import declaration, known
from metarun.config.schema import Settings
from metarun.runs.folder import RunFolder

# Settings of `metarun evaluate` that are not below `eval`
ELSEWHERE = ("eval.", "device=", "data_dir=", "dataset.path=", "dataset.placement=", "dataset.test_tasks=")


def evaluate(words: Sequence[str]) -> None:
    """Test a finished run again, with the same or other settings.

    Settings are those of eval, without the prefix (ways=20, shots=5, tasks=5000, checkpoint=last,
    algo.inner_steps=10), and device, data_dir, dataset.path, dataset.placement and dataset.test_tasks.
    Without any the run's own test is repeated.

    dataset=NAME, with dataset.path=... and so on, tests on another dataset: its pictures are resized as those of the
    training were. split=all takes the classes of all its splits.
    """
    parser = Parser("evaluate", evaluate)
    parser.add_argument("run", type=Path, help="the folder of the run, below outputs/")
    parser.add_argument("overrides", nargs="*", default=[], help="settings to replace, for example ways=20")
    arguments = parser.read(words)
    folder = RunFolder(arguments.run.absolute())
    config, settings, changes = change_test(folder, arguments.overrides, arguments.config_dir)
    from metarun.runs.run import test_again

    test_again(settings, folder, config, changes)


def probe(words: Sequence[str]) -> None:
    """Look at a finished run by probes: what its accuracy hides.

    PROBES are names of metarun list probe, with commas between them; without any all that can look at the run.

    Settings are those of probes (noise.rates=[0,0.5]), the number of tasks (tasks=500), and those of metarun evaluate.
    Tables and pictures go to probes/ in the run's folder; with settings, below tests/ there.
    """
    parser = Parser("probe", probe)
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
    return keep_form(values, form, given)
