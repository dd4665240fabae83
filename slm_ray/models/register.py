"""Makes ``import slm_ray`` enough for transformers' Auto classes to know our own models.

transformers and torch take seconds to import, so they are not imported here: the classes are registered when
transformers' Auto classes are, whichever of the two is imported first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_AUTO_CLASSES = "transformers.models.auto.modeling_auto"
_STUDENTS, _POSITIONS = "slm_ray.models.hetero", "slm_ray.models.positions"


def _classes() -> dict[str, list[tuple[str, str]]]:
    """Module to the names of its (model, config) classes."""
    from slm_ray.models.families import FAMILIES

    return {
        _STUDENTS: [family.student_class for family in FAMILIES.values()],
        _POSITIONS: [("SlmRayPositionsForCausalLM", "SlmRayPositionsConfig")],
    }


def register_students() -> None:
    """Tell transformers' Auto classes about every class of ours.

    Where one of our modules is itself just being imported, and has only now caused the Auto classes to load, nothing is
    done about it: this is called again when it is complete.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, pairs in _classes().items():
        here = sys.modules.get(name)
        if here is not None and not all(hasattr(here, model) for model, _ in pairs):
            continue
        module = importlib.import_module(name)
        for model, config in pairs:
            model_class, config_class = getattr(module, model), getattr(module, config)
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
        if _AUTO_CLASSES in sys.modules:
            try:
                register_students()
            except ImportError:
                _register_at_first_use()


class _AtFirstUse(dict[str, Any]):
    """Configs registered with transformers, ours among them from the first time anybody looks."""

    def __init__(self, mapping: Any) -> None:
        super().__init__(mapping._extra_content)
        self._mapping = mapping

    def _fill(self) -> None:
        self._mapping._extra_content = dict(self)
        try:
            register_students()
            self.update(self._mapping._extra_content)
        except ImportError:  # still in the middle of that import
            self._mapping._extra_content = self

    def __contains__(self, key: object) -> bool:
        self._fill()
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._fill()
        return super().__getitem__(key)


def _register_at_first_use() -> None:
    """For when a family's config, itself half imported, made the Auto classes load: the students need that config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    CONFIG_MAPPING._extra_content = _AtFirstUse(CONFIG_MAPPING)


class _WaitForModule(importlib.abc.MetaPathFinder):
    """Finds one module, once, through the finders behind it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfterLoading(spec.loader)
        return spec


def register_when_needed() -> None:
    """Register now if transformers' Auto classes are loaded, else as soon as they are."""
    if _AUTO_CLASSES in sys.modules:
        register_students()
        return
    for name in (_AUTO_CLASSES, _STUDENTS, _POSITIONS):
        if not any(isinstance(finder, _WaitForModule) and finder.name == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _WaitForModule(name))
