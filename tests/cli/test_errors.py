"""Mistakes: each is told in a line that names the key or file, what was found and what to do; nothing is left."""

import errno
import importlib.util
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import metarun
from metarun.cli.commands import COMMANDS
from metarun.cli.grammar import parse
from metarun.cli.hydra_app import CONFIGS
from metarun.cli.mistakes import check_choice
from metarun.config.errors import ConfigError, report_error
from metarun.config.registry import declaration, known
from metarun.datasets import omniglot
from metarun.datasets.omniglot_files import PARTS
from metarun.datasets.storage import download
from tests.conftest import TINY, Command, Outcome

GLYPHS = TINY[:4]


def files_of(group: str) -> str:
    """The options of a config group, as files: `a, b/c`."""
    files = (path.relative_to(CONFIGS / group).with_suffix("") for path in (CONFIGS / group).rglob("*.yaml"))
    return ", ".join(sorted(file.as_posix() for file in files))


ALGO_FILES, DATASETS, EXPERIMENTS = (files_of(g).count(",") + 1 for g in ("algo", "dataset", "experiment"))
REGRESSION = ", ".join(name for name in known("algo") if "regression" in declaration("algo", name).traits.kinds)

# What is asked for, and all that is answered after "metarun: ". None of these needs a run to exist.
MISTAKES: list[tuple[str, str]] = [
    # names
    (
        "algo=mmal",
        f"algo is 'mmal': the nearest of {ALGO_FILES} are maml, metal, imaml, bmaml, mamlpp; "
        "metarun list algo shows all",
    ),
    ("algo=[1,2]", f"algo is '[1,2]': the nearest of {ALGO_FILES} are ..."),
    ("--multirun algo=[1,2]", f"algo is '[1,2]': the nearest of {ALGO_FILES} are ..."),
    ("algo=[maml,anil]", f"algo is '[maml,anil]': the nearest of {ALGO_FILES} are maml_rl, maml, anil, ..."),
    ("algo=[maml]", f"algo is '[maml]': the nearest of {ALGO_FILES} are maml, ..."),
    ("algo=[]", f"algo is '[]': the nearest of {ALGO_FILES} are ..."),
    ("algo={a:1}", f"algo is '{{a:1}}': the nearest of {ALGO_FILES} are ..."),
    ("+algo=maml", "+algo=maml: algo has an option already: write algo=NAME to replace it"),
    ("++algo=maml", "++algo=maml: algo has an option already: write algo=NAME to replace it"),
    ("backbone=[1,2]", f"backbone is '[1,2]': the nearest of {len(files_of('backbone').split(', '))} are ..."),
    ("trainer={}", "trainer is '{}': choose from default"),
    ("experiment=[]", f"experiment is '[]': the nearest of {EXPERIMENTS} are ..."),
    ("~optimizer", "optimizer: missing"),
    ("dataset.name={}", f"dataset.name is {{}}: the nearest of {len(known('dataset'))} are ..."),
    ("optimizer.name=[[]]", "optimizer.name is [[]]: choose from adam, sgd"),
    ("hydra=3", "hydra itself cannot be set: set what is in it, for example hydra.run.dir=FOLDER"),
    ("hydra/launcher=foo", "hydra/launcher is 'foo': choose from basic, joblib, ray, submitit_local, submitit_slurm"),
    (
        "--multirun hydra/sweeper=nevergrad seed=1,2",
        "hydra/sweeper=nevergrad needs a package that is not there: pip install 'hydra-nevergrad-sweeper'",
    ),
    ("algos=maml", "algos: no such setting (did you mean algo?)"),
    ("sead=3", "sead: no such setting (did you mean seed?)"),
    ("trainer.step=5", "trainer.step: no such setting (did you mean steps?)"),
    ("trainr.steps=5", "trainr.steps: no such setting (did you mean trainer.steps?)"),
    ("inner_lr=0.1", "inner_lr: no such setting (did you mean algo.inner_lr?)"),
    ("algo.alpha=1", "algo.alpha: no such setting: choose from inner_lr, inner_steps, first_order, norm"),
    ("algo=protonet algo.inner_lr=0.1", "algo.inner_lr: no such setting: choose from norm"),
    ("+algo.inner_step=3", "algo.inner_step: no such setting (did you mean inner_steps?)"),
    ("eval.algo.inner_step=3", "eval.algo.inner_step: no such setting (did you mean inner_steps?)"),
    ("eval.variants.x.querys=3", "eval.variants.x.querys: no such setting (did you mean queries?)"),
    ("eval.dataset.image_sise=9", "eval.dataset.image_sise: no such setting (did you mean image_size?)"),
    ("algo=rule dataset=sinusoid", "algo=rule predicts by the rules of a dataset, and this dataset has none"),
    (
        "eval.variants.x.checkpoint=last",
        "eval.variants.x.checkpoint: no such setting: choose from tasks, seed, ways, "
        "shots, queries, tasks_per_chunk, algo, dataset, split, dirichlet",
    ),
    (
        "glyphs eval.dataset={image_size:9}",
        "eval.dataset is {'image_size': 9}: its tasks are classification of numbers of [1, 9, 9], this model was ...",
    ),
    ("algo.name=mmal", f"algo.name is 'mmal': the nearest of {len(known('algo'))} are maml, ..."),
    ("logger=nothing", "logger is 'nothing': choose from none, tensorboard, wandb"),
    (
        "experiment=maml/omniglot5w1s",
        f"experiment is 'maml/omniglot5w1s': the nearest of {EXPERIMENTS} are maml/omniglot_5w1s, ...",
    ),
    ("experiment=unheard", f"experiment is 'unheard': the nearest of {EXPERIMENTS} are ..."),
    ("data omnigot", f"dataset is 'omnigot': the nearest of {DATASETS} are omniglot, ..."),
    ("data omniglot dataset.split=mine", "dataset.split is 'mine': choose from vinyals, random, lake, latin"),
    (
        "evalute outputs/x",
        f"evalute is no command (did you mean evaluate?): choose from {', '.join(COMMANDS)}, or set name=value",
    ),
    ("--config-dir=nowhere", "--config-dir is nowhere: there is no such folder"),
    ("list --config-dir=nowhere", "--config-dir is nowhere: there is no such folder"),
    ("help", f"help is no command (did you mean --help?): choose from {', '.join(COMMANDS)}, or set name=value"),
    (
        "list algos",
        "algos is not listed: choose from algo, dataset, backbone, encoder, probe, experiment (did you mean algo?)",
    ),
    ("list algo mml", "no algo fits 'mml': a pattern may contain * and ?, as in 'm*' (did you mean maml?)"),
    ("resume", "metarun resume: the following arguments are required: run; see metarun resume --help"),
    ("report outputs --to=/dev/null", "the report's folder /dev/null cannot be made: /dev/null is a file"),
    ("report outputs --to=/dev/null/x", "the report's folder /dev/null/x cannot be made: /dev/null is a file"),
    ("reproduce sinusoid --to=/dev/null", "the report's folder /dev/null cannot be made: /dev/null is a file"),
    ("data omniglot --preview=/nowhere/x.png", "--preview is /nowhere/x.png: there is no folder /nowhere"),
    ("data omniglot --preview=x.foo", "--preview is x.foo: give a file whose name ends with .png"),
    ("check algo", "algo cannot be checked: give a group and a name, for example algo=maml"),
    (
        "check algos=maml",
        "algos=maml cannot be checked (did you mean algo?): give a group and a name, for example algo=maml",
    ),
    ("report --too=x", "metarun report: unrecognized arguments: --too=x; see metarun report --help"),
    (
        "--config-path=elsewhere",
        "--config-path would replace metarun's own configuration: use --config-dir to add to it",
    ),
    ("--foo", "unrecognized arguments: --foo; see metarun --help"),
    ("--cfg foo", "argument --cfg/-c: invalid choice: 'foo' (choose from ..."),
    ("--package x", "--package and --resolve are about what is printed: use them with --cfg job"),
    ("--config-name foo", "there is no YAML file foo.yaml that could be used in place of metarun's own"),
    (
        "--experimental-rerun x",
        "--experimental-rerun is no option of metarun: metarun resume RUN continues a run",
    ),
    ("--cfg job seed=abc", "seed is 'abc': it must be a whole number"),
    ("--info all algo.inner_steps=-1", "algo.inner_steps is -1: it must be at least 0"),
    ("hydra.searchpath=[file:///nowhere/at/all]", "hydra.searchpath is /nowhere/at/all: there is no such folder"),
    # values
    ("seed=abc", "seed is 'abc': it must be a whole number"),
    (
        "seed=18446744073709551616",
        "seed is 18446744073709551616: it must be at least 0 and at most 9223372036854775807",
    ),
    (f"seed={10**400}", f"seed is {10**400}: it must be at least 0 and at most 9223372036854775807"),
    (f"optimizer.lr={10**400}", f"optimizer.lr is {10**400}: it must be a number"),
    ("eval.seed=-1", "eval.seed is -1: it must be at least 0 and at most 9223372036854775807"),
    ("seed=1.5", "seed is 1.5: it must be a whole number"),
    ("seed=true", "seed is True: it must be a whole number"),
    ("~seed", "seed: missing"),
    ("trainer.steps=", "trainer.steps is '': it must be a whole number"),
    ("trainer.steps=1e400", "trainer.steps is inf: it must be a whole number"),
    ("optimizer.lr=nan", "optimizer.lr is nan: it must be a number"),
    ("algo.inner_steps=-1", "algo.inner_steps is -1: it must be at least 0"),
    ("trainer=null", "trainer is 'null': choose from default"),
    ("+eval.variants.x.ways=", "eval.variants.x.ways is '': it must be a whole number"),
    ("eval.variants.x=3", "eval.variants.x is 3: it must be a mapping of names"),
    ("seed=${nowhere}", "seed: Interpolation key 'nowhere' not found"),
    ("seed=${ways} ways=${seed}", "ways: Recursive interpolation detected"),
    ("data_dir=${oc.env:NOWHERE}", "data_dir: Environment variable 'NOWHERE' not found"),
    ("seed=${nothing:1}", "seed: Unsupported interpolation type nothing"),
    ("seed=${", "seed=${ cannot be read: a bracket is open; in a shell quote the whole, as 'name={a: 1}'"),
    ("data_dir=[a]", "data_dir is ['a']: it must be text"),
    (
        "dataset=folder dataset.path=",
        "dataset.path is empty, as of an unset variable of the shell: give a path, or null",
    ),
    ("init_from=", "init_from is empty, as of an unset variable of the shell: give a path, or null"),
    ("dataset=folder dataset.path=/dev/null", "dataset.path is /dev/null, which is no folder and no archive"),
    ("dataset=folder dataset.path=~/not/there", f"dataset=folder: nothing at {Path.home()}/not/there: ..."),
    ("data folder dataset.path=~/not/there", f"dataset=folder: nothing at {Path.home()}/not/there: ..."),
    ("dataset=folder dataset.path=3", "dataset.path is 3: it must be text"),
    ("hydra.run.dir=null", "hydra.run.dir=null: a value of another kind is needed here"),
    ("hydra.run.dir=${algo}", "hydra.run.dir: While dereferencing interpolation '${algo}': it is no text"),
    ("hydra.run.dir=", "hydra.run.dir is empty: it must name a folder; . is the current one"),
    ("--multirun hydra.sweep.dir=", "hydra.sweep.dir is empty: it must name a folder; . is the current one"),
    ("glyphs hydra.run.dir=/proc/x", "Hydra cannot write the run's folder: /proc/x: No such file or directory"),
    (f"hydra.run.dir=/{'x' * 300}", f"the run folder /{'x' * 300} cannot be made: File name too long"),
    (
        "seed=x algo.inner_steps=-1 trainer.execution=vmpa",
        "algo.inner_steps is -1: it must be at least 0\n"
        "seed is 'x': it must be a whole number\n"
        "trainer.execution is 'vmpa': choose from auto, vmap, loop (did you mean vmap?)",
    ),
    (
        "glyphs eval.checkpoint=final",
        "eval.checkpoint is 'final': it must be best, last, ensemble or a file; there is no such file",
    ),
    ("hydra.run.dir=${nowhere}", "hydra.run.dir: Interpolation key 'nowhere' not found"),
    ("--multirun hydra.sweep.dir=${nowhere}", "hydra.sweep.dir: Interpolation key 'nowhere' not found"),
    ("hydra.run.dir=/dev/null/x", "the run folder /dev/null/x cannot be made: /dev/null is a file"),
    # grammar
    ("seed=1,2", "seed=1,2 asks for several runs: did you mean metarun --multirun seed=1,2?"),
    ("trainer.workers=0", "trainer.workers is 0: it must be a whole number at least 1 or one of auto"),
    (
        "trainer.workers=3 trainer.tasks_per_step=2",
        "trainer.workers is 3: trainer.tasks_per_step is 2, and each needs a task",
    ),
    ("seed", f"seed is no command (did you mean embed?): choose from {', '.join(COMMANDS)}, or set name=value"),
    (
        "trainer.clip_norm={backbone: 1}",
        "trainer.clip_norm={backbone: cannot be read: a bracket is open; in a shell quote the whole, as 'name={a: 1}'",
    ),
    ("=3", "=3 cannot be read: a setting is written name=value"),
    ("seed=a=b", "seed=a=b cannot be read: quote special characters twice, as 'name=\"a = b\"'"),
    ("--multirun seed=1,2 sead=1,2", "sead: no such setting (did you mean seed?)"),
    ("--multirun algo=maml,mmal", f"algo is 'mmal': the nearest of {ALGO_FILES} are maml, ..."),
    ("--multirun trainer.steps=1,two", "trainer.steps is 'two': it must be a whole number"),
    # what does not fit together
    ("device=cuda:99", "device is 'cuda:99': choose from auto, ..."),
    ("device=gpu", "device is 'gpu': choose from auto, ..."),
    (
        "glyphs trainer.precision=bfloat16 trainer.execution=vmap",
        "trainer.precision is bfloat16 and trainer.execution is vmap: set trainer.execution=loop, "
        "within vmap PyTorch computes convolutions in float32",
    ),
    ("glyphs ways=0", "ways is 0: it must be at least 2"),
    ("glyphs ways=-3 eval.ways=5", "ways is -3: it must be at least 2"),
    ("dataset=sinusoid ways=0", "ways is 0: it must be at least 1"),
    ("glyphs ways=1", "ways is 1: it must be at least 2, with one class any guess is right"),
    ("glyphs shots=0", "shots is 0: it must be at least 1"),
    ("glyphs eval.shots=0", "eval.shots is 0: it must be at least 1"),
    ("glyphs ++eval.variants.one.ways=1", "eval.variants.one.ways is 1: it must be at least 2, ..."),
    ("glyphs ways=5 eval.ways=1", "eval.ways is 1: it must be at least 2, with one class any guess is right"),
    ("glyphs ways=1000", "ways is 1000: train has 20 classes, choose ways=20 or fewer"),
    (
        "glyphs ways=15 algo=protonet",
        "ways is 15: val has 10 classes, choose ways=10 or fewer",
    ),  # validation's, but not training's
    (
        "glyphs shots=15 queries=15",
        "shots + queries is 15 + 15 = 30: each class of train has 20 examples, "
        "and support and query must not share any",
    ),
    (
        "glyphs eval.ways=3",
        "eval.ways is 3: this model has a last layer for ways=5; "
        "only methods without one (for example protonet) can be tested with other ways",
    ),
    (
        "--multirun algo=maml,protonet dataset=sinusoid",
        f"algo=protonet cannot learn regression: choose from {REGRESSION}",
    ),
    ("algo=protonet dataset=sinusoid", f"algo=protonet cannot learn regression: choose from {REGRESSION}"),
    (
        "dataset=sinusoid backbone=conv4",
        "backbone=conv4 takes square images [C, S, S] with S at least 16, "
        "and this dataset has inputs [1]: choose another backbone (mlp takes any input)",
    ),
    (
        "algo=protonet encoder=torchvision backbone=conv4",
        "backbone=conv4 reads pictures, and encoder=torchvision makes vectors: "
        "leave it out, or choose linear, mlp, tanh, wide_deep",
    ),
    (
        "algo=protonet dataset=fs_mol encoder=morgan backbone=ngram",
        "backbone=ngram reads ngrams, and encoder=morgan makes vectors: "
        "leave it out, or choose linear, mlp, tanh, wide_deep",
    ),
    (
        "glyphs trainer.clip_norm={bakbone:1}",
        "trainer.clip_norm.bakbone: the algorithm has no such component (did you mean backbone?)",
    ),
    (
        "glyphs optimizer=sgd optimizer.momentum=0 optimizer.nesterov=true",
        "optimizer=sgd cannot work with its settings: Nesterov momentum requires a momentum and zero dampening",
    ),
]


