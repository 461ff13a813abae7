"""Reads YAML, and values that users write as text."""

import ast
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from siftune.errors import UsageError
from siftune.study.study import FLOAT


class _Loader(yaml.SafeLoader):
    """Loads YAML 1.1 as PyYAML does, except that 1e-3 is a number, and that dates are text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("!tuple", _tuple)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def parse_yaml(text: str) -> Any:
    """Parses YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def load_yaml(path: Path) -> Any:
    """Returns what a YAML file holds. Raises UsageError with file and line of an error."""
    try:
        return parse_yaml(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the dictionary in a YAML file. Raises UsageError as `load_yaml`."""
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} must contain a dictionary of names and values")
    return values


def parse_value(text: str) -> Any:
    """Returns the value of a text: YAML, in which tuples may be written as in Python."""
    if not text:
        return ""
    with suppress(SyntaxError, ValueError):
        value = ast.literal_eval(text)
        if isinstance(value, list | tuple) and "(" in text:
            return value
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text  # a domain, such as loguniform(…), need not be YAML
