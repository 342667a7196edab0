"""What is imported as `flwr`, where an app's own lines of import stay as they are."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

from konvoi.compat import flower
from konvoi.errors import JobError

FLOWER = "flwr"
ROOMS = (
    "app",
    "client",
    "clientapp",
    "common",
    "server",
    "server.strategy",
    "serverapp",
    "simulation",
)  # that `import flwr` loads


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """`flwr` and whatever is below it: modules with all names of `konvoi.compat.flower`, which miss what it misses."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        is_flower = name.partition(".")[0] == FLOWER
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_flower else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == FLOWER:
            for room in ROOMS:
                importlib.import_module(f"{FLOWER}.{room}")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return getattr(flower, name)


def stand_in() -> None:
    """From here on `import flwr`, and imports of what is in it, find what is here: an app for Flower keeps its lines
    and gets two more, above them. Flower itself need not be installed, and is not looked for.

        from konvoi.compat import flower
        flower.stand_in()

    Raises: JobError where it was imported already.
    """
    if any(isinstance(one, _Finder) for one in sys.meta_path):
        return
    if FLOWER in sys.modules:
        hint = "flower.stand_in() above the imports of flwr"
        raise JobError("Flower itself was imported before", found=sys.modules[FLOWER].__file__, hint=hint)
    sys.meta_path.insert(0, _Finder())
