"""Folders of finished runs, as a report finds them."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def omniglot_result() -> dict[str, Any]:
    """The content of `result.json` after an experiment on Omniglot."""
    row = {"ways": 5, "shots": 1, "tasks": 2000, "algo": {"name": "maml", "inner_steps": 3}, "task_hash": "a"}
    data = {"name": "omniglot", "split": "random", "rotations_test": "episode"}
    return {
        "headline": "accuracy",
        "config": {"ways": 5, "shots": 1, "seed": 1, "dataset": data},
        "choices": {"experiment": "maml/omniglot_5w1s", "algo": "maml"},
        "dataset": {},
        "device": "x86_64, 2 threads",
        "versions": {},
        "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
        "checkpoint": {"name": "best", "step": 7500},
        "training": {"steps": 8000, "seconds": 4830.4, "tasks_per_second": 53.4, "peak_memory_mib": 1900.2},
        "test": {
            "test": row | {"accuracy": {"mean": 0.98125, "ci95": 0.0025}, "queries": 1, "transductive": True},
            "test_inductive": row | {"accuracy": {"mean": 0.96, "ci95": 0.003}, "queries": 1, "transductive": False},
        },
    }


def sinusoid_result() -> dict[str, Any]:
    """The content of `result.json` after an experiment on sinusoids."""
    steps = {"mean": [3.5, 0.7, 0.5], "ci95": [0.1, 0.05, 0.04]}
    row = {
        "ways": 1,
        "shots": 5,
        "queries": 100,
        "tasks": 600,
        "transductive": False,
        "algo": {"inner_steps": 2},
        "task_hash": "b",
    }
    return {
        "headline": "mse",
        "config": {"ways": 1, "shots": 5, "seed": 0, "dataset": {"name": "sinusoid"}},
        "choices": {"experiment": "maml/sinusoid", "algo": "maml"},
        "dataset": {},
        "device": "x86_64, 2 threads",
        "versions": {},
        "commit": None,
        "checkpoint": {"name": "best", "step": 70000},
        "training": {"steps": 70000, "seconds": 41.0, "tasks_per_second": 4000.0},
        "test": {"test": row | {"mse": {"mean": 0.5, "ci95": 0.04}, "mse_by_step": steps}},
    }


def drug_result() -> dict[str, Any]:
    """The content of `result.json` after an experiment on FS-Mol."""
    result = omniglot_result()
    row = result["test"]["test"] | {"ways": 2, "shots": 16, "queries": 112, "transductive": False}
    del row["accuracy"]
    return result | {
        "headline": "delta_auprc",
        "config": {"ways": 2, "shots": 16, "seed": 0, "dataset": {"name": "assays", "collection": "fs_mol"}},
        "choices": {"experiment": "protonet/fs_mol", "algo": "protonet"},
        "test": {"test": row | {"delta_auprc": {"mean": 0.1333, "ci95": 0.0074}}},
    }


def write_run(folder: Path, result: dict[str, Any], overrides: str) -> None:
    """A run's folder with its result and the overrides of its command."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / ".hydra" / "overrides.yaml").write_text(overrides)


def write_seeds(folder: Path, scores: NDArray[np.float64], algo: str = "maml") -> None:
    """Write a run for each row of scores, [seeds, tasks]."""
    for seed, row in enumerate(scores):
        result = omniglot_result()
        result["config"]["seed"] = seed
        result["choices"] = {"experiment": f"{algo}/omniglot_5w1s", "algo": algo}
        result["config"]["algo"] = {"name": algo}
        del result["test"]["test_inductive"]
        result["test"]["test"] |= {"tasks": len(row), "accuracy": {"mean": float(row.mean()), "ci95": 0.01}}
        write_run(folder / f"{algo}{seed}", result, "[]")
        lines = [f"{i},{score}" for i, score in enumerate(row)]
        (folder / f"{algo}{seed}" / "scores").mkdir()
        (folder / f"{algo}{seed}" / "scores" / "test.csv").write_text("\n".join(["task,accuracy", *lines]) + "\n")


def write_course(folder: Path, metric: str, train: list[float], val: list[float]) -> None:
    """Write `metrics.csv`: training every 10 steps, validation every 20."""
    lines = [f"{10 * step},train,1.0,{value},0.001," for step, value in enumerate(train, start=1)]
    lines += [f"{20 * step},val,,{value},,0.01" for step, value in enumerate(val, start=1)]
    (folder / "metrics.csv").write_text("\n".join([f"step,split,loss,{metric},lr,ci95", *lines]) + "\n")


def write_sweep(folder: Path, algos: int, settings: int, seeds: int, tasks: int) -> None:
    """A finished run for each algo, setting and seed, all tested on the same tasks, with all that a report reads."""
    rng = np.random.default_rng(0)
    hard = rng.integers(60, 101, size=tasks)
    for algo, setting, seed in product(range(algos), range(settings), range(seeds)):
        result, place = omniglot_result(), folder / f"algo{algo}" / f"{setting}-{seed}"
        result["config"] |= {"algo": {"name": f"algo{algo}", "lr": setting}, "seed": seed}
        result["choices"] = {"algo": f"algo{algo}"}
        write_run(place, result, f"- algo=algo{algo}\n- algo.lr={setting}\n- seed={seed}\n")
        (place / "scores").mkdir()
        for row in result["test"]:
            values = np.clip(hard + rng.integers(-20, 21 - algo, size=tasks), 0, 100) / 100
            steps = ",".join(f"accuracy_by_step_{step}" for step in range(6))
            lines = [f"{i},{value},0.2,0.3,0.4,0.5,0.6,{value}" for i, value in enumerate(values)]
            (place / "scores" / f"{row}.csv").write_text("\n".join([f"task,accuracy,{steps}", *lines]) + "\n")
        write_course(place, "accuracy", rng.random(100).tolist(), rng.random(20).tolist())
