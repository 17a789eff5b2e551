"""The library: `import metarun` trains, loads, adapts, predicts and collects."""

import doctest
import functools
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

import metarun
from metarun.cli.compose import describe_options
from metarun.config.registry import declaration, known
from metarun.core.batch import map_tasks
from metarun.core.norm import use_statistics
from metarun.core.objectives import adapt_to, predict_queries
from metarun.core.types import Episode, Examples, FewShotAlgorithm
from metarun.engine.build import Experiment
from metarun.engine.distributed import ALONE
from metarun.engine.evaluate import draw_fixed_tasks
from metarun.runs.folder import RunFolder
from metarun.runs.scoring import load_models
from tests.conftest import TINY

SHORT = ("trainer.steps=1", "eval.tasks=3", "eval.val_tasks=2", "trainer.workers=1")
DEFAULT = ("protonet", "fomaml")  # the others are integration tests
ACTING = [name for name in known("algo") if "control" in declaration("algo", name).traits.kinds]  # predict nothing
METHODS = [
    name if name in DEFAULT else pytest.param(name, marks=pytest.mark.integration)
    for name in describe_options("algo")
    if name not in ACTING
]


Trained = Callable[[str], metarun.Run]


def train(*overrides: str) -> metarun.Run:
    """A run of one step, in a folder that only these overrides have."""
    return metarun.run(*TINY, *SHORT, *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Trained]:
    """Algorithm -> its run, which the tests of this module share."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(shared_cache))
        short = {name: ["algo.steps=2"] for name in ("alpha_tim", "linear_probe", "quadratic_probe")}
        yield functools.cache(
            lambda algo: train(f"algo={algo}", "eval.shots=2", f"hydra.run.dir={folder}/{algo}", *short.get(algo, []))
        )


def test_importing_metarun_does_not_import_torch() -> None:
    code = "import metarun, sys; assert 'torch' not in sys.modules and not hasattr(metarun, 'nothing')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_list_exists_and_says_what_it_is() -> None:
    assert sorted(metarun.__all__) == metarun.__all__
    for name in metarun.__all__:
        found = getattr(metarun, name)
        assert name == "__version__" or inspect.getdoc(found)
    assert set(metarun.__all__) <= set(dir(metarun))


def test_the_examples_in_the_docstrings_run(place: Path) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    for function in (metarun.run, metarun.load, metarun.collect):  # each goes on where the one before stopped
        (example,) = finder.find(function, function.__name__)
        assert example.examples
        report: list[str] = []
        assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)


def test_a_finished_run_is_returned_at_once(place: Path) -> None:
    first = train("algo=protonet", "seed=1")
    written = (first.folder / "result.json").stat().st_mtime_ns
    again = train("algo=protonet", "seed=1")
    assert (again.folder, again.result) == (first.folder, first.result)
    assert (again.folder / "result.json").stat().st_mtime_ns == written
    assert (first.folder / "choices.json").is_file()
    assert (first.folder / ".hydra" / "overrides.yaml").read_text().startswith("- dataset=glyphs")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["algo=protonett"], "protonet"),
        (["trainer.step=3"], "trainer.step: no such setting (did you mean steps?)"),
        (["--multirun"], "--multirun is no setting: give name=value"),
        (["protonet"], "protonet is no setting: give name=value"),
        (["seed=1,2"], "asks for several runs"),
    ],
)
def test_a_mistake_raises_config_error(place: Path, overrides: list[str], text: str) -> None:
    with pytest.raises(metarun.ConfigError, match=re.escape(text)):
        metarun.run(*TINY, *overrides)
    assert not (place / "outputs").exists()


def test_a_folder_with_another_run_is_refused(place: Path) -> None:
    train("algo=protonet", "hydra.run.dir=here")
    with pytest.raises(metarun.ConfigError, match="holds a run with other settings"):
        train("algo=protonet", "seed=3", "hydra.run.dir=here")


def test_a_model_needs_no_dataset_and_no_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train("algo=protonet")
    file = place / "model.pt"
    shutil.copy(run.folder / "checkpoints" / "best.pt", file)
    shutil.rmtree(run.folder)
    monkeypatch.setenv("METARUN_CACHE", str(place / "no cache"))
    model = metarun.load(file, device="cpu")
    x = torch.rand(6, 1, 28, 28)
    assert adapt(model, (x, [0, 1, 2, 0, 1, 2])).predict(x).logits.shape == (6, 3)
    assert not (place / "no cache").exists()


def test_what_cannot_be_loaded_is_said(place: Path) -> None:
    with pytest.raises(metarun.ConfigError, match="there is no run and no checkpoint nowhere"):
        metarun.load("nowhere")
    run = train("algo=protonet")
    with pytest.raises(metarun.ConfigError, match="there is no checkpoint other"):
        run.load(checkpoint="other")
    file = run.folder / "checkpoints" / "best.pt"
    content = torch.load(file, weights_only=True)
    content["facts"] = content["facts"].replace('"preprocessing"', '"something"')
    torch.save(content, file)
    with pytest.raises(metarun.ConfigError, match="of an earlier version"):
        run.load()


def evaluate(run: metarun.Run, row: str) -> tuple[Episode, Tensor]:
    """Three test tasks of a row with all classes in the support, and the test's logits for them, [3, n, outputs]."""
    settings = run.load(device="cpu").settings
    experiment = Experiment.build(settings)
    (model,), _ = load_models(experiment, RunFolder(run.folder), ALONE)
    row_settings = experiment.plan_rows()[row]
    tester = experiment.build_tester(row_settings, "test")
    use_statistics(tester.backbone, model.statistics if row_settings.algo["norm"] == "running" else {})
    drawn = next(draw_fixed_tasks(tester.source, 50, row_settings.seed, "test"))
    whole = [i for i, y in enumerate(drawn.support.y) if y.is_floating_point() or len(y.unique()) == 5][:3]
    tasks = Episode(*(Examples(x[whole], y[whole]) for x, y in drawn))

    algo = cast(FewShotAlgorithm, tester.algo)

    def logits(task: Episode) -> Tensor:
        return predict_queries(algo, model.theta, adapt_to(algo, model.theta, task), task)

    with torch.no_grad():
        return tasks, map_tasks(logits, tasks, "loop")


