"""The checks of scripts/gpu.py, each by its name, in the process that it is called in.

    python scripts/gpu_checks.py cuda:0 "maml on conv4_strided, vmap: the graph of a step"

prints what was measured, or the chain of errors, and then its exit code is 1.
"""

import hashlib
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' small methods

from metarun.core.batch import Execution
from metarun.core.machine import PACKAGE, device_name, use_device
from metarun.core.seeding import generator_for
from metarun.core.types import Algorithm, Task, TaskShape, Theta
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table
from metarun.engine.build import allow_tf32
from metarun.engine.capture import WARM_UP, Captured, capture_descent, capture_step, describe_chain, record
from metarun.engine.gradient import meta_gradient
from metarun.engine.loop import Descent
from metarun.engine.plan import MetaGradient
from metarun.engine.prefetch import Prefetch
from metarun.engine.state import State
from tests.reference import maml_rl, rl2
from tests.support.steps import build_step, is_recorded, make_settings, train
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves
from tests.support.tiny_worlds import BRIEF, actor_and_theta, draw_trials

EXECUTIONS: tuple[Execution, ...] = ("vmap", "loop")
EXACT, ROUNDED = 1e-9, 1e-2  # of a gradient's norm: in float64, in float32
RESERVED = 4 * 2**30  # bytes; a whole allocator keeps far less in `refuse_to_wait`
ACTORS: dict[str, dict[str, Any]] = {"rl2": rl2.SETTINGS, "maml_rl": maml_rl.SETTINGS}
Check = Callable[[torch.device], str]
Made = tuple[Algorithm, Theta, Task]


def list_checks(device: torch.device) -> dict[str, Check]:
    """The checks for a kind of device, by name."""
    problems = [(f"{name} on {backbone}", partial(make, name, backbone)) for name, backbone in ONE_BACKBONE]
    problems += [(f"{name} in {world}", partial(make_actor, name, world)) for name in ACTORS for world in BRIEF]
    checks: dict[str, Check] = {"tasks are drawn alike twice": draw_twice}
    for title, problem in problems:
        for execution in EXECUTIONS:
            checks[f"{title}, {execution}: the gradient"] = partial(compare_gradient, problem, execution)
    if device.type != "cuda":
        return checks
    checks["a replay reads what was copied in"] = replay
    checks["what waits is refused and leaves nothing behind"] = refuse_to_wait
    checks["pictures on the host are fetched right and in bounded memory"] = fetch_ahead
    for title, problem in problems:
        for execution in EXECUTIONS:
            checks[f"{title}, {execution}: the graph of a step"] = partial(compare_step, problem, execution)
        checks[f"{title}, vmap: the graphs of its halves"] = partial(compare_halves, problem)
    for precision in ("tf32", "bfloat16"):
        problem = partial(make, "maml", "conv4_strided")
        checks[f"maml on conv4_strided, loop, {precision}: the graph of a step"] = partial(
            compare_step, problem, "loop", precision=precision
        )
    return checks


def make(name: str, backbone: str, device: torch.device, dtype: torch.dtype) -> Made:
    """A small method, its weights and three tasks; float64 is what they are made in, whatever they are brought to."""
    algo, theta = algo_and_theta(name, backbone)
    algo.backbone.to(device, dtype)
    return algo, *place((theta, episodes(3, backbone=backbone)), device, dtype)


def make_actor(name: str, world: str, device: torch.device, dtype: torch.dtype) -> Made:
    algo, theta = actor_and_theta(name, BRIEF[world], (1, 2), **ACTORS[name])
    algo.backbone.to(device, dtype)
    return algo, *place((theta, draw_trials(BRIEF[world], 3)), device, dtype)


def place(values: Any, device: torch.device, dtype: torch.dtype) -> Any:
    def one(x: Tensor) -> Tensor:
        return x.detach().to(device, dtype if x.is_floating_point() else x.dtype).requires_grad_(x.requires_grad)

    return tree_map(one, values)


