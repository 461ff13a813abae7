"""The space: hyper-parameters, their domains and their conditions."""

from siftune.space.space import Config, Parameter, Space, When, key, when

__all__ = ["Config", "Parameter", "Space", "When", "key", "when"]