@pytest.mark.parametrize("algo", METHODS)
def test_predictions_are_those_of_the_test_bit_for_bit(trained: Trained, algo: str) -> None:
    run = trained(algo)
    model = run.load(device="cpu")
    for row, per_query in (("test", False), ("test_inductive", True)):
        if row not in run.result.rows:
            row = "test"
        tasks, expected = evaluate(run, row)
        for i in range(3):
            classifier = model.adapt((tasks.support.x[i], tasks.support.y[i]), per_query=per_query)
            assert isinstance(classifier, metarun.Classifier)
            found = classifier.predict(tasks.query.x[i])
            assert torch.equal(found.logits, expected[i])
            assert classifier.classes == [0, 1, 2, 3, 4]
            if algo not in ("lstm", "mann"):  # whose test tells them the label of each query after its prediction
                accuracy = (torch.tensor(found.labels) == tasks.query.y[i]).float().mean()
                assert float(accuracy) == pytest.approx(run.scores[row][i], abs=1e-6)


def adapt(model: metarun.Model, support: Any, **options: Any) -> metarun.Classifier:
    classifier = model.adapt(support, **options)
    assert isinstance(classifier, metarun.Classifier)
    return classifier


@pytest.fixture
def protonet(trained: Trained) -> metarun.Model:
    return trained("protonet").load(device="cpu")


@pytest.fixture
def fomaml(trained: Trained) -> metarun.Model:
    return trained("fomaml").load(device="cpu")


def test_a_support_can_be_a_mapping_or_arrays_with_labels_of_any_kind(protonet: metarun.Model) -> None:
    x, queries = torch.rand(7, 1, 28, 28), torch.rand(4, 1, 28, 28)
    names = ["b", "a", "b", "c", "c", "a", "b"]  # with unequal shots
    expected = adapt(protonet, (x, names)).predict(queries)
    assert expected.classes == ["a", "b", "c"]
    assert len(expected) == 4
    assert set(expected.labels) <= {"a", "b", "c"}
    torch.testing.assert_close(expected.probabilities.sum(1), torch.ones(4))
    assert expected.labels == [expected.classes[j] for j in expected.probabilities.argmax(1)]
    by_class = {name: [x[i] for i in range(7) if names[i] == name] for name in ("a", "b", "c")}
    for support in (by_class, (x.numpy(), names), (list(x.numpy().astype("float64")), names)):
        assert torch.equal(adapt(protonet, support).predict(queries).logits, expected.logits)
    turned = adapt(protonet, dict(reversed(by_class.items()))).predict(queries)
    assert turned.classes == ["c", "b", "a"]
    torch.testing.assert_close(turned.logits.flip(1), expected.logits)
    numbers = adapt(protonet, (x, torch.tensor([7, 3, 7, 30, 30, 3, 7])))
    assert numbers.classes == [3, 7, 30]
    assert repr(numbers) == "Classifier(3, 7, 30)"
    assert torch.equal(numbers.predict(queries).logits, expected.logits)


def write_pictures(folder: Path, x: Tensor, names: list[str]) -> list[Path]:
    """Write pictures [n, 1, 28, 28] in 0..1 as PNG files of these names."""
    files = [folder / name for name in names]
    for file, picture in zip(files, x):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * picture[0]).round().byte().numpy()).save(file)
    return files


def test_files_are_predicted_as_their_pixels_are(protonet: metarun.Model, tmp_path: Path) -> None:
    x = (torch.rand(9, 1, 28, 28) > 0.8).float()  # white strokes, as the training had
    names = ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"]
    write_pictures(tmp_path / "support", x[:5], names)
    files = write_pictures(tmp_path / "query", x[5:], [f"{i}.png" for i in range(4)])
    expected = adapt(protonet, (x[:5], [name[0] for name in names])).predict(x[5:])
    assert expected.names == ["0", "1", "2", "3"]
    found = adapt(protonet, str(tmp_path / "support")).predict(tmp_path / "query")
    assert (found.classes, found.names) == (["a", "b"], [file.name for file in files])
    by_class = {
        name: [Image.open(tmp_path / "support" / other) for other in names if other[0] == name] for name in "ab"
    }
    for prediction in (found, adapt(protonet, by_class).predict(files), adapt(protonet, by_class).predict(x[5:])):
        assert torch.equal(prediction.logits, expected.logits)
    assert torch.equal(protonet.embed(tmp_path / "query"), protonet.embed(x[5:]))
    with pytest.raises(metarun.ConfigError, match=r"4 inputs of the support without a label, for example 0\.png"):
        protonet.adapt(tmp_path / "query")


def test_what_a_last_layer_has_beside_the_classes_is_counted(fomaml: metarun.Model, protonet: metarun.Model) -> None:
    support = (torch.rand(4, 1, 28, 28), [0, 1, 0, 1])
    assert adapt(fomaml, support).unused == 3
    assert adapt(protonet, support).unused == 0


def test_pictures_of_bytes_are_read_as_the_dataset_reads_them(protonet: metarun.Model) -> None:
    pictures = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(protonet.embed(pictures), protonet.embed(pictures.float() / 255))
    assert torch.equal(protonet.embed(pictures.numpy()), protonet.embed(list(pictures)))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.rand(4, 1, 20, 20), "have shape [4, 1, 20, 20]: this model reads [n, 1, 28, 28]"),
        (torch.rand(0, 1, 28, 28), "have shape [0, 1, 28, 28]"),
        (torch.zeros(4, 1, 28, 28, dtype=torch.long), "pictures are int64 [4, 1, 28, 28]: give uint8"),
        ([torch.rand(1, 28, 28), torch.rand(1, 20, 20)], "cannot be stacked"),
        (["a", "b"], "the picture a cannot be read"),
    ],
)
def test_inputs_of_another_form_are_refused(protonet: metarun.Model, x: Any, text: str) -> None:
    with pytest.raises(metarun.ConfigError, match=re.escape(text)):
        protonet.embed(x)


