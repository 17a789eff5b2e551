"""A task of a dataset, as if a person had brought it: to see what a trained model does with one."""

from metarun.config.schema import Settings
from metarun.core.seeding import generator_for
from metarun.core.types import ClassSource, Episode, Examples, Split, TaskShape
from metarun.datasets.preprocessing import Named
from metarun.engine.build import build_dataset


def draw_task(settings: Settings, split: Split, shape: TaskShape) -> tuple[Named, Named]:
    """Draw the support and the queries of a task of `settings.dataset`, the same whenever it is called.

    Classes are named by their numbers in the split. Raises ConfigError as the dataset does.
    """
    source = build_dataset(settings).tasks(split, shape)
    task = Episode(*(Examples(x[0].cpu(), y[0].cpu()) for x, y in source.sample(1, generator_for("predict", split))))
    classes = list(range(source.spec.output_size))
    if isinstance(source, ClassSource):
        drawn = source.draw_classes(1, generator_for("predict", split))[0].tolist()
        classes = drawn if len(drawn) == len(classes) else classes  # of an assay it is the assay

    def name(part: str, examples: Examples) -> Named:
        names = [f"{part} {i}" for i in range(len(examples.x))]
        numbers = source.spec.kind == "classification"
        return Named(names, examples.x, [f"class {classes[y]}" if numbers else y for y in examples.y.tolist()])

    return name("support", task.support), name("query", task.query)