def measure_gap(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, as a share of the largest norm."""
    ours, theirs = (torch.cat([x.detach().cpu().double().flatten() for x in each]) for each in (found, expected))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def require(gap: float, most: float, what: str) -> None:
    assert gap <= most, f"{what} differs by {gap:.1e} of its norm; at most {most:.0e} is rounding"


def draw_twice(device: torch.device) -> str:
    pictures = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table = Table.from_labels(pictures.to(device), torch.arange(8).repeat_interleave(5), torch.arange(40), device)
    source = EpisodeSampler(table, TaskShape(5, 1, 3))
    one, two, there = (source.sample(4, generator_for("gpu", device=where)) for where in (device, device, "cpu"))
    assert torch.equal(one.query.x, two.query.x), "one seed gives two sets of tasks"
    assert there.query.x.device == device, "tasks that the host draws are not on the device"
    return "equal"


def compare_gradient(problem: Callable[..., Made], execution: Execution, device: torch.device) -> str:
    """The device's meta-gradient is the CPU's."""
    dtype, most = (torch.float32, ROUNDED) if device.type == "mps" else (torch.float64, EXACT)
    found, expected = (
        meta_gradient(*problem(where, dtype), execution=execution) for where in (device, torch.device("cpu"))
    )
    gap = measure_gap(leaves(found[2]), leaves(expected[2]))
    require(gap, most, "the meta-gradient")
    return f"{gap:.0e} from the CPU's"


def compare_step(
    problem: Callable[..., Made], execution: Execution, device: torch.device, precision: str = "float32"
) -> str:
    """Steps replayed from a graph are those that Python takes: exactly in float64, to rounding in float32."""
    said = []
    for dtype, most in ((torch.float64, EXACT), (torch.float32, ROUNDED)):
        if dtype == torch.float64 and precision != "float32":
            continue
        allow_tf32(precision == "tf32")
        algo, theta, tasks = problem(device, dtype)
        run = MetaGradient(algo, make_settings(execution=execution, precision=precision, clip_norm=0.1))
        trained = []
        for recorded in (False, False, True):
            state, step = build_step(algo, theta, run)
            captured = capture_step(step, state)
            train(state, captured if recorded else step, tasks)
            trained.append(leaves(state.theta))
            assert is_recorded(captured) or not recorded, "the step was not recorded; the log says why"
        noise, gap = measure_gap(trained[1], trained[0]), measure_gap(trained[2], trained[0])
        require(gap, max(most, 3 * noise), f"{dtype} weights after steps by a graph")
        said.append(f"{str(dtype).removeprefix('torch.')}: {gap:.0e} from eager steps, which differ by {noise:.0e}")
    return "; ".join(said)


def compare_halves(problem: Callable[..., Made], device: torch.device) -> str:
    """Steps of two graphs, the gradient and the descent, as several processes record them, are those of Python."""
    algo, theta, tasks = problem(device, torch.float64)
    settings, recorded, trained = make_settings(clip_norm=0.1), list[Captured[Any]](), []

    def keep(descent: Descent, state: State) -> Descent:
        recorded.append(capture_descent(descent, state))
        return recorded[-1]

    for run, capture in (
        (MetaGradient(algo, settings), lambda descent, state: descent),
        (MetaGradient(algo, settings, recording="halves"), keep),
    ):
        state, step = build_step(algo, theta, run, capture)
        train(state, step, tasks)
        trained.append(leaves(state.theta))
    assert is_recorded(recorded[0]), "the descent was not recorded; the log says why"
    gap = measure_gap(trained[1], trained[0])
    require(gap, EXACT, "the weights after steps by two graphs")
    return f"{gap:.0e} from eager steps"


def replay(device: torch.device) -> str:
    captured = Captured("sum", lambda x: [(x * x).sum()], lambda sums: sums)
    for value in range(WARM_UP + 3):
        found = float(captured(torch.full((2,), float(value), device=device))[0])
        assert found == 2 * value**2, f"{found} in place of {2 * value**2}"
    assert is_recorded(captured), "it was not recorded; the log says why"
    return "exact"


def refuse_to_wait(device: torch.device) -> str:
    x = torch.zeros(3, device=device)
    try:
        record(lambda: float(x.sum()))
    except RuntimeError as error:
        said = describe_chain(error)
    else:
        raise AssertionError("a recording that waits was not refused")
    assert torch.cuda.current_stream() == torch.cuda.default_stream(), f"its stream is still the current one; {said}"
    assert torch.equal(record(lambda: x + 1)(), x + 1), f"nothing can be recorded after it; {said}"
    for _ in range(50):  # 13 GiB, if none of it were given back
        y = torch.empty(2**26, device=device)
        y.record_stream(torch.cuda.Stream(device))
        del y
    reserved = torch.cuda.memory_reserved(device)
    assert reserved < RESERVED, f"{reserved / 2**30:.1f} GiB are kept: the allocator waits for the recording; {said}"
    return f"refused: {said}"


def fetch_ahead(device: torch.device) -> str:
    """As a training with `dataset.placement=host` does."""
    pictures = torch.randint(256, (600, 3, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table = Table.from_labels(pictures, torch.arange(20).repeat_interleave(30), torch.arange(600), device)
    source = EpisodeSampler(table, TaskShape(5, 1, 15))

    def draw(step: int) -> Any:
        return source.sample(16, generator_for("gpu", step, device=device))

    tasks_of, after = Prefetch(draw, device), {}
    for step in range(200):
        tasks = tasks_of(step)
        (tasks.query.x.square().mean() * 2).sum()
        if step % 50 == 7:
            torch.testing.assert_close(tasks.query.x, draw(step).query.x, rtol=0, atol=0)
        after[step] = torch.cuda.memory_reserved(device)
    assert after[199] <= 1.2 * after[50], f"memory grew from {after[50] / 2**20:.0f} to {after[199] / 2**20:.0f} MiB"
    return f"{after[199] / 2**20:.0f} MiB reserved"


def describe(device: torch.device) -> str:
    """The card, PyTorch and a hash of the code: what passed counts for these alone."""
    names = [device_name(device), f"torch {torch.__version__}"]
    if device.type == "cuda":
        names += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py")))).hexdigest()
    return ", ".join([*names, f"code {code[:12]}"])


def main(device_named: str, name: str) -> int:
    device = torch.device(device_named)
    try:
        use_device(device)
        print(describe(device) if name == "describe" else list_checks(device)[name](device))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        print(f"{describe_chain(error)} ({places})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