MISSING_PLUGINS = [
    ("hydra/launcher", "joblib", "metarun[joblib]"),
    ("hydra/launcher", "submitit_slurm", "metarun[submitit]"),
    ("hydra/launcher", "submitit_local", "metarun[submitit]"),
    ("hydra/launcher", "ray", "metarun[ray]"),
    ("hydra/sweeper", "optuna", "metarun[optuna]"),
    ("hydra/sweeper", "ax", "hydra-ax-sweeper"),
]


def assert_told(answer: Outcome, message: str) -> None:
    """Exit code 2, and on standard error the message alone, or what is before its dots."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.out + answer.err
    lines = answer.err.splitlines()
    assert all(line.startswith("metarun: ") for line in lines)
    told = "\n".join(line.removeprefix("metarun: ") for line in lines)
    beginning = message.removesuffix("...")
    assert told.startswith(beginning) if beginning != message else told == message


@pytest.mark.parametrize(("asked", "message"), MISTAKES, ids=[asked for asked, _ in MISTAKES])
def test_a_mistake_is_explained_and_leaves_nothing(metarun: Command, place: Path, asked: str, message: str) -> None:
    words = [word for text in asked.split(" ") for word in (GLYPHS if text == "glyphs" else [text])]
    short = () if words[0] in COMMANDS else ("trainer.steps=1", "eval.tasks=2")  # what is let through ends soon
    answer = metarun(*short, *words)
    assert_told(answer, message)
    assert answer.out == ""
    assert list(place.iterdir()) == []


@pytest.mark.integration
@pytest.mark.parametrize(
    "asked",
    [
        "--help",
        "--cfg job",
        "--multirun --cfg job seed=1,2",
        "list",
        "list algo",
        "--version",
        "algo=mmal",
        "seed=abc",
        "resume nowhere",
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(metarun_process: Command, asked: str) -> None:
    """Importing torch takes seconds; the answer to a typing mistake should not."""
    answer = metarun_process(*asked.split(), after="print('torch' in sys.modules)")
    assert answer.out.splitlines()[-1] == "False"
    assert answer.code == (2 if asked.startswith(("algo=", "seed=", "resume")) else 0)


# A user's own configuration files


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # Hydra composes this one without a word
        ("algo:\n  inner_step: 3\n", "algo.inner_step: no such setting (did you mean inner_steps?)"),
        ("ways: [5]\n", "eval.ways is [5]: it must be a whole number\nways is [5]: it must be a whole number"),
        ("algo: 3\n", "algo is 3: it must be a mapping of names"),
        ("defaults:\n  - override /algo: mmal\n", f"algo is 'mmal': the nearest of {ALGO_FILES} are maml, ..."),
        ("defaults:\n  - override /algos: maml\n", "algos: no such setting (did you mean algo?)"),
        ("algo: [\n", "mine/experiment/own.yaml, line 3: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_mistake_in_a_file_of_the_user(metarun: Command, place: Path, text: str, message: str) -> None:
    write(place / "mine/experiment/own.yaml", f"# @package _global_\n{text}")
    answer = metarun("--config-dir=mine", "experiment=own")
    assert_told(answer._replace(err=answer.err.replace(f"{place}/", "")), message)
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ways: 3\n", "mine/experiment/own.yaml: its first line must be # @package _global_"),
        (b"", "mine/experiment/own.yaml: its first line must be # @package _global_"),
        (
            b"# @package _global_\n\n# gr\xf6\xdfe\n",
            "mine/experiment/own.yaml is not UTF-8 text: line 3 cannot be read",
        ),
        (b"# @package _global_\n- 3\n", "mine/experiment/own.yaml must hold settings, each as name: value"),
    ],
)
def test_a_file_of_the_user_that_is_no_experiment(metarun: Command, place: Path, content: bytes, message: str) -> None:
    write(place / "mine/experiment/own.yaml", "")
    (place / "mine/experiment/own.yaml").write_bytes(content)
    for more in ([], ["--cfg", "job"], ["--multirun"]):
        answer = metarun("--config-dir=mine", "experiment=own", *more)
        assert_told(answer._replace(err=answer.err.replace(f"{place}/", "")), message)
    assert not (place / "outputs").exists()
    assert metarun("list", "experiment", "own", "--config-dir=mine").code == 0


def test_a_byte_order_mark_changes_nothing(metarun: Command, place: Path) -> None:
    write(place / "mine/experiment/own.yaml", "\ufeff# @package _global_\nways: 3\n")
    answer = metarun("--config-dir=mine", "experiment=own", "--cfg", "job")
    assert answer.code == 0
    assert answer.out.startswith("ways: 3\n")


# Streams, threads and launchers


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_character_that_the_console_does_not_have_is_shown_by_its_code(
    metarun: Command, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stderr", stream)
    assert metarun("dataset=folder", "dataset.path=名").code == 2
    stream.flush()
    assert b"\\u540d" in stream.buffer.getvalue()


def test_the_command_works_in_a_thread(metarun: Command, capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(metarun, "--version").result().code == 0


def test_a_launcher_that_cannot_start_says_why(metarun: Command, place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    answer = metarun("--multirun", "hydra/launcher=submitit_slurm", "seed=1,2", *TINY)
    assert_told(answer, 'hydra/launcher=submitit_slurm fails: Could not detect "srun", ...')


@pytest.mark.parametrize(("group", "option", "package"), MISSING_PLUGINS)
def test_a_plugin_of_hydra_that_is_not_installed(group: str, option: str, package: str) -> None:
    loader = Mock()
    loader.get_group_options.return_value, loader.list_groups.return_value = ["basic"], []
    (override,) = parse([f"{group}={option}"])
    with pytest.raises(ConfigError) as told:
        check_choice(override, loader)
    assert str(told.value) == f"{group}={option} needs a package that is not there: pip install '{package}'"


# Data


def test_omniglot_that_is_missing_and_cannot_be_downloaded(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "URL", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "RETRIES", 0)
    answer = metarun("dataset=omniglot", f"data_dir={place}/data")
    target = place / "data/omniglot/images_background.zip"
    assert_told(answer, "cannot download http://127.0.0.1:9/images_background.zip (...")
    assert answer.err.endswith(f"): put the file at {target} by hand\n")
    assert not target.exists()
    assert not (place / "outputs").exists()


def test_a_corrupt_zip_of_omniglot(metarun: Command, place: Path) -> None:
    for part in PARTS:
        write(place / f"omniglot/{part}.zip", "PK\x03\x04 but no zip")
    answer = metarun("dataset=omniglot", f"data_dir={place}")
    assert_told(
        answer,
        f"{place}/omniglot/images_background.zip is damaged or cut short (File is not a zip file): "
        "replace it by a whole copy, or delete it to have it downloaded, "
        "or set dataset.path to another copy",
    )
    assert not (place / "outputs").exists()


def test_a_cache_that_cannot_be_written(metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place / "file", "")
    monkeypatch.setenv("METARUN_CACHE", str(place / "file/cache"))
    answer = metarun(*TINY)
    assert_told(
        answer,
        f"the cache {place}/file/cache cannot be written (Not a directory): set METARUN_CACHE to a folder that can",
    )
    assert [path.name for path in place.iterdir()] == ["file"]


# Run folders


def test_outputs_that_cannot_be_written(metarun: Command, place: Path) -> None:
    write(place / "outputs", "a file, not a folder")
    answer = metarun(*TINY)
    assert_told(answer, f"the run folder {place}/outputs/maml-glyphs-5w1s/...")
    assert answer.err.endswith(f" cannot be made: {place}/outputs is a file\n")


@pytest.mark.parametrize("lines", [2, 30])
def test_a_configuration_that_is_cut_short_is_called_so(metarun: Command, place: Path, lines: int) -> None:
    whole = metarun(*TINY, "--cfg", "job", "--resolve").out.splitlines()
    write(place / "run/config.yaml", "\n".join(whole[:lines]))
    write(place / "run/choices.json", "{}")
    for words in (("resume", "run"), ("evaluate", "run"), ("explain", "run"), (*TINY, "hydra.run.dir=run")):
        assert_told(metarun(*words), f"{place}/run/config.yaml is cut short, or of another version of metarun: ...")


@pytest.mark.parametrize("setting", ["init_from", "eval.checkpoint"])
def test_weights_that_cannot_be_read_are_refused_before_a_folder_is_made(
    metarun: Command, place: Path, setting: str
) -> None:
    write(place / "given/no.pt", "no weights")
    write(place / "run/checkpoints/best.pt", "")
    for name, message in (
        ("no.pt", f"{setting}: the checkpoint {place}/given/no.pt cannot be read, it is damaged or not metarun's: ..."),
        ("other.pt", f"{setting} is '{place}/given/other.pt': ..."),
    ):
        assert_told(metarun(*TINY, f"{setting}=given/{name}"), message)
    if setting == "init_from":
        told = f"init_from is the folder {place}/run: name a checkpoint in it, {place}/run/checkpoints/best.pt"
        assert_told(metarun(*TINY, "init_from=run"), told)
        assert_told(metarun(*TINY, "init_from=given"), f"init_from is the folder {place}/given, which holds ...")
    assert not (place / "outputs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_outputs_without_permission(metarun: Command, place: Path) -> None:
    (place / "outputs").mkdir(mode=0o555)
    answer = metarun(*TINY)
    assert_told(answer, f"the run folder {place}/outputs/maml-glyphs-5w1s/...")
    assert answer.err.endswith(f" cannot be written: no permission for {place}/outputs\n")


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_not_installed(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: find_spec(name, *more) if name != logger else None
    )
    message = f"logger={logger} needs a package that is not there: pip install 'metarun[{logger}]'"
    assert_told(metarun(*TINY, f"logger={logger}"), message)
    assert list(place.iterdir()) == []


# Shortages of the machine: not the user's mistake, so exit code 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            "out of memory: smaller tasks_per_chunk, ...",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; the same command goes on ..."),
    ],
)
def test_a_shortage_of_the_machine(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("metarun.runs.session.train", fail)
    answer = metarun(*TINY, "hydra.run.dir=run")
    assert answer.code == 1
    assert answer.err.startswith(f"metarun: {place}/run: {message.removesuffix('...')}")
    assert answer.err.count("\n") == 1


# As the user meets it


@pytest.mark.integration
def test_a_mistake_in_a_process_of_its_own(metarun_process: Command, place: Path) -> None:
    for asked, message in (
        ("algo=mmal", MISTAKES[0][1]),
        ("dataset=sinusoid algo=protonet", "algo=protonet cannot learn ..."),
    ):
        assert_told(metarun_process(*asked.split()), message)
    assert list(place.iterdir()) == []


def test_a_list_of_numbers_for_a_group_is_refused_from_python_too() -> None:
    with pytest.raises(ConfigError, match=r"algo is '\[1,2\]': the nearest of"):
        metarun.run("algo=[1,2]")


def test_an_interrupt_promises_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped; the same command again goes on from what is saved\n"
