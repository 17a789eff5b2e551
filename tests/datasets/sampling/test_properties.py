"""Properties that hold for every table and every shape of task: the sampler and the table against plain Python."""

from dataclasses import dataclass, replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metarun.core.seeding import generator_for
from metarun.core.types import Episode, TaskShape
from metarun.datasets.sampling.episodes import EpisodeSampler, draw_distinct
from metarun.datasets.sampling.order import InOrder
from metarun.datasets.sampling.table import Table

CPU = torch.device("cpu")
TASKS = 3


@dataclass(frozen=True)
class Plain:
    """A table as a list of classes: the value of the only pixel of each example, in the table's order."""

    classes: list[list[int]]
    table: Table


@st.composite
def tables(draw: st.DrawFn, most_classes: int = 6) -> Plain:
    """Ragged classes whose examples are stored in any order, beside others that belong to no class."""
    sizes = draw(st.lists(st.integers(2, 6), min_size=1, max_size=most_classes))
    labels = draw(st.permutations([label for label, size in enumerate(sizes) for _ in range(size)]))
    stored = len(labels) + draw(st.integers(0, 3))
    rows = draw(st.permutations(range(stored)))[: len(labels)]
    examples = torch.arange(stored, dtype=torch.uint8).view(-1, 1, 1, 1)
    classes = [[row for row, label in zip(rows, labels) if label == wanted] for wanted in range(len(sizes))]
    return Plain(classes, Table.from_labels(examples, torch.tensor(labels), torch.tensor(rows), CPU))


def read_values(x: Tensor) -> list[list[int]]:
    """The stored values of examples [T, n, 1, 1, 1] in 0..1."""
    values: list[list[int]] = (x * 255).round().long().flatten(2).squeeze(2).tolist()
    return values


# The table


@given(tables(), st.data())
def test_take_and_sizes_are_those_of_a_list_of_classes(plain: Plain, data: st.DataObject) -> None:
    numbers = st.integers(0, len(plain.classes) - 1)
    classes = data.draw(st.lists(numbers, min_size=1, max_size=4))
    least = min(len(plain.classes[c]) for c in classes)
    members = [data.draw(st.lists(st.integers(0, least - 1), min_size=2, max_size=2)) for _ in classes]
    found = plain.table.take(torch.tensor(classes), torch.tensor(members))
    assert found.shape == (len(classes), 2, 1, 1, 1)
    assert found.flatten(1).tolist() == [[plain.classes[c][m] for m in chosen] for c, chosen in zip(classes, members)]
    assert plain.table.sizes(torch.tensor(classes)).tolist() == [len(plain.classes[c]) for c in classes]
    assert (plain.table.least, plain.table.most) == (min(map(len, plain.classes)), max(map(len, plain.classes)))


@given(tables())
def test_at_runs_through_all_classes_one_after_another(plain: Plain) -> None:
    listed = [(value, label) for label, values in enumerate(plain.classes) for value in values]
    assert plain.table.total == len(listed)
    examples, classes = plain.table.at(torch.arange(plain.table.total))
    assert list(zip(examples.flatten().tolist(), classes.tolist())) == listed


@given(tables(), st.integers(0, 2**16))
def test_rotated_tables_hold_each_picture_in_its_four_rotations(plain: Plain, seed: int) -> None:
    pictures = torch.randint(256, (len(plain.table.examples), 1, 2, 2), generator=generator_for(seed))
    upright = replace(plain.table, examples=pictures)
    rotated = replace(upright, rotated=True)
    assert (len(rotated), rotated.total) == (4 * len(upright), 4 * upright.total)
    members = torch.zeros(len(rotated), 1, dtype=torch.long)
    expected = [pictures[values[0]].rot90(q, (-2, -1)) for values in plain.classes for q in range(4)]
    assert torch.equal(rotated.take(torch.arange(len(rotated)), members)[:, 0], torch.stack(expected))
    found, classes = rotated.at(torch.arange(rotated.total))
    expected = [pictures[v].rot90(q, (-2, -1)) for values in plain.classes for v in values for q in range(4)]
    assert torch.equal(found, torch.stack(expected))
    assert classes.tolist() == [4 * c + q for c, values in enumerate(plain.classes) for _ in values for q in range(4)]


# The sampler


