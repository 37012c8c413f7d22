"""What is a search space: its parameters, their ranges, defaults and conditions?

A space names some of `specs.hyperparameters.HYPERPARAMETERS`; what it does not name keeps its
neutral default. Reading one from YAML is `space.load`, putting in the facts of a model is
`space.resolve`, letting one grow is `space.growth`, and Optuna is met in `space.suggest` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from automl_ft.errors import ConfigError, Problem, did_you_mean
from automl_ft.specs import codec
from automl_ft.specs.hyperparameters import complete as complete_hyperparameters
from automl_ft.specs.trial import ParamValue

__all__ = [
    "CategoricalParam",
    "Condition",
    "Fixed",
    "FloatParam",
    "IntParam",
    "Parameter",
    "Prior",
    "Sampled",
    "SearchSpace",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One key of `when`: a parameter applies only where another has one of some values."""

    name: str
    """The other parameter."""
    values: tuple[ParamValue, ...]
    """Its values with which the condition holds."""

    def __str__(self) -> str:
        return f"{self.name} = {' or '.join(str(value) for value in self.values)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """Where a float is looked for, given the choice of another parameter."""

    by: str
    """The other parameter: an unconditional one with text as its choices."""
    centers: Mapping[str, float]
    """For each choice the value that is tried first."""
    spread: float
    """Above 1: values are proposed from centre / spread to centre * spread, uniform in log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FloatParam:
    """A float that is searched."""

    name: str
    """Name of the hyperparameter."""
    low: float
    """Smallest value."""
    high: float
    """Largest value, `low` or more."""
    log: bool = False
    """Whether it is searched in the logarithm; needs `low` above 0 and no `step`."""
    step: float | None = None
    """Distance of the values; None for any."""
    default: float
    """What the default recipe takes."""
    source: str = ""
    """Where range and default come from."""
    when: tuple[Condition, ...] = ()
    """All must hold, or the parameter does not apply."""
    prior: Prior | None = None
    """Ranges conditional on another parameter; the default then is the centre."""
    grid: tuple[float, ...] = ()
    """Values of the grid sampler, with a prior multiples of the centre; empty for three."""

    def problem_with(self, value: object) -> str | None:
        """Say what is accepted, if a value is not.

        Args:
            value: The value to check.

        Returns:
            What is accepted, or None if the value is.
        """
        stepped = f" in steps of {self.step:g}" if self.step else ""
        accepted = f"accepted is a float from {self.low:g} to {self.high:g}{stepped}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return accepted
        offset = (value - self.low) / self.step if self.step else 0.0
        is_on_step = abs(offset - round(offset)) < 1e-8
        return None if self.low <= value <= self.high and is_on_step else accepted

    def default_given(self, params: Mapping[str, ParamValue]) -> float:
        """Return the default, given the other parameters.

        Args:
            params: Values of the parameters before this one, fixed ones among them.

        Returns:
            The prior's centre for these, or the default.
        """
        if self.prior is None:
            return self.default
        return self.prior.centers.get(str(params.get(self.prior.by)), self.default)


