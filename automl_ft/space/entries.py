"""What does one entry of a search-space file say, and what is wrong with it?

An entry is `name: value` (set, not searched), a range (`low`, `high`) or `choices`. Problems are
collected, never raised, so that the loader reports all of them in one message. What concerns
several entries (conditions, priors) is checked in `space.load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from automl_ft.errors import Problem, did_you_mean
from automl_ft.space.bounds import BoundError, check_bound
from automl_ft.space.spec import (
    CategoricalParam,
    Condition,
    Fixed,
    FloatParam,
    IntParam,
    Parameter,
    Prior,
)
from automl_ft.specs.hyperparameters import HYPERPARAMETERS, Hyperparameter
from automl_ft.specs.trial import ParamValue

__all__ = ["parse_entry"]

_COMMON = ("default", "source", "when")
_RANGE = ("low", "high", "log", "step", "grid", *_COMMON)
_CHOICES = ("choices", *_COMMON)
_PRIOR = ("by", "centers", "spread")


def parse_entry(name: str, content: Any, place: str) -> tuple[Parameter | None, list[Problem]]:
    """Read one entry.

    Args:
        name: A name of `HYPERPARAMETERS`.
        content: What stands under it.
        place: File and key.

    Returns:
        The parameter, None where it cannot be built, and every problem of the entry.
    """
    reader = _Reader(HYPERPARAMETERS[name], content, place)
    return reader.read(name), reader.problems


class _Reader:
    """Reads one entry and collects its problems; `value` methods return None with a problem."""

    def __init__(self, known: Hyperparameter, content: Any, place: str) -> None:
        self.known = known
        self.content = content
        self.place = place
        self.problems: list[Problem] = []

    def read(self, name: str) -> Parameter | None:
        if isinstance(self.content, list):
            self._add("", f"`{self.content}` is a list. Write `choices:` with it and a `default:`.")
            return None
        if not isinstance(self.content, Mapping):
            return Fixed(name=name, value=self._accepted("", self.content))
        is_choice = "choices" in self.content or self.known.kind is str
        keys = _CHOICES if is_choice else _RANGE
        keys = (*keys, "prior") if self.known.kind is float and not is_choice else keys
        self._check_keys(self.content, keys, "")
        if is_choice:
            param: Parameter | None = self._choices(name)
        else:
            param = self._float(name) if self.known.kind is float else self._int(name)
        return None if self.problems else param

    def _add(self, key: str, message: str) -> None:
        self.problems.append(
            Problem(place=f"{self.place}.{key}" if key else self.place, message=message)
        )

    def _check_keys(self, content: Mapping[str, Any], keys: tuple[str, ...], above: str) -> None:
        for key in content:
            if key not in keys:
                dotted = f"{above}.{key}" if above else str(key)
                self._add(dotted, f"There is no such key here. {did_you_mean(str(key), keys)}")

    def _accepted(self, key: str, value: Any) -> ParamValue:
        """Check one value against what the hyperparameter accepts."""
        accepted = self.known.problem_with(value)
        if accepted:
            self._add(key, f"`{value}` is not accepted; {accepted}. Change the value.")
            return None
        return float(value) if self.known.kind is float and value is not None else value

    def _number(self, key: str, value: Any) -> float | None:
        """Check a bound or a default of a range; None here means that it is missing or wrong."""
        if value is None:
            self._add(key, f"`{key}` is missing. A range needs `low`, `high` and `default`.")
            return None
        number = self._accepted(key, value)
        if isinstance(number, float) and number in (float("inf"), float("-inf")):
            self._add(key, f"`{value}` is not accepted; a range needs finite bounds.")
            return None
        return number if isinstance(number, (int, float)) else None

    def _bound(self, key: str, value: Any) -> int | str | None:
        """Check a bound or default that may name facts of the model."""
        if not isinstance(value, str):
            number = self._number(key, value)
            return None if number is None else int(number)
        try:
            check_bound(value)
        except BoundError as error:
            example = "Write a whole number, or for example num_layers - 1"
            self._add(key, f"{error}. {example}.")
            return None
        return value

    def _choices(self, name: str) -> CategoricalParam | None:
        given = self.content.get("choices")
        if not isinstance(given, list) or not given:
            shown = "nothing is given" if given is None else f"`{given}` is given"
            self._add("choices", f"{shown}; accepted is a list of at least one value.")
            return None
        choices = tuple(self._accepted(f"choices[{i}]", value) for i, value in enumerate(given))
        for choice in dict.fromkeys(choices):
            if not self.problems and choices.count(choice) > 1:
                self._add("choices", f"`{choice}` is listed twice. Keep one.")
        default = self._accepted("default", self._given_default())
        if not self.problems and default not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            self._add(
                "default", f"`{default}` is none of the choices ({listed}). Choose one of them."
            )
        return CategoricalParam(
            name=name, choices=choices, default=default, source=self._source(), when=self._when()
        )

    def _given_default(self) -> Any:
        """Return what `default` says, else the hyperparameter's neutral default."""
        return self.content.get("default", self.known.default)

    def _float(self, name: str) -> FloatParam | None:
        low, high = (self._number(key, self.content.get(key)) for key in ("low", "high"))
        log, prior = self._log(), self._prior()
        step = self._step()
        # With a prior the loader puts the centre of the default recipe in; `low` keeps the place.
        default = low if prior else self._number("default", self._given_default())
        source, when, grid = self._source(), self._when(), self._grid()
        if low is None or high is None or default is None:
            return None
        self._check_range((low, high, default), log, step)
        if prior:
            self._check_prior(prior, low, high, log)
        self._check_grid(grid, *((1 / prior.spread, prior.spread) if prior else (low, high)))
        return FloatParam(
            name=name, low=low, high=high, log=log, step=step, default=default, source=source,
            when=when, prior=prior, grid=grid,
        )  # fmt: skip

    def _int(self, name: str) -> IntParam | None:
        low, high = (self._bound(key, self.content.get(key)) for key in ("low", "high"))
        log, step = self._log(), self._step()
        default = self._bound("default", self._given_default())
        source, when, grid = self._source(), self._when(), self._grid()
        if low is None or high is None or default is None:
            return None
        if step is not None and step != int(step):
            self._add("step", f"`{step}` is not accepted; accepted is a whole number from 1 up.")
            return None
        self._check_range((low, high, default), log, step)
        if not isinstance(low, str) and not isinstance(high, str):
            self._check_grid(grid, low, high)
        return IntParam(
            name=name, low=low, high=high, log=log, step=int(step or 1), default=default,
            source=source, when=when, grid=tuple(int(value) for value in grid),
        )  # fmt: skip

    def _check_range(
        self, values: tuple[float | str, float | str, float | str], log: bool, step: float | None
    ) -> None:
        """Check low, high and default with each other, where they are numbers already."""
        low, high, default = values
        if isinstance(low, (int, float)):
            self._check_log(low, log, step)
        if isinstance(low, str) or isinstance(high, str):
            return
        if low > high:
            self._add(
                "low", f"`{low}` is above `high`, which is `{high}`. Swap them or change one."
            )
            return
        if step and abs((high - low) / step - round((high - low) / step)) > 1e-8:
            last = low + (high - low) // step * step
            self._add(
                "high", f"`{high}` is not on a step of {step} from {low}. Set it to {last:g}."
            )
        if not isinstance(default, str) and not low <= default <= high:
            self._add(
                "default",
                f"`{default}` is not in the range from {low} to {high}. Choose one in it.",
            )
        elif not isinstance(default, str) and step:
            offset = (default - low) / step
            if abs(offset - round(offset)) > 1e-8:
                self._add(
                    "default", f"`{default}` is not on a step of {step} from {low}. Choose one."
                )

    def _check_log(self, low: float, log: bool, step: float | None) -> None:
        if log and low <= 0:
            example = "1" if self.known.kind is int else "1e-6"
            self._add(
                "low",
                f"`{low}` is given, but `log: true` needs low > 0."
                f" Set low, for example, to {example}.",
            )
        if log and step is not None:
            self._add(
                "step", f"`{step}` is given, but `log: true` takes no step. Remove one of them."
            )

    def _log(self) -> bool:
        log = self.content.get("log", False)
        if not isinstance(log, bool):
            self._add("log", f"`{log}` is not accepted; accepted: true, false.")
        return log is True

    def _step(self) -> float | None:
        step = self.content.get("step")
        if step is None:
            return None
        if (
            isinstance(step, bool)
            or not isinstance(step, (int, float))
            or not 0 < step < float("inf")
        ):
            self._add("step", f"`{step}` is not accepted; accepted is a number above 0.")
            return None
        return step

    def _source(self) -> str:
        source = self.content.get("source", "")
        if not isinstance(source, str):
            self._add("source", f"`{source}` is not accepted; accepted is text.")
        return str(source)

    def _when(self) -> tuple[Condition, ...]:
        when = self.content.get("when", {})
        if not isinstance(when, Mapping):
            example = "accepted is for example {freezing: bottom_layers}"
            self._add("when", f"`{when}` is not accepted; {example}.")
            return ()
        conditions = []
        for other, values in when.items():
            listed = tuple(values) if isinstance(values, list) else (values,)
            if not listed:
                self._add(f"when.{other}", "The list is empty. Name at least one value.")
            conditions.append(Condition(name=str(other), values=listed))
        return tuple(conditions)

    def _grid(self) -> tuple[float, ...]:
        grid = self.content.get("grid", [])
        numbers = (int,) if self.known.kind is int else (int, float)
        wrong = not isinstance(grid, list) or any(
            isinstance(value, bool) or not isinstance(value, numbers) for value in grid
        )
        if wrong or len(set(grid)) < len(grid):
            self._add("grid", f"`{grid}` is not accepted; accepted is a list of different numbers.")
            return ()
        return tuple(float(value) if self.known.kind is float else value for value in grid)

    def _check_grid(self, grid: tuple[float, ...], low: float, high: float) -> None:
        outside = [value for value in grid if not low <= value <= high]
        if outside:
            self._add(
                "grid", f"`{outside[0]}` is not in the range from {low:g} to {high:g}. Remove it."
            )

    def _prior(self) -> Prior | None:
        prior = self.content.get("prior")
        if prior is None or self.known.kind is not float:
            return None
        if not isinstance(prior, Mapping) or not isinstance(prior.get("centers"), Mapping):
            example = "{by: freezing, centers: {none: 5.0e-5}, spread: 10}"
            self._add("prior", f"`{prior}` is not accepted; accepted is for example {example}.")
            return None
        self._check_keys(prior, _PRIOR, "prior")
        if "default" in self.content:
            self._add("default", "With a prior, the centres are the defaults. Remove this key.")
        centers = {
            str(choice): self._number(f"prior.centers.{choice}", value)
            for choice, value in prior["centers"].items()
        }
        spread = prior.get("spread")
        if isinstance(spread, bool) or not isinstance(spread, (int, float)) or not 1 < spread < 1e9:
            self._add("prior.spread", f"`{spread}` is not accepted; accepted is a number above 1.")
            return None
        numbers = {choice: value for choice, value in centers.items() if value is not None}
        return Prior(by=str(prior.get("by")), centers=numbers, spread=float(spread))

    def _check_prior(self, prior: Prior, low: float, high: float, log: bool) -> None:
        if not log:
            self._add("prior", "A prior spreads in the logarithm. Add `log: true`.")
        for choice, center in prior.centers.items():
            if not low <= center <= high:
                self._add(
                    f"prior.centers.{choice}",
                    f"`{center}` is not in the range from {low} to {high}. Widen the range.",
                )
