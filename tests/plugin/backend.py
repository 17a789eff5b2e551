"""Builds the wheel with nothing but Python: the test that installs this package has no network."""

import tomllib
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def build_wheel(wheel_directory: str, *_: Any) -> str:
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = project["name"].replace("-", "_")
    release = f"{package}-{project['version']}"
    info = f"{release}.dist-info"
    points = "\n".join(
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in members.items())
        for group, members in project["entry-points"].items()
    )
    sources = [path for pattern in ("*.py", "*.yaml") for path in (HERE / package).rglob(pattern)]
    files = {path.relative_to(HERE).as_posix(): path.read_text(encoding="utf-8") for path in sources} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: backend\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": points,
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = f"{release}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel
