"""Makes ``import slm_ray`` enough for transformers' Auto classes to know students of all families.

transformers and torch take seconds to import, so they are not imported here: the classes are registered as soon as
transformers is, whichever of the two is imported first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_students() -> None:
    """Import every family's modelling file; each registers its classes."""
    from slm_ray.models.families import FAMILIES, modeling

    for family in FAMILIES.values():
        importlib.import_module(f"{modeling.__name__}.{family.modeling_file}")


class _AfterTransformers(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds transformers through the other finders, and registers when it is loaded.

    At that moment none of its modules is half imported, so that ours can be imported whole.
    """

    loader: importlib.abc.Loader
    is_asking = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's own spec, loaded by this object."""
        if name != "transformers" or self.is_asking:
            return None
        self.is_asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.is_asking = False
        if spec is not None and isinstance(spec.loader, importlib.abc.Loader):
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As its own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load it with its own loader, which is its loader from then on, and register."""
        sys.meta_path.remove(self)  # only now: many libraries look for transformers without loading it
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        register_students()


def register_when_needed() -> None:
    """Register now if transformers is loaded, else as soon as it is."""
    if "transformers" in sys.modules:
        register_students()
    elif not any(isinstance(finder, _AfterTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTransformers())
