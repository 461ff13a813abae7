"""Domains written as text, and Ray Tune's domains, as those of siftune/space/domains.py."""

import ast
import difflib
import re
from collections.abc import Callable
from typing import Any

from siftune.space import domains, drawn
from siftune.space.domains import Domain
from siftune.space.drawn import Drawn


def _randint(low: int, high: int, *, log: bool = False) -> domains.Integer:
    return domains.Integer(low, high - 1, log=log)  # as in Ray Tune, high itself is excluded


def _choice(options: Any) -> domains.Choice:
    options = options.tolist() if hasattr(options, "tolist") else options
    if not isinstance(options, list | tuple):
        raise ValueError(f"a choice needs a list of options, got {options!r}")
    return domains.Choice(tuple(domains.scalar(option) for option in options))


def _sample_from(source: Any) -> Drawn:
    if not isinstance(source, str) or ".py:" not in source:
        raise ValueError("it must name a dictionary in a file, sample_from('FILE.py:NAME')")
    return Drawn(source)


# The arguments have the same names as in Ray Tune.
_BUILDERS: dict[str, Callable[..., Domain | Drawn]] = {
    "uniform": lambda lower, upper: domains.Float(lower, upper),
    "loguniform": lambda lower, upper: domains.Float(lower, upper, log=True),
    "quniform": lambda lower, upper, q: domains.Float(lower, upper, step=q),
    "qloguniform": lambda lower, upper, q: domains.Float(lower, upper, log=True, step=q),
    "randn": lambda mean=0.0, sd=1.0: domains.Normal.of(mean, sd),
    "qrandn": lambda mean, sd, q: domains.Normal.of(mean, sd, q),
    "randint": lambda lower, upper: _randint(lower, upper),
    "lograndint": lambda lower, upper: _randint(lower, upper, log=True),
    "qrandint": lambda lower, upper, q=1: domains.Integer(lower, upper, step=q),
    "qlograndint": lambda lower, upper, q: domains.Integer(lower, upper, log=True, step=q),
    "choice": lambda categories: _choice(categories),
    "grid_search": lambda values: _choice(values),
    "sample_from": lambda source: _sample_from(source),
}
_CALL = re.compile(rf"\s*(tune\.)?({'|'.join(_BUILDERS)})\s*\(")


# Names that are meant as a domain, even if they are spelled as another library's.
_LIKE_DOMAINS = (*_BUILDERS, "normal", "lognormal", "integer", "categorical", "suggest_float")


def parse(text: str) -> tuple[Domain | Drawn, str | None] | None:
    """Parses text such as `loguniform(1e-5, 1e-2)` or `choice([3, 5]) if depth > 2`.

    Returns the domain and the condition, or None for text that is not a call but a plain string
    value. Raises ValueError for a call that is malformed or that names no domain.
    """
    node = _expression(text)
    if node is None and _CALL.match(text):
        raise ValueError(f"{text!r} is not a domain: is a bracket, quote or comma missing?")
    condition = None
    if isinstance(node, ast.IfExp):
        condition, node = ast.unparse(node.test), node.body
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func).removeprefix("tune.")
    if name not in _BUILDERS:
        # Any other call is text, unless it is a domain's with a typing error.
        if not difflib.get_close_matches(name, _LIKE_DOMAINS, cutoff=0.8) and "tune." not in text:
            return None
        raise ValueError(
            f"unknown domain {name!r}; known: {', '.join(sorted(_BUILDERS))}. "
            f"If it is not meant as a domain, write choice([{text!r}])"
        )
    if any(isinstance(argument, ast.Lambda) for argument in node.args):
        raise ValueError(
            f"{text!r} has a function, which only a Python file can hold: write it there as "
            "tune.sample_from(…) and give --space FILE.py:NAME"
        )
    try:
        arguments = [_literal(argument) for argument in node.args]
        options = {str(k.arg): _literal(k.value) for k in node.keywords}
        return _BUILDERS[name](*arguments, **options), condition
    except (TypeError, ValueError) as error:
        # Python's message calls the builders <lambda>; the user knows them by name.
        problem = str(error).replace("<lambda>", name)
        raise ValueError(f"{text!r} is not a domain: {problem}") from None


_YAML_NAMES = {"true": True, "false": False, "null": None}


def _literal(node: ast.expr) -> Any:
    """Returns the value of a literal, in which true, false and null may be written as in YAML."""

    class Names(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            if name.id not in _YAML_NAMES:
                raise ValueError(f"is {name.id} text? Write '{name.id}', with quotes")
            return ast.Constant(_YAML_NAMES[name.id])

    written = ast.unparse(node)
    try:
        return ast.literal_eval(ast.fix_missing_locations(Names().visit(node)))
    except ValueError as error:
        if "malformed" not in str(error):
            raise
        raise ValueError(
            f"write the value of {written}: only numbers, text and lists are read"
        ) from None


def _expression(text: str) -> ast.expr | None:
    """Parses text as a Python expression. Completes a condition to `… if … else None`."""
    for completed in (text, f"{text} else None"):
        try:
            return ast.parse(completed.strip(), mode="eval").body
        except (SyntaxError, ValueError):  # ValueError: a null character
            continue
    return None


# ── Ray Tune's objects ──────────────────────────────────────────────────────────────────────────


def from_ray(value: Any) -> Domain | Drawn | None:
    """Returns the domain of a Ray Tune object, or None if `value` is not such an object."""
    if isinstance(value, dict) and set(value) == {"grid_search"}:
        return _choice(value["grid_search"])
    if not type(value).__module__.startswith("ray.tune.search.sample"):
        return None
    if entry := drawn.from_ray(value):
        return entry
    kind, sampler = type(value).__name__, value.get_sampler()
    if kind == "Categorical":
        return _choice(value.categories)
    step = domains.plain(getattr(sampler, "q", None))
    scale = type(sampler.get_sampler() if step is not None else sampler).__name__
    if "Normal" in scale:
        normal = sampler.get_sampler() if step is not None else sampler
        return domains.Normal.of(domains.plain(normal.mean), domains.plain(normal.sd), step)
    log = "LogUniform" in scale
    lower, upper = domains.plain(value.lower), domains.plain(value.upper)
    if kind == "Float":
        return domains.Float(lower, upper, log=log, step=step)
    # Ray keeps the upper bound as it was given: randint excludes it, qrandint includes it.
    return domains.Integer(lower, upper - (step is None), log=log, step=1 if step is None else step)
