"""Small runs of all kinds, a step each: every one ends with a result, or is refused line by line.

METARUN_FUZZ_RUNS is how many are tried; CONTRIBUTING.md says when to raise it.
"""

import json
import os
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metarun
from metarun.cli.compose import describe_options
from metarun.runs.folder import RunFolder
from tests.support.tiny_tables import write_own

CASES = int(os.environ.get("METARUN_FUZZ_RUNS", "60"))
GLYPHS = ("dataset=glyphs", "dataset.image_size=8", "dataset.classes_train=6", "dataset.classes_val=4")
DATA = {
    "glyphs": (*GLYPHS, "dataset.classes_test=4", "dataset.drawings=6"),
    "glyphs16": (*GLYPHS, "dataset.classes_test=4", "dataset.drawings=6", "dataset.image_size=16"),
    "sinusoid": ("dataset=sinusoid",),
    "bandit": ("dataset=bandit",),
    "texts": ("dataset=texts", "dataset.path={own}/own.csv", "dataset.width=20"),
    "assays": ("dataset=assays", "dataset.path={own}/own.csv", "dataset.width=20"),
    "continuous": ("dataset=assays", "dataset.path={own}/own.csv", "dataset.width=20", "dataset.values=continuous"),
    "regression": ("dataset=regression", "dataset.path={own}/own.csv"),
    "features": ("dataset=features", "dataset.path={own}/own.npz"),
}
SMALL = (
    "trainer.steps=1", "trainer.tasks_per_step=2", "trainer.workers=1", "trainer.eval_every=1", "eval.tasks=2",
    "eval.val_tasks=2", "eval.statistics_tasks=2", "device=cpu",
)  # fmt: skip
NETWORKS = {
    "mlp": ("backbone.hidden=[4]",),
    "conv4": ("backbone.filters=1",),
    "conv4_strided": ("backbone.filters=1",),
    "conv4_flat": ("backbone.filters=1",),
    "r2d2": ("backbone.filters=[1,1,1,1]",),
    "tanh": ("backbone.hidden=[4]",),
    "raw": (),
    "linear": (),
    "ngram": ("backbone.buckets=16", "backbone.features=4"),
}
SETTINGS = st.sampled_from(
    [
        *("ways=2", "ways=3", "shots=2", "shots=3", "queries=1", "queries=3", "eval.ways=2", "eval.shots=1"),
        *(
            "trainer.execution=loop",
            "trainer.execution=auto",
            "trainer.tasks_per_chunk=1",
            "trainer.channels_last=true",
        ),
        *("trainer.clip_norm=1", "trainer.clip_value=0.1", "trainer.patience=1", "trainer.keep_best=2"),
        *("trainer.precision=bfloat16", "trainer.log_every=1", "trainer.steps=2", "eval.checkpoint=last"),
        *("eval.checkpoint=ensemble", "eval.tasks=1", "eval.tasks_per_chunk=1", "eval.queries=2", "eval.val_tasks=1"),
        *("algo.inner_steps=0", "algo.inner_steps=2", "algo.inner_lr=1e30", "algo.first_order=true", "algo.norm=batch"),
        *("algo.norm=running", "algo.norm=per_query", "algo.inner_lr=1e-30", "algo.batch_size=1"),
        *("optimizer=sgd", "optimizer.lr=1e30", "optimizer.lr=1e-30", "schedule=cosine", "schedule=linear"),
        *(
            "schedule=step",
            "seed=3",
            "eval.variants.more.shots=2",
            "eval.variants.more.ways=2",
            "eval.algo.inner_steps=3",
        ),
    ]
)
ASKED = st.tuples(
    st.sampled_from(sorted(describe_options("algo"))),
    st.sampled_from(["glyphs", "glyphs", *sorted(DATA)]),
    st.sampled_from(sorted(NETWORKS)),
    st.lists(SETTINGS, max_size=3, unique_by=lambda text: text.partition("=")[0]),
)


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.integration
@settings(max_examples=CASES, suppress_health_check=list(HealthCheck), print_blob=True)
@given(asked=ASKED)
def test_a_small_run_ends_with_a_result_or_is_refused(
    asked: tuple[str, str, str, list[str]], tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> None:
    algo, data, backbone, changes = asked
    folder, own = tmp_path_factory.mktemp("run"), tmp_path_factory.getbasetemp() / "own" / data
    if "dataset.path" in "".join(DATA[data]) and not own.exists():
        write_own("assays" if data == "continuous" else data, own)
    words = [f"algo={algo}", *(word.format(own=own) for word in DATA[data])]
    words += [f"backbone={backbone}", *NETWORKS[backbone], *SMALL, *changes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(shared_cache))
        try:
            done = metarun.run(*words, f"hydra.run.dir={folder}")
        except (metarun.ConfigError, metarun.Failed) as error:
            lines = str(error).split("\n")
            assert all(line.strip() and line.isprintable() for line in lines), lines
            return
    json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    assert RunFolder(folder).result() is not None
    assert done.result.rows
