"""Run on a full disk of every size, make room, start again, and compare with a run that always had room.

    unshare --user --map-root-user --mount python scripts/full_disk.py 8 16 24   # sizes in KiB

The folder of the run, its cache and its report are a small tmpfs, which the run fills: so each write is the one that
fails at some size. The run must end with exit code 1 or 2 and one line, and the same command with room in an equal run.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import kills


def fill(root: Path, size: int, whole: Path) -> tuple[str, str]:
    """Run on a disk of `size` KiB, then with room. Returns what the first run said, and what is wrong."""
    place = root / f"disk{size}"
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}k", "none", str(place))
    output = root / f"output{size}.txt"
    code = kills.start(place, kills.MODES["vmap"][0], output=output)
    said = [line for line in output.read_text().splitlines() if line.startswith("metarun: ")]
    mount("-o", "remount,size=64m", str(place))
    if code == 0:
        return "it has room", ", ".join(kills.differences(place, whole))
    if code not in (1, 2) or len(said) != 1 or "Traceback" in output.read_text():
        return "", f"exit code {code}: {output.read_text()[-2000:]}"
    if again := kills.start(place, kills.MODES["vmap"][0], output=output):
        return said[0], f"exit code {again}: {output.read_text()[-2000:]}"
    return said[0], ", ".join(kills.differences(place, whole))


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    sizes, wrong = [int(word) for word in sys.argv[1:]], False
    with tempfile.TemporaryDirectory(prefix="disk-") as folder:
        root = Path(folder)
        kills.write_pictures(root / "pictures")
        kills.warm_up(root)
        whole = root / "whole"
        whole.mkdir()
        if code := kills.start(whole, kills.MODES["vmap"][0], output=root / "output.txt"):
            raise SystemExit(f"exit code {code}: {(root / 'output.txt').read_text()}")
        for size in sizes:
            said, problem = fill(root, size, whole)
            wrong |= bool(problem)
            print(f"{size} KiB: {said.replace(str(root), '')}: {problem or 'equal'}", flush=True)
            subprocess.run(["umount", str(root / f"disk{size}")], check=True)
    sys.exit(wrong)