PICTURES = torch.rand(2, 1, 28, 28)
ASKED: dict[str, Callable[[metarun.Model], object]] = {
    r"load\(None\): give the folder of a run": lambda model: metarun.load(cast(str, None)),
    r"checkpoint is 'ensemble': load one model": lambda model: metarun.load("run", checkpoint="ensemble"),
    r"run\(\['seed=1'\]\): give settings as texts": lambda model: metarun.run(cast(str, ["seed=1"])),
    r"collect\(3\): give a folder": lambda model: metarun.collect(cast(str, 3)),
    "the support is None: give": lambda model: model.adapt(cast(str, None)),
    "the support is a list of 1: give": lambda model: model.adapt(cast(str, [PICTURES])),
    "the labels are a int: give one for each input": lambda model: model.adapt((PICTURES, cast(str, 3))),
    "the labels are a Tensor": lambda model: model.adapt((PICTURES, torch.tensor(3))),
    "the support has no classes": lambda model: model.adapt({}),
    "the support has only the class a: give at least 2": lambda model: model.adapt({"a": PICTURES}),
    "the inputs hold numbers that are not finite": lambda model: model.adapt({"a": PICTURES, "b": PICTURES / 0}),
    "the inputs are None: give": lambda model: model.embed(cast(str, None)),
}


@pytest.mark.parametrize("text", ASKED)
def test_what_nobody_can_mean_is_one_line(protonet: metarun.Model, text: str) -> None:
    with pytest.raises(metarun.ConfigError, match=text) as told:
        ASKED[text](protonet)
    assert "\n" not in str(told.value)


def test_labels_must_be_as_many_as_inputs(protonet: metarun.Model) -> None:
    with pytest.raises(metarun.ConfigError, match="has 4 inputs and 3 labels"):
        protonet.adapt((torch.rand(4, 1, 28, 28), [0, 1, 2]))
    with pytest.raises(metarun.ConfigError, match="has no classes"):
        protonet.adapt({})


def test_more_classes_than_in_training_where_the_method_can(protonet: metarun.Model, fomaml: metarun.Model) -> None:
    x, y = torch.rand(14, 1, 28, 28), list(range(7)) * 2
    assert adapt(protonet, (x, y)).predict(x).logits.shape == (14, 7)
    with pytest.raises(metarun.ConfigError, match=r"7 classes: this model's last layer .*: .*baseline, .*protonet"):
        fomaml.adapt((x, y))
    with pytest.raises(metarun.ConfigError) as told:
        fomaml.adapt((x, y))
    assert not {"rl2", "rule"} & set(re.findall(r"\w+", str(told.value)))  # which take no support


@pytest.mark.parametrize("algo", METHODS)
def test_fewer_classes_and_unequal_shots_are_served(trained: Trained, algo: str) -> None:
    model = trained(algo).load(device="cpu")
    x = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    classifier = adapt(model, (x[:6], ["a", "b", "c", "c", "b", "c"]))
    found = classifier.predict(x[6:])
    assert found.logits.shape == (3, 3)
    assert bool(found.logits.isfinite().all())
    alone = torch.cat([classifier.predict(x[i : i + 1]).logits for i in (6, 7, 8)])
    torch.testing.assert_close(alone, found.logits, rtol=1e-4, atol=1e-5)  # by itself as in company


def test_predictions_do_not_depend_on_the_order_of_a_support(fomaml: metarun.Model) -> None:
    x, y = torch.rand(10, 1, 28, 28), [0, 1, 2, 3, 4] * 2
    expected = adapt(fomaml, (x, y)).predict(x).logits
    torch.testing.assert_close(adapt(fomaml, (x.flip(0), y[::-1])).predict(x).logits, expected)


def test_queries_are_predicted_together_where_that_is_asked_for(place: Path) -> None:
    model = train("algo=fomaml", "algo.norm=batch").load(device="cpu")
    x, y = torch.rand(10, 1, 28, 28), [0, 1, 2, 3, 4] * 2
    together = adapt(model, (x, y), per_query=False)
    assert not torch.allclose(together.predict(x).logits[:2], together.predict(x[:2]).logits)
    alone = adapt(model, (x, y))
    torch.testing.assert_close(alone.predict(x).logits[:2], alone.predict(x[:2]).logits)


