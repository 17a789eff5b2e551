"""Write the commit into what is built, so that an installed metarun can record it. Called by hatchling."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "metarun/commit.txt"  # read by metarun.core.machine.find_commit


class CommitHook(BuildHookInterface[Any]):
    """Add the commit of the checkout; a source distribution brings its own, which its wheel keeps."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or (Path(self.root) / NAME).exists():
            return
        if (commit := find_commit(self.root)) is not None:
            self.scratch = tempfile.TemporaryDirectory()
            file = Path(self.scratch.name) / "commit.txt"
            file.write_text(commit, encoding="utf-8")
            build_data["force_include"][str(file)] = NAME


def find_commit(root: str) -> str | None:
    """The commit of the checkout that tracks `root`; None for a copy that another repository only surrounds."""
    tracked = ["git", "ls-files", "--error-unmatch", "pyproject.toml"]
    described = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    asked = [
        subprocess.run(words, cwd=root, capture_output=True, text=True, check=False) for words in (tracked, described)
    ]
    return asked[1].stdout if all(answer.returncode == 0 for answer in asked) else None
