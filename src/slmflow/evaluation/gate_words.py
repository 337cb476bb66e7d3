"""A condition of the gate, and what was found, in words."""

from slmflow.evaluation.results import Figure


def asked(metric: str, kind: str, bound: float, alias: str) -> str:
    """``correct may fall by at most 0.02``"""
    least = kind.endswith("at_least")
    if kind.startswith("ratio"):
        return f"{metric} must be at {_end(least)} {number(bound)} times that of {alias}"
    if not kind.startswith("change"):
        return f"{metric} must be at {_end(least)} {number(bound)}"
    worse, better = ("fall", "rise") if least else ("rise", "fall")
    if bound == 0:
        return f"{metric} may not {worse}"
    if (bound < 0) == least:
        return f"{metric} may {worse} by at most {number(abs(bound))}"
    return f"{metric} must {better} by at least {number(abs(bound))}"


def found(kind: str, figure: Figure) -> str:
    """``it may fall by up to 0.11``: the end of the interval that is judged."""
    least = kind.endswith("at_least")
    judged = figure.low if least else figure.high
    if kind.startswith("change"):
        return _change(judged, least, figure.low == figure.high)
    unit = " times" if kind.startswith("ratio") else ""
    if figure.low == figure.high:
        return f"it is {number(judged)}{unit}"
    worst = f"may be as {'low' if least else 'high'} as {number(judged)}{unit}"
    return f"it is {number(figure.value)}{unit} and {worst}"


def _change(judged: float, least: bool, exact: bool) -> str:
    if judged == 0:
        return "it does not change" if exact else f"it does not {'fall' if least else 'rise'}"
    verb = "rise" if judged > 0 else "fall"
    if exact:
        return f"it {verb}s by {number(abs(judged))}"
    if (judged < 0) == least:  # the worse end of what it may be
        return f"it may {verb} by up to {number(abs(judged))}"
    return f"it {verb}s by at least {number(abs(judged))}"


def _end(least: bool) -> str:
    return "least" if least else "most"


def number(value: float) -> str:
    """Enough digits to tell it from its bound, none that only distract."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