@pytest.mark.integration
def test_methods_whose_labels_are_strings_have_one_for_each_class(place: Path) -> None:
    model = train("algo=lstm", "algo.labels=strings", "algo.hidden=8").load(device="cpu")
    x = torch.rand(14, 1, 28, 28)
    found = adapt(model, {name: x[i : i + 2] for i, name in enumerate("abcdefg")}).predict(x)
    assert found.logits.shape == (14, 7)


@pytest.mark.integration
def test_regression_predicts_values(place: Path) -> None:
    small = [text for text in TINY if not text.startswith(("dataset", "backbone"))]
    run = metarun.run(*small, *SHORT, "dataset=sinusoid", "backbone=mlp", "algo=maml", "shots=5")
    model = run.load(device="cpu")
    tasks, expected = evaluate(run, "test")
    regressor = model.adapt((tasks.support.x[0], tasks.support.y[0]))
    assert isinstance(regressor, metarun.Regressor)
    assert repr(regressor) == "Regressor()"
    assert torch.equal(regressor.predict(tasks.query.x[0]), expected[0])
    flat = model.adapt((tasks.support.x[0].numpy(), tasks.support.y[0].flatten().tolist()))
    assert isinstance(flat, metarun.Regressor)
    assert torch.equal(flat.predict(tasks.query.x[0]), expected[0])
    with pytest.raises(metarun.ConfigError, match=r"two arrays"):
        model.adapt({"a": tasks.support.x[0]})
    with pytest.raises(metarun.ConfigError, match=r"values have shape \[5, 2\]: this model has \[n, 1\]"):
        model.adapt((tasks.support.x[0], torch.rand(5, 2)))


@pytest.mark.parametrize("algo", METHODS)
def test_every_method_has_features(trained: Trained, algo: str) -> None:
    model = trained(algo).load(device="cpu")
    if algo == "bmaml":  # whose particles are networks each
        with pytest.raises(metarun.ConfigError, match="no component backbone"):
            model.embed(torch.rand(6, 1, 28, 28))
        return
    features = model.embed(torch.rand(6, 1, 28, 28))
    assert features.shape == (6, model.backbone.feature_size)
    assert bool(features.isfinite().all())


def test_collect_has_a_flat_record_for_each_row(place: Path) -> None:
    run = train("algo=fomaml", "algo.norm=batch")
    records = metarun.collect("outputs")
    assert [record["row"] for record in records] == ["test", "test_inductive", "untrained", "pixels"]
    for record in records:
        assert record["mean"] == run.result.estimate(record["row"]).mean
        assert record["folder"] == str(run.folder.relative_to(place))
        assert (record["algo"], record["seed"], record["metric"], record["steps"]) == ("fomaml", 0, "accuracy", 1)
        assert all(isinstance(value, str | int | float | None) for value in record.values())
    with pytest.raises(metarun.ConfigError, match="no finished run"):
        metarun.collect(place / "nowhere")


@pytest.mark.integration
def test_a_script_without_a_main_guard_may_train_with_workers(place: Path) -> None:
    """The processes that help import nothing of the script, which would start the run again."""
    overrides = [*TINY, *SHORT, "algo=protonet", "trainer.tasks_per_step=4", "trainer.workers=2"]
    (place / "script.py").write_text(f"import metarun\nprint(metarun.run(*{overrides!r}).result.training.workers)\n")
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2"), done.stderr


@pytest.mark.integration
def test_a_pretrained_network_is_loaded_without_fetching_it_again(place: Path) -> None:
    """No weights are there to train with, so the checkpoint of a network without says that it had some."""
    small = [text for text in TINY if not text.startswith("backbone")]
    run = metarun.run(*small, *SHORT, "algo=protonet", "backbone=torchvision", "backbone.model=resnet18")
    file, x = run.folder / "checkpoints" / "best.pt", torch.randint(256, (3, 1, 28, 28)) / 256  # + 0.5 is exact
    before = run.load(device="cpu").embed(x)
    content = torch.load(file, weights_only=True)
    content["facts"] = content["facts"].replace('"weights": null', '"weights": "DEFAULT"')
    content["tensors"]["buffers"]["mean"] += 0.5
    torch.save(content, file)
    model = run.load(device="cpu")
    assert model.settings.backbone["weights"] == "DEFAULT"
    assert torch.equal(model.embed(x + 0.5), before)
