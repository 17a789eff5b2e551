"""Words for a person, shared by messages of every layer. Never imports torch."""

import sys


def count(number: int, noun: str) -> str:
    """The number and its noun: "1 class", "2 classes", "1 query", "1300 queries"."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def make_inert(text: str) -> str:
    """Replace what would steer a terminal or turn the direction of a text by its code; lines and tabs stay."""
    return "".join(c if c in "\n\t " or c.isprintable() else ascii(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """Replace what standard output cannot encode: "±" by "+-", other characters by their codes; make it inert."""
    text, encoding = make_inert(text), sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("±", "+-").encode(encoding, "backslashreplace").decode(encoding)
    return text


def format_duration(seconds: float) -> str:
    """Seconds as a person reads them: "12 s", "3 min", "1 h 29 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
