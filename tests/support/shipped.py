"""The settings of the shipped files in configs/dataset/."""

from typing import Any

from omegaconf import OmegaConf

from metarun.cli.hydra_app import CONFIGS


def read_settings(*names: str) -> dict[str, Any]:
    """The dataset settings of `configs/dataset/NAME.yaml`; a later file overrides those before it."""
    merged: dict[str, Any] = {}
    for name in names:
        content: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"dataset/{name}.yaml"), resolve=True)
        merged |= content.get("dataset", content)
    merged.pop("defaults", None)
    return merged
