"""Python imports this at its start in a program that `make submit RUN=…` runs, and in its children.

A program that starts Ray itself gives `ray.init` settings of a new cluster. A cluster that runs
already refuses them, so they are dropped, with a line that says so.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

# Arguments that only the start of a cluster can take.
_OF_A_NEW_CLUSTER = (
    "num_cpus",
    "num_gpus",
    "resources",
    "labels",
    "object_store_memory",
    "include_dashboard",
    "dashboard_host",
    "dashboard_port",
    "_system_config",
    "_temp_dir",
    "_memory",
    "_node_ip_address",
)


def joining(init: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `ray.init` for a program that always joins the cluster of $RAY_ADDRESS."""

    @functools.wraps(init)
    def joined(address: str | None = None, **options: Any) -> Any:
        dropped = [name for name in _OF_A_NEW_CLUSTER if name in options]
        if address not in (None, "auto"):
            dropped.insert(0, "address")
        if dropped:
            names = ", ".join(dropped)
            print(f"siftune: ray.init joins the job's Ray, without {names}", file=sys.stderr)
        return init(**{name: value for name, value in options.items() if name not in dropped})

    return joined


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.init = joining(module.init)  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Ray as it is found otherwise, and changes `ray.init` once it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "ray":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("ray")
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
