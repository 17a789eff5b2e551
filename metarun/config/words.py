"""Words for a person, shared by messages of every layer. Never imports torch."""


def count(number: int, noun: str) -> str:
    """The number and its noun: "1 class", "2 classes", "1300 pictures"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"
