"""The command line: `metarun [overrides]` trains, a few sub-commands do the rest."""

import signal
import sys
from types import FrameType

from metarun import __version__
from metarun.cli.commands import COMMANDS
from metarun.cli.launch import train
from metarun.config.errors import reported
from metarun.engine.process import prepare_cpu


def main() -> None:
    """Console entry point. Exit codes: 0 done, 1 the run failed, 2 a mistake in the request, 130 stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    prepare_cpu()
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if command in COMMANDS:
            sys.argv = [f"metarun {command}", *sys.argv[2:]]
            COMMANDS[command]()
        elif command == "--version":
            print(f"metarun {__version__}")
        else:
            train(COMMANDS)
    except BaseException as error:
        sys.exit(reported(error))
    sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
