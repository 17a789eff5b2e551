"""The first screens, `metarun --help` and `metarun list`, as wide as the terminal."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from metarun.cli.compose import describe_options, read_comments
from metarun.cli.hydra_app import CONFIGS
from metarun.config.errors import ConfigError, did_you_mean, offer
from metarun.config.registry import LISTED, broken_packages

TWIN = "_paper"  # ends the name of an experiment at the paper's length, beside its shorter form

HEAD = """\
metarun trains and tests few-shot and meta-learning methods.

usage: metarun [GROUP=OPTION ...] [PATH=VALUE ...]        train and test a model
       metarun --multirun [GROUP=A,B ...] [PATH=1,2 ...]  one for each choice
       metarun COMMAND ...

Commands (each has --help)"""
EXAMPLES = """\
Examples
  metarun                             MAML on generated characters, in a minute
  metarun algo=protonet dataset=omniglot ways=5 shots=1 device=cuda
  metarun experiment=maml/omniglot_5w1s_paper seed=1
  metarun --multirun algo=maml,fomaml,anil seed=1,2,3
  metarun algo=anil --cfg job         print every setting of a run; run nothing

Options
  --multirun          every combination of the values given; goes on if repeated
  --cfg job           print the settings of a run, or the jobs of a sweep
  --config-dir DIR    add a folder with YAML files of your own
  --hydra-help        Hydra's own options
  --version"""


def write_help(commands: Mapping[str, str], config_dir: str | None = None) -> str:
    """The text of `metarun --help`.

    commands: name -> what it does, in one line.
    """
    groups = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and folder.name != "probe")
    choices = {group: ", ".join(describe_options(group, config_dir)) for group in groups}
    choices["experiment"] = f"{len(describe_options('experiment', config_dir))}, shown by metarun list experiment"
    return "\n".join([HEAD, *_align(commands), "", EXAMPLES, "", "Groups", *_align(choices)])


def write_overview(config_dir: str | None = None) -> str:
    """The text of `metarun list`: names only, methods by family."""
    lines = []
    for group in LISTED:
        options = read_comments(group, config_dir)
        lines.append(f"{group}= ({len(options)})")
        if group == "algo":
            lines += _align({family: ", ".join(names) for family, names in _group_by_family(options).items()})
        elif group == "experiment":
            lines += wrap(f"metarun list {group} 'maml/*' lists those of one method, '*_5w1s' of one setting")
            lines += wrap("metarun algo=maml dataset=omniglot takes its own without being told")
        else:
            lines += wrap(", ".join(options))
    broken = [line for text in broken_packages() for line in wrap(text, "")]
    return "\n".join([*lines, *broken, "", "metarun list GROUP [PATTERN] describes each of a group."])


def _group_by_family(options: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Family of methods -> the names in it. The second comment of a method's file says "family: metric; ..."."""
    families: dict[str, list[str]] = {}
    for option, comments in options.items():
        named = [comment.removeprefix("family: ") for comment in comments if comment.startswith("family: ")]
        families.setdefault(named[0].partition(";")[0] if named else "other", []).append(option)
    return dict(sorted(families.items()))


def write_group(group: str, pattern: str = "*", twins: bool = False, config_dir: str | None = None) -> str:
    """The text of `metarun list GROUP PATTERN`: each option with its description. Raises ConfigError.

    twins: whether experiments at the paper's length are listed beside their shorter forms.
    """
    if group not in LISTED:
        raise ConfigError(f"{group} is not listed: {offer(group, LISTED)}")
    known = describe_options(group, config_dir)
    fitting = {option: text for option, text in known.items() if fnmatchcase(option, pattern)}
    if not fitting:
        raise ConfigError(
            f"no {group} fits {pattern!r}: a pattern may contain * and ?, as in 'm*'{did_you_mean(pattern, known)}"
        )
    shown = {
        option: text
        for option, text in fitting.items()
        if twins or TWIN in pattern or option.removesuffix(TWIN) == option or option.removesuffix(TWIN) not in known
    }
    lines = [f"{group}=", *_align(shown)]
    if hidden := len(fitting) - len(shown):
        lines += wrap(f"{hidden} more have the paper's length and end with {TWIN}: --all lists them", "")
    return "\n".join(lines)


def _align(rows: Mapping[str, str]) -> Iterable[str]:
    """Two columns: names, and texts that are wrapped."""
    width = 3 + max(map(len, rows), default=0)
    for name, text in rows.items():
        yield from wrap(text or "-", f"  {name:{width}}")


def wrap(text: str, indent: str = "  ") -> list[str]:
    """Break a text into lines of the terminal's width, the first after `indent`, the others as far in."""
    width = max(60, shutil.get_terminal_size((80, 24)).columns)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=" " * len(indent))
