"""Makes ``import slm_ray`` enough for transformers' Auto classes to know our students.

transformers and torch take seconds to import, so they are not imported here: the classes are registered when
transformers' Auto classes are, whichever of the two is imported first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_TRIGGER = "transformers.models.auto.modeling_auto"


def register_students() -> None:
    """Tell transformers' Auto classes about every student class."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from slm_ray.models import hetero
    from slm_ray.models.families import FAMILIES

    for family in FAMILIES.values():
        model_class, config_class = (getattr(hetero, name) for name in family.student_class)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


class _RegisterAfterLoading(importlib.abc.Loader):
    """Runs the module's own loader, then the registration."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        register_students()


class _WaitForAutoClasses(importlib.abc.MetaPathFinder):
    """Finds one module, once, through the finders behind it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfterLoading(spec.loader)
        return spec


def register_when_needed() -> None:
    """Register now if transformers' Auto classes are loaded, else as soon as they are."""
    if _TRIGGER in sys.modules:
        register_students()
    elif not any(isinstance(finder, _WaitForAutoClasses) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForAutoClasses())
