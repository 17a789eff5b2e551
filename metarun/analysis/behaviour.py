"""How a policy acts: pictures of its first and of its last episode in a task, beside the best rule of the world."""

import io
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from metarun.config.registry import declaration
from metarun.core.batch import unstack
from metarun.core.files import write_whole
from metarun.core.seeding import generator_for
from metarun.core.types import Params, Theta, Trial, Visible
from metarun.engine.build import Experiment, build_algorithm

TASKS = 3  # in the picture; the animation is of the first of them
MILLISECONDS = 80  # of a frame
STAY = 1500  # of the last one

Film = list[Any]  # the states of an episode, from its beginning on


class Camera:
    """A world that keeps the states of all its episodes, of the first trajectory in each."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.films: list[Film] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def reset(self, latent: Params, chance: torch.Tensor) -> Any:
        state = self.world.reset(latent, chance)
        self.films.append([state])
        return state

    def step(self, latent: Params, state: Any, action: torch.Tensor, chance: torch.Tensor) -> tuple[Any, torch.Tensor]:
        state, reward = self.world.step(latent, state, action, chance)
        self.films[-1].append(state)
        return state, reward

    def develop(self, film: Film) -> Any:
        """The states of the first trajectory: [H + 1, ...] each."""
        return tree_map(lambda *moments: torch.stack([moment[0] for moment in moments]), *film)


@torch.no_grad()
def film_episodes(experiment: Experiment, theta: Theta, trial: Trial) -> dict[str, Any]:
    """The states of the policy's first and last episode in a task, and of the last of the best rule: by title."""
    rows, name = experiment.plan_rows(), experiment.settings.dataset["name"]
    oracle = declaration("dataset", name).traits.rules[:1]
    found = {}
    for row in ("test", *oracle):
        spec = experiment.build_tester(rows[row], "test").source.spec
        camera = Camera(spec.world)
        algo = build_algorithm(rows[row].algo, experiment.backbone, spec._replace(world=camera))
        algo.task_metrics(theta, trial)
        if row == "test":
            found["first episode"] = camera.develop(camera.films[0])
        found["last episode" if row == "test" else row] = camera.develop(camera.films[-1])
    return found


def draw_behaviour(experiment: Experiment, theta: Theta, folder: Path) -> list[Path]:
    """Write `behaviour.png`, a few test tasks, and `behaviour.gif`, the first of them, before and after adaptation."""
    tester = experiment.build_tester(experiment.plan_rows()["test"], "test")
    world = tester.source.spec.world
    assert isinstance(world, Visible)
    tasks = unstack(tester.source.sample(TASKS, generator_for(tester.row.seed, "explain")))
    films = [film_episodes(experiment, theta, task) for task in tasks]
    places = [folder / "behaviour.png", folder / "behaviour.gif"]
    moments = range(1, world.horizon + 2)
    write_whole(places[0], draw_moment(world, tasks, films, moments[-1]))
    write_whole(places[1], animate([draw_moment(world, tasks[:1], films[:1], moment) for moment in moments]))
    return places


def draw_moment(world: Visible, tasks: list[Trial], films: list[dict[str, Any]], moments: int) -> bytes:
    """A PNG of the first so many moments, with a line for each task and a column for each title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(films[0]), 3 * len(tasks)), layout="constrained")
    all_axes = figure.subplots(len(tasks), len(films[0]), squeeze=False)
    for line, task, film in zip(all_axes, tasks, films):
        for axes, (title, states) in zip(line, film.items()):
            world.draw(axes, task.latent, tree_map(lambda values: values[:moments], states))
            axes.set(xticks=[], yticks=[], title=title, aspect="equal")
    content = io.BytesIO()
    figure.savefig(content, dpi=80)
    return content.getvalue()


def animate(frames: list[bytes]) -> bytes:
    """A GIF of PNG frames, which stays at the last for a while."""
    from PIL import Image

    first, *others = (Image.open(io.BytesIO(frame)).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames)
    times = [MILLISECONDS] * len(others) + [STAY]
    content = io.BytesIO()
    first.save(content, "gif", save_all=True, append_images=others, duration=times, loop=0)
    return content.getvalue()
