"""Elements of HTML and SVG, in which every text that is not one is escaped."""

import re
from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is HTML already."""


def el(tag: str, *children: str | Iterable[str], **attributes: object) -> Markup:
    """`el("p", "a < b", class_="x")`. Underscores in names of attributes are hyphens, but for one at the end."""
    names = ((name.rstrip("_").replace("_", "-"), escape(str(value))) for name, value in attributes.items())
    opening = " ".join([tag, *(f'{name}="{value}"' for name, value in names)])
    inside = join(part for child in children for part in ([child] if isinstance(child, str) else child))
    return Markup(f"<{opening}>{inside}</{tag}>")


def join(parts: Iterable[str]) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def prose(text: str) -> Markup:
    """The marks that our own sentences have in Markdown: `code`, *emphasis*, notes and addresses."""
    shown = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text))
    shown = re.sub(r"\*(.+?)\*", r"<em>\1</em>", shown)
    return Markup(re.sub(r"https://\S+?(?=[:;]? |$)", r'<a href="\g<0>">\g<0></a>', shown))


def noted(text: str) -> Markup:
    """An entry of a table, its `[^key]` as a link to the source; long names may be broken where their parts end."""
    parts = re.split(r"\[\^(\w+)\]", escape(text))
    parts[::2] = [re.sub(r"(?<=[/_=])(?=\w)", "<wbr>", part) for part in parts[::2]]
    parts[1::2] = [f' <a class="note" href="#source-{key}">{key}</a>' for key in parts[1::2]]
    return Markup("".join(parts))
