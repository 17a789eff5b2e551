"""The command line: `metarun [overrides]` trains, sub-commands do the rest."""

import io
import signal
import sys
import threading
from types import FrameType

from metarun.cli.commands import COMMANDS, summarise_commands
from metarun.cli.hydra_app import Request
from metarun.cli.launch import launch
from metarun.cli.overview import write_help
from metarun.config.errors import report_error
from metarun.config.version import __version__
from metarun.engine.process import prepare_cpu


def main() -> None:
    """Console entry point. Exit codes: 0 done, 1 the run failed, 2 a mistake in the request, 130 stopped."""
    if threading.current_thread() is threading.main_thread():  # only this one may handle signals
        signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that it cannot encode is shown by its code
            stream.reconfigure(errors="backslashreplace")
    prepare_cpu()
    command, *words = sys.argv[1:] or [""]
    try:
        if command in COMMANDS:
            COMMANDS[command](words)
        elif command == "--version":
            print(f"metarun {__version__}")
        else:
            request = Request.parse(sys.argv[1:], COMMANDS)
            if "help" in request.flags:
                print(write_help(summarise_commands(), request.config_dir))
            else:
                launch(request)
    except BaseException as error:
        sys.exit(report_error(error))
    sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