@given(tables(), st.data(), st.integers(0, 2**16))
def test_a_task_has_distinct_classes_and_examples_and_labels_in_draw_order(
    plain: Plain, data: st.DataObject, seed: int
) -> None:
    ways = data.draw(st.integers(1, len(plain.classes)), "ways")
    shots = data.draw(st.integers(1, plain.table.least - 1), "shots")
    queries = data.draw(st.integers(1, plain.table.least - shots), "queries")
    sampler = EpisodeSampler(plain.table, TaskShape(ways, shots, queries))
    support, query = sampler.sample(TASKS, generator_for(seed))
    assert support.y.tolist() == [[label for label in range(ways) for _ in range(shots)]] * TASKS
    assert query.y.tolist() == [[label for label in range(ways) for _ in range(queries)]] * TASKS
    class_of = {value: label for label, values in enumerate(plain.classes) for value in values}
    for in_support, in_query in zip(read_values(support.x), read_values(query.x)):
        assert len({*in_support, *in_query}) == ways * (shots + queries)  # all distinct: also support and query
        classes = [class_of[value] for value in in_support[::shots]]
        assert len(set(classes)) == ways
        assert [class_of[value] for value in in_support] == [c for c in classes for _ in range(shots)]
        assert [class_of[value] for value in in_query] == [c for c in classes for _ in range(queries)]
    again = sampler.sample(TASKS, generator_for(seed))
    assert all(torch.equal(a, b) for part, same in zip((support, query), again) for a, b in zip(part, same))


@given(st.integers(1, 5), st.integers(1, 4), st.data(), st.integers(0, 2**16))
def test_a_task_never_has_two_variants_of_a_class(groups: int, variants: int, data: st.DataObject, seed: int) -> None:
    ways = data.draw(st.integers(1, groups), "ways")
    values = torch.arange(groups * variants, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 3, 1, 1, 1)
    sampler = EpisodeSampler(Table.from_classes(values), TaskShape(ways, 1, 2), variants)
    support, query = sampler.sample(TASKS, generator_for(seed))
    for in_support, in_query in zip(read_values(support.x), read_values(query.x)):
        assert len({value // variants for value in in_support}) == ways
        assert in_query == [value for value in in_support for _ in range(2)]


@given(tables(), st.integers(1, 20), st.integers(0, 2**16))
def test_minibatches_label_each_example_by_its_class(plain: Plain, size: int, seed: int) -> None:
    source = EpisodeSampler(plain.table, TaskShape(1, 1, 1)).minibatches(size)
    support, query = source.sample(TASKS, generator_for(seed))
    class_of = {value: label for label, values in enumerate(plain.classes) for value in values}
    assert (source.spec.output_size, support.y.shape) == (len(plain.classes), (TASKS, 0))
    assert [[class_of[value] for value in task] for task in read_values(query.x)] == query.y.tolist()
    assert query.y.shape == (TASKS, size)


@given(tables(), st.booleans(), st.integers(0, 2**16))
def test_an_order_keeps_the_examples_and_labels_of_each_task(plain: Plain, mixed: bool, seed: int) -> None:
    source = EpisodeSampler(plain.table, TaskShape(len(plain.classes), 1, 1))
    plain_parts = source.sample(TASKS, generator_for(seed))
    parts = InOrder(source, mixed, strings=False).sample(TASKS, generator_for(seed))

    def pairs(parts: Episode, task: int) -> list[tuple[int, int]]:
        return [pair for part in parts for pair in zip(read_values(part.x)[task], part.y[task].tolist())]

    for task in range(TASKS):
        assert sorted(pairs(parts, task)) == sorted(pairs(plain_parts, task))
        for label in range(len(plain.classes)):  # those of one class keep their order
            in_order, before = ([x for x, y in pairs(p, task) if y == label] for p in (parts, plain_parts))
            assert in_order == before


# Draws without repetition


@given(st.integers(1, 12), st.data(), st.integers(0, 2**16))
def test_distinct_indices_are_distinct_and_below_their_bounds(n: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, n), "k")
    bounds = data.draw(st.lists(st.integers(k, n), min_size=4, max_size=4), "bounds")
    rows = draw_distinct(n, k, (4,), generator_for(seed), below=torch.tensor(bounds))
    assert rows.shape == (4, k)
    for row, bound in zip(rows.tolist(), bounds):
        assert len(set(row)) == k
        assert all(0 <= index < bound for index in row)