@dataclass(frozen=True, kw_only=True, slots=True)
class IntParam:
    """A whole number that is searched. Until `space.resolve`, bounds may be expressions."""

    name: str
    """Name of the hyperparameter."""
    low: int | str
    """Smallest value."""
    high: int | str
    """Largest value, `low` or more."""
    log: bool = False
    """Whether it is searched in the logarithm; needs `low` of 1 or more and no `step`."""
    step: int = 1
    """Distance of the values, from 1 up."""
    default: int | str
    """What the default recipe takes."""
    source: str = ""
    """Where range and default come from."""
    when: tuple[Condition, ...] = ()
    """All must hold, or the parameter does not apply."""
    grid: tuple[int, ...] = ()
    """Values of the grid sampler; empty for up to five, spread out."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value, as numbers.

        Raises:
            ValueError: The space was not resolved for a model.
        """
        if isinstance(self.low, str) or isinstance(self.high, str):
            raise ValueError(f"`{self.name}` has bounds that name facts; resolve the space first.")
        return self.low, self.high

    def problem_with(self, value: object) -> str | None:
        """Say what is accepted, if a value is not.

        Args:
            value: The value to check.

        Returns:
            What is accepted, or None if the value is.

        Raises:
            ValueError: The space was not resolved for a model.
        """
        low, high = self.bounds
        stepped = f" in steps of {self.step}" if self.step != 1 else ""
        accepted = f"accepted is a whole number from {low} to {high}{stepped}"
        if isinstance(value, bool) or not isinstance(value, int):
            return accepted
        return None if low <= value <= high and (value - low) % self.step == 0 else accepted

    def default_given(self, params: Mapping[str, ParamValue]) -> int:
        """Return the default, whatever the other parameters are.

        Args:
            params: Values of the parameters before this one.

        Returns:
            The default.

        Raises:
            ValueError: The space was not resolved for a model.
        """
        if isinstance(self.default, str):
            raise ValueError(f"`{self.name}` has a default that names facts; resolve it first.")
        return self.default


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoricalParam:
    """A choice among listed values."""

    name: str
    """Name of the hyperparameter."""
    choices: tuple[ParamValue, ...]
    """At least one value, each once."""
    default: ParamValue
    """What the default recipe takes."""
    source: str = ""
    """Where choices and default come from."""
    when: tuple[Condition, ...] = ()
    """All must hold, or the parameter does not apply."""

    def problem_with(self, value: object) -> str | None:
        """Say what is accepted, if a value is not.

        Args:
            value: The value to check.

        Returns:
            What is accepted, or None if the value is.
        """
        if value in self.choices and not isinstance(value, bool):
            return None
        return f"accepted: {', '.join(str(choice) for choice in self.choices)}"

    def default_given(self, params: Mapping[str, ParamValue]) -> ParamValue:
        """Return the default, whatever the other parameters are.

        Args:
            params: Values of the parameters before this one.

        Returns:
            The default.
        """
        return self.default


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """A hyperparameter that is set, not searched; it is not in the database's parameters."""

    name: str
    """Name of the hyperparameter."""
    value: ParamValue
    """Its value in every trial."""


Sampled = FloatParam | IntParam | CategoricalParam
"""A parameter that is searched."""
Parameter = Sampled | Fixed
"""A parameter of a space."""

