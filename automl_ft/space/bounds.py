"""What does a bound such as `num_layers - 1` come to, for one model?

The bounds of a whole-number range may name facts of the model. The parser knows `+`, `-`, `*`,
`//`, parentheses, whole numbers and the names in `FACTS`; nothing is ever evaluated by Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from automl_ft.errors import did_you_mean

__all__ = ["FACTS", "BoundError", "check_bound", "evaluate_bound"]

FACTS = ("num_layers",)
"""Facts of the model that a bound may name."""

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_LONGEST = 60


class BoundError(ValueError):
    """A bound cannot be read; the message says what is wrong with it."""


def check_bound(text: str) -> None:
    """Refuse what `evaluate_bound` could not evaluate for any model.

    Args:
        text: The bound as it was written.

    Raises:
        BoundError: It is not an expression over whole numbers and `FACTS`.
    """
    evaluate_bound(text, dict.fromkeys(FACTS, 12))


def evaluate_bound(text: str, facts: Mapping[str, int]) -> int:
    """Evaluate a bound.

    Args:
        text: The bound as it was written, such as `num_layers // 2`.
        facts: Facts of the model by name.

    Returns:
        Its value.

    Raises:
        BoundError: It is not an expression over whole numbers and the facts, or divides by zero.
    """
    if len(text) > _LONGEST:
        raise BoundError(f"`{text[:_LONGEST]}...` is longer than {_LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise BoundError(f"`{text}` is no whole number and no expression") from error
    return _evaluate(tree.body, text, facts)


def _evaluate(node: ast.expr, text: str, facts: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return _fact(node.id, facts)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_evaluate(side, text, facts) for side in (node.left, node.right))
        if isinstance(node.op, ast.FloorDiv) and right == 0:
            raise BoundError(f"`{text}` divides by zero")
        return _OPERATORS[type(node.op)](left, right)
    raise BoundError(f"`{text}` uses more than `+`, `-`, `*`, `//`, whole numbers and names")


def _fact(name: str, facts: Mapping[str, int]) -> int:
    if name not in facts:
        raise BoundError(
            f"`{name}` is no fact of the model. {did_you_mean(name, facts)}".rstrip(".?")
        )
    return facts[name]
