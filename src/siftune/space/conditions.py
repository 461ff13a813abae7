"""Conditions under which a parameter is active, such as `conv3_channels > 0`."""

import ast
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from siftune.space.domains import Value

_OPERATORS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class Condition:
    """A condition such as `conv3_channels > 0 and optimizer != 'sgd'`.

    The text is parsed with ast and never evaluated as Python. Raises ValueError if it is not a
    condition.
    """

    def __init__(self, text: str) -> None:
        try:
            self._node = ast.parse(text, mode="eval").body
        except (SyntaxError, TypeError, ValueError):
            raise ValueError(f"cannot read the condition {text!r}") from None
        self._text = text
        self.names = sorted(set(_references(self._node)))
        if not self.names:
            raise ValueError(f"the condition {text!r} names no parameter")
        self._check(self._node)

    def holds(self, values: Mapping[str, Value]) -> bool:
        return bool(self._value(self._node, values))

    def _check(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            parts = node.values
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            parts = [node.operand]
        elif isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
            parts = [part for part in (node.left, *node.comparators) if not _is_constant(part)]
        elif _reference(node):
            return
        else:
            raise ValueError(
                f"the condition {self._text!r} may contain only comparisons of parameters with "
                "constants, combined with and, or, not"
            )
        for part in parts:
            self._check(part)

    def _value(self, node: ast.expr, values: Mapping[str, Value]) -> Any:
        if name := _reference(node):
            return values[name]
        if isinstance(node, ast.BoolOp):
            combine = all if isinstance(node.op, ast.And) else any
            return combine(self._value(part, values) for part in node.values)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._value(node.operand, values)
        if isinstance(node, ast.Compare):
            operands = [self._value(part, values) for part in (node.left, *node.comparators)]
            return all(
                _OPERATORS[type(op)](a, b)
                for op, a, b in zip(node.ops, operands, operands[1:], strict=False)
            )
        return ast.literal_eval(node)


def with_slashes(text: str, nested: Collection[str]) -> str:
    """Returns a condition in which nested entries, such as optim/lr, are not written optim.lr."""
    for name in nested:
        # ast.unparse writes spaces around the operators that a name seems to have.
        dotted = re.escape(name).replace("/", r"\s*[./]\s*").replace(r"\-", r"\s*-\s*")
        text = re.sub(rf"(?<![\w./'\"-]){dotted}(?![\w./'\"-])", name, text)
    return text


def _reference(node: ast.AST) -> str | None:
    """Returns the parameter that an expression names; None if it is another expression.

    Names may have dots, dashes and slashes: model.lr, batch-size, optim/lr.
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (outer := _reference(node.value)):
        return f"{outer}.{node.attr}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Sub):
        left, right = _reference(node.left), _reference(node.right)
        if left and right:
            return f"{left}{'/' if isinstance(node.op, ast.Div) else '-'}{right}"
    return None


def _references(node: ast.AST) -> Iterator[str]:
    if name := _reference(node):
        yield name
        return
    for child in ast.iter_child_nodes(node):
        yield from _references(child)


def _is_constant(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (TypeError, ValueError):
        return False
    return True
