"""How long a server that is away is waited for, and the words for it. Without MLflow, which takes
seconds to be imported."""

EVERY = 5  # seconds between two attempts, at most


def pauses(count: int, factor: float, most: float) -> float:
    """All of them, in seconds; urllib3 sends the second attempt at once."""
    return float(sum(min(most, factor * 2**attempt) for attempt in range(1, count)))


def mlflows_pauses(total: int, factor: float) -> float:
    """Those of MLflow's own client."""
    return pauses(total, factor, 120)


def away(where: str, what: str, seconds: float) -> str:
    return f"{where} {what}; waiting up to {seconds:.0f} s for it (Ctrl-C gives up)"


def back(seconds: float) -> str:
    return f"it answers again, after {seconds:.0f} s"