_KINDS: Mapping[str, type[Parameter]] = {
    "float": FloatParam,
    "int": IntParam,
    "categorical": CategoricalParam,
    "fixed": Fixed,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Some hyperparameters with what is tried for each; parameters come after their conditions."""

    name: str
    """Name for people."""
    description: str = ""
    """What the space is for."""
    parameters: tuple[Parameter, ...]
    """Its parameters; one that others depend on comes before them."""

    @property
    def sampled(self) -> tuple[Sampled, ...]:
        """The parameters that are searched."""
        return tuple(param for param in self.parameters if not isinstance(param, Fixed))

    @property
    def fixed(self) -> dict[str, ParamValue]:
        """The values of the hyperparameters that are set, not searched."""
        return {param.name: param.value for param in self.parameters if isinstance(param, Fixed)}

    def find(self, name: str) -> Parameter | None:
        """Return a parameter by name.

        Args:
            name: Name of a hyperparameter.

        Returns:
            The parameter, or None if the space does not name it.
        """
        return next((param for param in self.parameters if param.name == name), None)

    def active(self, params: Mapping[str, ParamValue]) -> list[str]:
        """Return which searched parameters apply.

        Args:
            params: Values of the parameters; where these and a fixed value differ, these count.

        Returns:
            Names of the parameters whose conditions hold, in order.
        """
        known = {**self.fixed, **params}
        inactive: set[str] = set()
        for param in self.sampled:
            if not _holds(param.when, known, inactive):
                inactive.add(param.name)
        return [param.name for param in self.sampled if param.name not in inactive]

    def default_params(self) -> dict[str, ParamValue]:
        """Return the default recipe.

        Returns:
            The default of every searched parameter that applies.
        """
        return self.complete({})

    def complete(self, partial: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """Fill in the defaults of what is not given.

        Args:
            partial: Values of some parameters; a fixed one may be named with its own value.

        Returns:
            A value for every searched parameter that applies, and for no other, in order.

        Raises:
            ConfigError: `validate_params` finds problems.
        """
        problems = self.validate_params(partial)
        if problems:
            raise ConfigError(problems)
        return {param.name: value for param, value in self._walk(partial)}

    def validate_params(self, params: Mapping[str, ParamValue]) -> list[Problem]:
        """Check values that somebody gave, for instance to put a configuration in line.

        Args:
            params: Values of some parameters; what is missing takes its default.

        Returns:
            A problem for each name that is unknown or does not apply, and each value that is not
            accepted.
        """
        active = {param.name for param, _ in self._walk(params)}
        names = [param.name for param in self.parameters]
        problems = []
        for name, value in params.items():
            param = self.find(name)
            if param is None:
                message = f"The search space has no such parameter. {did_you_mean(name, names)}"
            else:
                message = _problem_with_value(param, value, name in active) or ""
            if message:
                problems.append(Problem(place=name, message=message))
        return problems

    def hyperparameters(self, params: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """Return what a trial of this space runs with.

        Args:
            params: A complete configuration, as `complete` returns it.

        Returns:
            Every hyperparameter there is: searched, fixed, or at its neutral default.
        """
        return complete_hyperparameters({**self.fixed, **params})

    def to_plain(self) -> dict[str, Any]:
        """Return the space as JSON values, to be stored with a study.

        Returns:
            What `from_plain` reads.
        """
        names = {kind: name for name, kind in _KINDS.items()}
        return {
            "name": self.name,
            "description": self.description,
            "parameters": [
                {"kind": names[type(param)], **codec.to_plain(param)} for param in self.parameters
            ],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SearchSpace:
        """Build a space from what `to_plain` made of it.

        Args:
            plain: JSON values.

        Returns:
            The space.

        Raises:
            KeyError: A key is missing, or a parameter is of an unknown kind.
            TypeError: A parameter lacks a field.
        """
        parameters = tuple(codec.from_plain(_KINDS[p["kind"]], p) for p in plain["parameters"])
        return cls(name=plain["name"], description=plain["description"], parameters=parameters)

    def _walk(self, given: Mapping[str, ParamValue]) -> Iterator[tuple[Sampled, ParamValue]]:
        """Yield the searched parameters that apply, each with its given or default value."""
        known = self.fixed
        for param in self.sampled:
            if _holds(param.when, known, ()):
                value = given[param.name] if param.name in given else param.default_given(known)
                known[param.name] = _canonical(param, value)
                yield param, known[param.name]


def _holds(
    when: tuple[Condition, ...], known: Mapping[str, ParamValue], inactive: set[str] | tuple[()]
) -> bool:
    return all(
        condition.name not in inactive
        and condition.name in known
        and known[condition.name] in condition.values
        for condition in when
    )


def _canonical(param: Sampled, value: ParamValue) -> ParamValue:
    """Give a value the type that it is stored with: 1 for a float becomes 1.0."""
    if isinstance(param, CategoricalParam) and value in param.choices:
        return param.choices[param.choices.index(value)]
    if isinstance(param, FloatParam) and type(value) is int:
        return float(value)
    return value


def _problem_with_value(param: Parameter, value: ParamValue, is_active: bool) -> str | None:
    if isinstance(param, Fixed):
        if value == param.value:
            return None
        return (
            f"`{value}` is given, but the search space sets it to `{param.value}`."
            " Leave it out, or change the space."
        )
    if not is_active:
        conditions = " and ".join(str(condition) for condition in param.when)
        return (
            f"`{value}` is given, but it applies only with {conditions}. Add that or leave it out."
        )
    accepted = param.problem_with(value)
    return f"`{value}` is not accepted; {accepted}. Choose such a value." if accepted else None
