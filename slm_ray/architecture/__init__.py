"""Sizes, units and exact costs of a model and of its sub-networks. Needs no weights and no torch."""

from slm_ray.architecture.budget import Budget, parse_budget
from slm_ray.architecture.cost import flops_per_token, kv_bytes_per_token, num_params
from slm_ray.architecture.scores import UnitScores
from slm_ray.architecture.shape import Architecture, LayerShape, Structure
from slm_ray.architecture.subnet import LayerUnits, SubnetSpec, full_subnet

__all__ = [
    "Architecture",
    "Budget",
    "LayerShape",
    "LayerUnits",
    "Structure",
    "SubnetSpec",
    "UnitScores",
    "flops_per_token",
    "full_subnet",
    "kv_bytes_per_token",
    "num_params",
    "parse_budget",
]
