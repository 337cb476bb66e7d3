"""What a key may be: choices or an interval, for Optuna and as texts that Hydra reads back."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ALMOST = 1e-8  # of a step


@dataclass(frozen=True)
class Choices:
    """Texts as they are typed after ``key=``."""

    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a choice of no values; allowed: one or more, as in choice(a,b)")

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(tuple(dict.fromkeys(self.values)))

    def text(self, value: Any) -> str:
        return str(value)

    def read(self, text: str) -> Any:
        """Raise ``ValueError`` for what is none of the choices."""
        if text not in self.values:
            raise ValueError(text)
        return text

    def texts(self) -> Iterator[str]:
        return iter(dict.fromkeys(self.values))


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; ``log``: evenly over the magnitudes."""

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        shown = f"interval({self.low!r},{self.high!r})"
        if not self.low <= self.high:  # which NaN is not either
            raise ValueError(f"{shown} is empty; allowed: the smaller number first")
        if self.log and self.low <= 0:
            raise ValueError(f"{shown} on a log scale; allowed: numbers above 0")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError(f"{shown} with step {self.step!r}; allowed: above 0, and no log scale")
        if self.integer and any(end != int(end) for end in (self.low, self.high, self.step or 1)):
            raise ValueError(f"{shown} of whole numbers; allowed: whole ends and a whole step")

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.integer:
            return IntDistribution(int(self.low), self._last(), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self._last(), self.log, self.step)

    def text(self, value: Any) -> str:
        """Read back, it is the same value: 0.3, where three steps of 0.1 are a little more."""
        if self.integer:
            return str(int(value))
        if self.step is not None:
            return self._at(round((value - self.low) / self.step))
        return repr(float(value))

    def read(self, text: str) -> Any:
        """Raise ``ValueError`` for what is no number of this interval."""
        value = int(text) if self.integer else float(text)
        inside = self.low <= value <= self.high
        if self.step is not None and math.isfinite(value):
            steps = (value - self.low) / self.step
            inside = 0 <= round(steps) <= self._steps() and abs(steps - round(steps)) < ALMOST
        if not inside:
            raise ValueError(text)
        return value

    def texts(self) -> Iterator[str] | None:
        """None: there is no end of them."""
        if self.integer or self.step is not None:
            return map(self._at, range(self._steps() + 1))
        return iter([repr(float(self.low))]) if self.low == self.high else None

    def _steps(self) -> int:
        """To the highest number; 0.7999999999999999 is eight steps of 0.1 all the same."""
        step = Decimal(str(self.step or 1))
        steps = (Decimal(str(self.high)) - Decimal(str(self.low))) / step
        return math.floor(float(steps) + ALMOST)

    def _at(self, number: int) -> str:
        value = Decimal(str(self.low)) + number * Decimal(str(self.step or 1))
        return str(int(value)) if self.integer else repr(float(value))

    def _last(self) -> Any:
        """The highest number that steps from ``low`` reach."""
        if self.integer or self.step is not None:
            last = self._at(self._steps())
            return int(last) if self.integer else float(last)
        return self.high


Space = Choices | Interval
