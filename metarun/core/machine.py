"""The machine and the software that a run happens on."""

import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from metarun.config.errors import ConfigError
from metarun.config.version import __version__

PACKAGE = Path(__file__).resolve().parents[1]
STARTED = time.perf_counter()  # when this was imported, at the start of the process


def find_device(name: str) -> torch.device:
    """Find `auto`, or a device by name, with the index that its tensors have: `cuda` is the current one.

    Raises ConfigError, which lists the devices, if it is not there.
    """
    here = available_devices()
    if name in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:  # torchrun's
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"device is {name!r}: all of the launcher's processes would use it: set device=cuda")
    if name == "auto":
        name = here[-1]
    if name not in {*here, *(device.partition(":")[0] for device in here)}:
        raise ConfigError(f"device is {name!r}: choose from auto, {', '.join(here)} (what PyTorch finds here)")
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps", 0) if name == "mps" else torch.device(name)


def use_device(device: torch.device) -> None:
    """Make it the process's current one. CUDA's streams and graphs belong to the current device, not to a tensor's."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def available_devices() -> list[str]:
    """List the devices from the slowest to the best."""
    devices = ["cpu"]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices + [f"cuda:{i}" for i in reversed(range(torch.cuda.device_count()))]


def device_name(device: torch.device) -> str:
    """Name the device for a reader of a speed figure."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """Return the name on the chip on Linux; Python's own idea of it elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak of the device's memory, or of this process's on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def free_memory(device: torch.device) -> int:
    """Return the free memory in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):  # Linux counts what it could give back, too
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def find_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    found = {"metarun": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("torchvision", "hydra-core", "omegaconf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def find_commit(package: Path = PACKAGE) -> str | None:
    """Find the commit of this code: of the checkout that tracks it, "-dirty" with local changes, or of the wheel.

    A checkout that only surrounds the package, for instance a project with its virtual environment, is another code's.
    """
    built = package / "commit.txt"  # written by scripts/build_hook.py
    if _ask_git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return built.read_text(encoding="utf-8").strip() if built.is_file() else None
    return _ask_git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _ask_git(folder: Path, *words: str) -> str | None:
    """What git says in a folder; None if it fails, or is not there."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip() or None
    return None
