"""Recurrent layers: against PyTorch's own, alone and over a sequence, also under vmap."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from metarun.core.batch import unstack
from metarun.core.inner import forward
from metarun.core.recurrent import BiLSTM, FastWeights, GRUCell, Ledger, LSTMCell, read
from metarun.core.sequences import make_sequence
from metarun.core.sequences import read as sequence_read
from tests.support.tiny import WAYS, algo_and_theta, episodes


def test_a_step_and_its_gradient_equal_pytorchs_cell() -> None:
    theirs = nn.LSTMCell(3, 4).double()
    ours = LSTMCell(3, 4).double()
    ours.load_state_dict(theirs.state_dict())  # the same names and shapes
    x, h, c = (torch.randn(5, size, dtype=torch.float64) for size in (3, 4, 4))
    results = []
    for cell in (ours, theirs):
        said, remembered = cell(x, (h, c))
        gradient = torch.autograd.grad((said * remembered).sum(), list(cell.parameters()))
        results.append((said, remembered, gradient))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_a_step_of_the_gated_unit_and_its_gradient_equal_pytorchs_cell() -> None:
    theirs, ours = nn.GRUCell(3, 4).double(), GRUCell(3, 4).double()
    ours.load_state_dict(theirs.state_dict())
    x, h = (torch.randn(5, size, dtype=torch.float64) for size in (3, 4))
    said = [ours(x, (h,))[0], theirs(x, h)]
    gradients = [torch.autograd.grad(y.square().sum(), list(c.parameters())) for y, c in zip(said, (ours, theirs))]
    torch.testing.assert_close(said[0], said[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


def test_fast_weights_find_what_followed_an_input_by_its_key() -> None:
    """Two of three inputs say a place, as its key; the third is the value, doubled, which came after the last place."""
    cell = FastWeights(3, 1, keys=2).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.key.weight[:, :2] = torch.eye(2)
        cell.value.weight[0, 2] = 2.0
        cell.output.weight[0, 3] = 1.0  # of what is found
    place, other = (1.0, 0.0), (0.0, 1.0)
    steps = [(*place, 0.0), (*other, 5.0), (*place, 7.0), (*other, 0.5), (*other, 0.25)]
    state, found = cell.start(torch.zeros(1, 3).double()), []
    for step in steps:
        state = cell(torch.tensor([step]).double(), state)
        found.append(state[0].item())
    # nothing; nothing after the other; 2 * 5 after the place; 2 * 7 after the other; that and 2 * 0.25
    assert found == [0, 0, 10, 14, 14.5]


def test_a_ledger_counts_and_sums_what_followed_each_action_where_keys_are_alike() -> None:
    """Against sums over all that was seen, on random steps of 2 observed values and 3 actions."""
    cell, steps = Ledger(2, 3, hidden=4, keys=5).double(), torch.randn(7, 6, dtype=torch.float64)
    taken = [0, 2, 0, 1, 2, 0, 0]
    steps[:, 2:5] = F.one_hot(torch.tensor(taken), 3)
    steps[:, 6:] = 0.0
    begins = torch.tensor([1.0, 0, 0, 1, 0, 0, 0], dtype=torch.float64)
    state, last = cell.start(steps[0, :0]), torch.zeros(5).double()
    past: list[tuple[Tensor, int, Tensor]] = []
    for t, (x, action) in enumerate(zip(torch.cat([steps, begins[:, None]], -1), taken)):
        place = x[[0, 1, 6]]
        key = F.normalize(cell.key(place).relu() + 1e-3, dim=0)
        before = account(past, key)
        ahead = cell.compare(place, before)[1] * (0 if begins[t] else 1)
        value = cell.value(torch.cat([x[5:6], place, ahead]))
        past.append((last, action, value))
        state, last = cell(x, state), key
        each, together = cell.compare(place, account(past, key))
        said = [cell.output(F.relu(cell.own(row) + cell.all(together))) for row in each]
        torch.testing.assert_close(state[0], torch.cat(said), rtol=1e-12, atol=1e-14)


def account(past: list[tuple[Tensor, int, Tensor]], key: Tensor) -> Tensor:
    """[3, VALUES + 1]: for each action the sum of what followed it, by how alike the keys are, and their sum."""
    rows = torch.zeros(3, 5, dtype=torch.float64)
    for old, action, value in past:
        rows[action] = rows[action] + old @ key * F.pad(value, (0, 1), value=1.0)
    return rows


def test_a_ledger_treats_actions_alike_and_takes_any_number_of_them() -> None:
    few, many = (Ledger(1, arms, hidden=64, keys=1).double() for arms in (3, 5))
    many.load_state_dict(few.state_dict())
    order = torch.tensor([2, 0, 1])
    state, moved, more = (cell.start(torch.zeros(0).double()) for cell in (few, few, many))
    for action, reward in ((1, 0.0), (0, 1.0), (0, 1.0), (2, 0.0), (1, 1.0)):  # the first is not counted
        taken = F.one_hot(torch.tensor(action), 5).double()
        constant, earned, begins = torch.ones(1).double(), torch.tensor([reward]).double(), torch.ones(1).double()
        state = few(torch.cat([constant, taken[:3], earned, begins]), state)
        moved = few(torch.cat([constant, taken[:3][order], earned, begins]), moved)
        more = many(torch.cat([constant, taken, earned, begins]), more)
    assert state[0].unique().numel() == 3  # nothing is equal because all is dead
    torch.testing.assert_close(moved[0], state[0][order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(more[0][3], more[0][4], rtol=1e-12, atol=1e-14)  # never taken


def test_initial_weights_are_spread_as_pytorchs() -> None:
    ours, theirs = LSTMCell(50, 64), nn.LSTMCell(50, 64)
    for name, p in ours.named_parameters():
        assert p.abs().max() <= 64**-0.5
        torch.testing.assert_close(p.std(), theirs.get_parameter(name).std(), rtol=0.15, atol=0)


def test_a_sequence_read_from_both_ends_equals_pytorchs_bidirectional_lstm() -> None:
    theirs = nn.LSTM(3, 4, bidirectional=True).double()
    weights = theirs.state_dict()
    ours = BiLSTM(3, 4).double()
    for cell, suffix in (("onward", "_l0"), ("back", "_l0_reverse")):
        of_cell = {name.removesuffix(suffix): p for name, p in weights.items() if name.endswith(suffix)}
        ours.get_submodule(cell).load_state_dict(of_cell)
    x = torch.randn(6, 2, 3, dtype=torch.float64)  # [steps, batch, inputs]
    torch.testing.assert_close(torch.cat(ours(x).unbind(), dim=-1), theirs(x)[0], rtol=1e-12, atol=1e-14)


def test_under_vmap_with_weights_per_task_it_is_the_same_as_task_by_task() -> None:
    cell = LSTMCell(3, 4).double()
    weights = {n: torch.randn(5, *p.shape, dtype=torch.float64) for n, p in cell.named_parameters()}
    x = torch.randn(5, 6, 3, dtype=torch.float64)  # [T, steps, inputs]

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return read(self.cell, x)

    def said(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return forward(Reader(), {f"cell.{n}": p for n, p in weights.items()}, x)

    together = vmap(said)(weights, x)
    alone = torch.stack([said({n: p[t] for n, p in weights.items()}, x[t]) for t in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_the_lstm_that_reads_a_task_is_pytorchs_lstm_and_a_linear_layer() -> None:
    """Over the inputs with the labels before them as one-hot vectors."""
    algo, theta = algo_and_theta("lstm", "ngram")
    task = unstack(episodes(1, backbone="ngram"))[0]
    steps = make_sequence(*task)
    z = algo.embed(theta, steps.x)
    told = torch.nn.functional.one_hot(steps.y, WAYS).roll(1, 0).double()
    told[0] = 0
    theirs = nn.LSTM(z.shape[1] + WAYS, algo.hidden).double()
    weights = {f"{name}_l0": p.detach() for name, p in theta["controller"].items()}
    theirs.load_state_dict(weights)
    said, _ = theirs(torch.cat([z, told], 1)[:, None])
    expected = said[:, 0] @ theta["readout"]["weight"].T + theta["readout"]["bias"]
    torch.testing.assert_close(sequence_read(algo, theta, steps)[0], expected, rtol=1e-12, atol=1e-14)
