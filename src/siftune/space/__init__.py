"""The space: hyper-parameters, their domains, and the conditions under which they matter."""

from siftune.space.entries import Parameter, When, when
from siftune.space.space import Config, Space, key

__all__ = ["Config", "Parameter", "Space", "When", "key", "when"]
