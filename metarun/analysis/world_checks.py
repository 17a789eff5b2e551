"""Generic checks of a world: what its functions must fulfil. A check raises AssertionError with one line."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from metarun.analysis.behaviour import Camera, draw_moment
from metarun.analysis.data_checks import check_description
from metarun.analysis.device_checks import COUNTS, GPU, draw_there, require_here, watch
from metarun.analysis.problems import CLOSE, Check, DoubleTrials, require
from metarun.config.registry import declaration
from metarun.config.schema import Settings
from metarun.core.batch import Execution, map_tasks, take, unstack
from metarun.core.control import Reflex, Rollout, roll_out
from metarun.core.seeding import draw_uniform, generator_for
from metarun.core.types import Agent, TaskShape, Trial, Visible, World
from metarun.datasets.sampling.trials import Trials
from metarun.engine.build import build_dataset

TASKS, EPISODES, TRAJECTORIES = 5, 2, 3


def list_world_checks(settings: Settings) -> list[Check]:
    """The checks of the world that the settings choose."""
    dataset = functools.cache(functools.partial(build_dataset, settings))
    shape = TaskShape(settings.ways, settings.shots, settings.queries)

    @functools.cache
    def source(device: torch.device | None = None) -> Trials:
        tasks = dataset(device).tasks("train", shape)
        require(isinstance(tasks, Trials), "tasks() must return metarun.datasets.sampling.trials.Trials")
        assert isinstance(tasks, Trials)
        return tasks

    rules = declaration("dataset", settings.dataset["name"]).traits.rules
    return [
        Check("it can be prepared and described", lambda: check_description(dataset())),
        Check("tasks follow from the generator alone", lambda: check_determinism(source())),
        Check("states, observations and rewards have the shapes that are declared", lambda: check_shapes(source())),
        Check("an episode follows from the task alone", lambda: check_purity(source())),
        Check("many tasks at once, by vmap, are as one after another", lambda: check_batching(source())),
        Check("tasks and episodes would be on a GPU, without waiting for it", lambda: check_gpu(source(GPU), rules)),
        *(Check(f"the rule {name} can act", functools.partial(check_rule, source, name)) for name in rules),
        Check("it can be drawn, if it has draw()", lambda: check_drawing(source())),
    ]


def draw(source: Trials, seed: int = 0) -> Trial:
    """Draw some tasks, in float64: numbers of another type in a world show in what follows."""
    return DoubleTrials(source).sample(TASKS, generator_for("check", seed))


def act_at_random(world: World) -> Agent:
    """Any action; of numbers, each between -1 and 1."""

    def react(observation: Tensor, chance: Tensor) -> Tensor:
        return (chance[:, 0] * world.actions).long() if world.discrete else 2 * chance - 1

    return Reflex(react, chances=1 if world.discrete else world.actions)


def play(source: Trials, execution: Execution, tasks: Trial) -> Rollout:
    agent = act_at_random(source.world)
    fields = map_tasks(lambda task: roll_out(source.world, task, agent, EPISODES, TRAJECTORIES), tasks, execution)
    return Rollout(*fields)


def check_determinism(source: Trials) -> None:
    state = torch.get_rng_state()
    one, again, other = draw(source), draw(source), draw(source, seed=1)
    require(torch.equal(torch.get_rng_state(), state), "latent() changes the global random generator")
    for name, values in one.latent.items():
        require(len(values) == TASKS, f"{name} of latent() is {list(values.shape)} for {TASKS} tasks")
        require(torch.equal(values, again.latent[name]), f"one seed gives two different {name} of latent()")
    differ = any(not torch.equal(values, other.latent[name]) for name, values in one.latent.items())
    require(differ, "two seeds give the same latent parameters")


def check_shapes(source: Trials) -> None:
    world, task = source.world, unstack(draw(source))[0]
    chance = draw_uniform(task.salt, TRAJECTORIES, world.chances, dtype=torch.float64)
    state = world.reset(task.latent, chance)
    observation = world.observe(task.latent, state)
    require(
        observation.shape == (TRAJECTORIES, world.observed),
        f"observe() returns {list(observation.shape)}: it must be {[TRAJECTORIES, world.observed]}",
    )
    played = roll_out(world, task, act_at_random(world), EPISODES, TRAJECTORIES)
    size = (EPISODES, world.horizon, TRAJECTORIES)
    require(played.reward.shape == size, f"rewards of all steps are {list(played.reward.shape)}, not {list(size)}")
    for name, values in (("rewards", played.reward), ("observations", played.observation)):
        require(bool(values.isfinite().all()), f"{name} are not finite")
        require(values.dtype == torch.float64, f"{name} are {values.dtype} where latent parameters are float64")


def check_purity(source: Trials) -> None:
    task, state = draw(source), torch.get_rng_state()
    one, two = (play(source, "loop", task) for _ in range(2))
    require(torch.equal(torch.get_rng_state(), state), "an episode changes the global random generator")
    require(torch.equal(one.reward, two.reward), "the same actions have other rewards later: is there another state?")


def check_batching(source: Trials) -> None:
    tasks = draw(source)
    batched, looped = play(source, "vmap", tasks), play(source, "loop", tasks)
    for name, a, b in zip(Rollout._fields, batched, looped):
        difference = float((a.double() - b.double()).abs().max())
        require(difference <= CLOSE, f"{name} differs by {difference:.1e} between vmap and a loop")


def check_gpu(source: Trials, rules: Sequence[str]) -> None:
    """`source` was built for the stand-in of a GPU."""
    require_here(source.sample(TASKS, generator_for("check")))
    world, tasks = source.world, draw_there(source)
    for execution, count in COUNTS.items():
        some = take(tasks, 0, count)
        watch(functools.partial(play, source, execution, some))
        for name in rules:
            watch(functools.partial(map_tasks, functools.partial(follow, world, name), some, execution))


def check_rule(source: "functools._lru_cache_wrapper[Trials]", name: str) -> None:
    returns = map_tasks(functools.partial(follow, source().world, name), draw(source()), "vmap")
    require(bool(returns.isfinite().all()), "its returns are not finite")


def follow(world: World, name: str, task: Trial) -> Tensor:
    """The returns of an agent that follows the rule."""
    return roll_out(world, task, world.rule(name, task.latent, EPISODES), EPISODES, 1).returns


def check_drawing(source: Trials) -> None:
    world, task = source.world, unstack(draw(source))[0]
    if isinstance(world, Visible):
        camera = Camera(world)
        roll_out(camera, task, act_at_random(camera), 1, TRAJECTORIES)
        (states,) = camera.films
        frame = draw_moment(world, [task], [{"at random": camera.develop(states)}], world.horizon + 1)
        require(frame.startswith(b"\x89PNG"), "draw() spoils the picture")
