"""Reading other libraries' pickles, of arrays and plain containers only: a pickle can otherwise run any code."""

import pickle
from io import BytesIO
from typing import Any

from metarun.config.errors import ConfigError

ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # how Python 2's byte strings arrive
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may run anything")
        return super().find_class(module, name)


def unpickled(content: bytes, where: str) -> Any:
    """Raises ConfigError, naming `where`, for what is damaged or asks for more than arrays and containers."""
    try:
        return _Arrays(BytesIO(content), encoding="latin1").load()
    except Exception as error:  # broken bytes raise a dozen kinds
        raise ConfigError(f"{where} cannot be used ({str(error) or type(error).__name__}): get another copy") from error
