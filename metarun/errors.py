"""What can go wrong in words for the user: shown as they are, without a traceback. Never imports torch."""


class ConfigError(Exception):
    """A mistake in the request: in a setting, a file or a name."""

    exit_code = 2


class Busy(ConfigError):
    """Another process is at work on the same run."""


class Failed(Exception):
    """The run itself went wrong, through no mistake in its settings."""

    exit_code = 1


class Stopped(Exception):
    """A signal ended the run early, after it was saved."""

    exit_code = 130
