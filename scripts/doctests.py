"""An extension of Griffe, which reads the docstrings for the site: doctests become blocks of code."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # to the next empty line


class Doctests(griffe.Extension):
    """Fences the doctests of every docstring, which Markdown would take for quotations."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)


def fence(docstring: str) -> str:
    """Put each doctest of a docstring between fences."""
    return DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", docstring)
