"""Tasks as sequences: their order, what each step is told, labels as strings, and that no label is told too early."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.core.batch import map_tasks, unstack
from metarun.core.seeding import generator_for
from metarun.core.sequences import NOTHING, STRINGS, Labels, letters, make_sequence, measure_by_instance, read
from metarun.core.types import Algorithm, Episode, Examples, Metrics, TaskShape, TaskSpec, Theta
from metarun.datasets.sampling.episodes import EpisodeSampler, FixedEpisodes
from metarun.datasets.sampling.measured import AssaySampler
from metarun.datasets.sampling.order import InOrder, shuffle
from metarun.datasets.sampling.table import Table
from metarun.engine.build import build_algorithm
from metarun.engine.evaluate import evaluate
from metarun.engine.gradient import meta_gradient
from tests.conftest import TINY, Command
from tests.support.tiny import REFERENCES, algo_and_theta, episodes, leaves

SHAPE = TaskShape(ways=4, shots=2, queries=3)
READERS = ("lstm", "mann")


@pytest.fixture
def sampler() -> EpisodeSampler:
    """Of class c, example e has the pixels c and e."""
    table = torch.zeros(10, 6, 1, 1, 2, dtype=torch.uint8)
    table[..., 0], table[..., 1] = torch.arange(10)[:, None, None, None], torch.arange(6)[:, None, None]
    return EpisodeSampler(Table.from_classes(table), SHAPE)


def contents(x: torch.Tensor, y: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """Of each task the examples, sorted."""
    pixels = (x * 255).round().long().flatten(2)
    return [sorted((*p, int(label)) for p, label in zip(task.tolist(), labels)) for task, labels in zip(pixels, y)]


def whole(tasks: Episode) -> Examples:
    return Examples(*(torch.cat(fields, 1) for fields in zip(*tasks)))


def test_mixed_tasks_hold_the_same_examples_and_any_of_them_may_come_first(sampler: Any) -> None:
    plain = sampler.sample(200, generator_for("order"))
    mixed = InOrder(sampler, mixed=True, strings=False).sample(200, generator_for("order"))
    assert mixed.support.y.shape == plain.support.y.shape
    assert contents(*whole(mixed)) == contents(*whole(plain))
    first = torch.bincount(mixed.support.y[:, 0], minlength=4) / 200
    assert (first - 1 / 4).abs().max() < 0.12  # four standard deviations
    assert len({tuple(row) for row in whole(mixed)[1].tolist()}) > 195


def test_put_in_order_apart_the_support_keeps_its_examples(sampler: Any) -> None:
    plain = sampler.sample(50, generator_for("order"))
    apart = InOrder(sampler, mixed=False, strings=False).sample(50, generator_for("order"))
    for ours, theirs in zip(apart, plain):
        assert contents(*ours) == contents(*theirs)
    assert len({tuple(row) for row in apart.support.y.tolist()}) > 40


def test_a_task_in_another_order_counts_as_the_same_test_and_one_of_other_examples_does_not(sampler: Any) -> None:
    apart, mixed = (InOrder(sampler, mixed=mixed, strings=False) for mixed in (False, True))
    hashes = {}
    for name, source in {"plain": sampler, "apart": apart, "mixed": mixed}.items():
        plan: dict[str, Any] = {"tasks": 60, "seed": 0, "split": "test", "tasks_per_chunk": 60, "execution": "loop"}
        hashes[name] = evaluate(cast(Algorithm, Silent()), {}, source, **plan).task_hash
    assert hashes["apart"] == hashes["plain"] != hashes["mixed"]


class Silent:
    """Measures nothing."""

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return {"accuracy": torch.zeros(())}


def test_the_order_is_the_generators(sampler: Any) -> None:
    source = InOrder(sampler, mixed=True, strings=True)
    first, again, other = (source.sample(4, generator_for(seed, "train", 7)) for seed in (1, 1, 2))
    assert torch.equal(first.query.x, again.query.x)
    assert torch.equal(first.query.y, again.query.y)
    assert not torch.equal(first.query.y, other.query.y)


def test_string_labels_are_drawn_for_each_task_and_tell_its_classes_apart(sampler: Any) -> None:
    source = InOrder(sampler, mixed=True, strings=True)
    assert (source.spec.output_size, source.spec.ways) == (3125, 4)
    x, y = whole(source.sample(50, generator_for("strings")))
    seen = set()
    for task, labels in zip((x * 255).round().long().flatten(2)[..., 0].tolist(), y.tolist()):
        pairs = set(zip(task, labels))
        assert len(pairs) == len({label for _, label in pairs}) == 4
        seen |= {label for _, label in pairs}
    assert len(seen) > 180
    assert max(seen) < STRINGS


def test_a_published_list_and_assays_can_be_read_in_order_too(sampler: Any) -> None:
    listed = InOrder(FixedEpisodes(sampler.sample(7, torch.Generator()), SHAPE), mixed=True, strings=False)
    assert listed.sample(50, torch.Generator()).query.y.shape == (7, 12)
    rows = torch.arange(1, 61, dtype=torch.int32).view(2, 30, 1)
    assays = AssaySampler(Table.from_classes(rows), (torch.arange(60) % 3 == 0), TaskShape(1, 6, 8))
    support, query = InOrder(assays, mixed=True, strings=False).sample(3, torch.Generator())
    assert (support.y.shape, query.y.shape) == ((3, 6), (3, 8))
    with pytest.raises(ConfigError, match="judged by delta_auprc need one_hot"):
        InOrder(assays, mixed=True, strings=True)


def test_a_sequence_tells_the_label_of_the_step_before_and_counts_instances() -> None:
    support = Examples(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1, 0, 1]))
    query = Examples(torch.tensor([[3.0], [4.0]]), torch.tensor([1, 0]))
    steps = make_sequence(support, query)
    assert steps.x.flatten().tolist() == [0, 1, 2, 3, 4]
    assert steps.y.tolist() == [1, 0, 1, 1, 0]
    assert steps.previous.tolist() == [NOTHING, 1, 0, 1, 1]
    assert steps.instance.tolist() == [1, 1, 2, 3, 2]


def test_accuracy_by_instance_by_hand() -> None:
    """Classes 0 1 1 0 0 1, answers 0 0 1 0 1 1: right at the first 1 of 2, the second 2 of 2, the third 1 of 2."""
    y, answers = torch.tensor([0, 1, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 0, 1, 1])
    steps = make_sequence(Examples(torch.zeros(6, 1), y))
    logits = torch.nn.functional.one_hot(answers, 2).double()
    for shots, accuracy in ((1, 1.0), (2, 0.5)):
        found = measure_by_instance(TaskSpec("classification", (1,), 2), logits, steps, 2 * shots)
        assert found["accuracy_by_instance"].tolist() == [0.5, 1.0, 0.5]
        assert found["accuracy"] == accuracy
    ranked = measure_by_instance(TaskSpec("classification", (1,), 2, metric="delta_auprc"), logits, steps, 2)
    assert ranked.keys() == {"delta_auprc"}


def test_a_strings_letters_are_its_digits_and_its_logit_the_sum_of_theirs() -> None:
    label = Labels(STRINGS, strings=True)
    assert letters(torch.tensor([0, 7, 3124])).tolist() == [[0, 0, 0, 0, 0], [2, 1, 0, 0, 0], [4, 4, 4, 4, 4]]
    vector = label.encode(torch.tensor(7)).view(5, 5)
    assert vector.nonzero().tolist() == [[0, 2], [1, 1], [2, 0], [3, 0], [4, 0]]
    assert not label.encode(torch.tensor(NOTHING)).any()
    said = torch.randn(3, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = label.logits(said)
    by_letter = said.view(3, 5, 5).log_softmax(-1)
    expected = by_letter[:, 0, 2] + by_letter[:, 1, 1] + by_letter[:, 2:, 0].sum(1)
    torch.testing.assert_close(logits[:, 7], expected)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("name", READERS)
def test_a_label_changes_no_answer_before_it_has_been_told(name: str) -> None:
    algo, theta = algo_and_theta(name, "mlp")
    task = unstack(episodes(1))[0]
    steps = make_sequence(*task)
    answers, _ = read(algo, theta, steps)
    for t in range(len(steps.y) - 1):
        y = steps.y.clone()
        y[t] = (y[t] + 1) % 3
        other, _ = read(algo, theta, make_sequence(Examples(steps.x, y)))
        assert torch.equal(other[: t + 1], answers[: t + 1])
        assert (other[t + 1] - answers[t + 1]).abs().max() > 1e-6


@pytest.mark.parametrize("name", READERS)
def test_a_query_is_answered_as_the_next_step_after_the_support(name: str) -> None:
    """Each query as the first one after the support: what the whole sequence says at that step."""
    algo, theta = algo_and_theta(name, "ngram")  # which has no norm layers
    task = unstack(episodes(1, backbone="ngram"))[0]
    answers = algo.predict(theta, algo.adapt(theta, task.support), task.query.x)
    for i, answer in enumerate(answers):
        steps = make_sequence(task.support, Examples(*(field[i : i + 1] for field in task.query)))
        torch.testing.assert_close(read(algo, theta, steps)[0][-1], answer, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", READERS)
def test_of_strings_the_loss_is_the_cross_entropy_of_their_letters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algo, theta = algo_and_theta(name, "ngram", labels="strings")
    algo = replace(algo, spec=TaskSpec("classification", (16,), STRINGS, "ngrams", ways=3))
    task = unstack(episodes(1, backbone="ngram"))[0]
    codes = torch.tensor([7, 3124, 0])
    steps = make_sequence(*(Examples(x, codes[y]) for x, y in task))
    loss, metrics = algo.task_loss(theta, type(task)(*(Examples(x, codes[y]) for x, y in task)))
    said: list[torch.Tensor] = []

    def note(self: Labels, output: torch.Tensor) -> torch.Tensor:
        said.append(output)
        return output

    monkeypatch.setattr(Labels, "logits", note)
    read(algo, theta, steps)
    by_letter = torch.stack(said).unflatten(-1, (5, 5)).flatten(0, 1)
    expected = 5 * torch.nn.functional.cross_entropy(by_letter, letters(steps.y).flatten())
    torch.testing.assert_close(loss, expected)
    assert metrics["accuracy_by_instance"].shape == (4,)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "steps"), [("lstm", 700), ("mann", 500)])
def test_a_reader_learns_to_remember_which_input_had_which_label(name: str, steps: int) -> None:
    """Inputs are points; two new ones are the classes of each task, each comes five times. Who has remembered is
    right from the second time on. Of the first times, the very first is a guess, and the other class's is known by
    exclusion: more than 3/4 would be a label told too early."""
    size = {"rows": 16, "width": 16, "heads": 1} if name == "mann" else {}
    generator = generator_for("points")

    def points(tasks: int) -> Episode:
        y = torch.arange(2).repeat_interleave(5).expand(tasks, -1)
        classes = torch.randn(tasks, 2, 6, generator=generator)
        x, y = shuffle(Examples(classes.gather(1, y[..., None].expand(-1, -1, 6)), y), generator)
        return Episode(Examples(x[:, :2], y[:, :2]), Examples(x[:, 2:], y[:, 2:]))

    torch.manual_seed(0)
    spec = TaskSpec("classification", (6,), 2)
    backbone = build("backbone", {"name": "mlp", "hidden": [], "batch_norm": False}, input_shape=(6,))
    algo = build_algorithm({"name": name, **REFERENCES[name].SETTINGS, "hidden": 64, **size}, backbone, spec)
    theta = {c: {n: p.requires_grad_() for n, p in params.items()} for c, params in algo.init().items()}
    optimizer = torch.optim.Adam(leaves(theta), lr=3e-3)
    for _ in range(steps):
        _, _, gradient = meta_gradient(algo, theta, points(64), execution="vmap")
        for p, g in zip(leaves(theta), leaves(gradient)):
            p.grad = g
        optimizer.step()
    with torch.no_grad():
        found = map_tasks(lambda task: algo.task_metrics(theta, task), points(1000), "vmap")
    by_instance = found["accuracy_by_instance"].mean(0)
    assert by_instance[1:].min() > 0.85
    assert by_instance[0] < 0.78  # two standard deviations of 1000 tasks


SMALL = ("backbone=conv4_strided", *TINY, "ways=3", "queries=4", "algo.hidden=8", "hydra.run.dir=run")


@pytest.mark.integration
@pytest.mark.parametrize("labels", ["one_hot", "strings"])
def test_accuracy_by_instance_passes_through_a_run_into_its_files(metarun: Command, place: Path, labels: str) -> None:
    answer = metarun("algo=lstm", f"algo.labels={labels}", *SMALL)
    assert answer.code == 0, answer.err
    row = json.loads((place / "run" / "result.json").read_text())["test"]["test"]
    assert len(row["accuracy_by_instance"]["mean"]) == len(row["accuracy_by_instance"]["ci95"]) == 5
    assert row["accuracy"]["mean"] == row["accuracy_by_instance"]["mean"][1]
    assert "accuracy by instance: " in answer.out
    assert (place / "run" / "scores" / "accuracy_by_instance.png").stat().st_size > 0
    header = (place / "run" / "scores" / "test.csv").read_text().splitlines()[0]
    columns = [*(f"accuracy_by_instance_{i}" for i in range(5)), *(f"class_{i}" for i in range(3))]
    assert header == ",".join(["task", "accuracy", *columns])


@pytest.mark.integration
def test_only_with_strings_can_there_be_other_ways_at_test(metarun: Command) -> None:
    refused = metarun("algo=lstm", *SMALL, "eval.ways=4")
    assert refused.code == 2
    assert "eval.ways is 4: this model has a last layer for ways=3" in refused.err
    assert metarun("algo=lstm", "algo.labels=strings", *SMALL, "eval.ways=4").code == 0
