"""Many names in one line of a message: the first of them, and how many more there are."""

from collections.abc import Sequence


def first(names: Sequence[str], most: int, separator: str = ", ", unnamed: int = 0) -> str:
    """``a, b, c and 4 more``. ``unnamed``: others, of which the names are not known."""
    more = max(0, len(names) - most) + unnamed
    return separator.join(names[:most]) + (f" and {more} more" if more else "")
