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
        words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        described = subprocess.run(words, cwd=self.root, capture_output=True, text=True, check=False)
        if described.returncode == 0:
            self.scratch = tempfile.TemporaryDirectory()
            file = Path(self.scratch.name) / "commit.txt"
            file.write_text(described.stdout, encoding="utf-8")
            build_data["force_include"][str(file)] = NAME
