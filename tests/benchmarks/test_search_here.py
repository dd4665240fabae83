"""What stands in for Ray's part of a search takes whatever the search gives to that part."""

import inspect

import pytest

from benchmarks.algorithms import GatesHere
from benchmarks.peers import search_here
from slm_ray.search.gate_pool import GatePool
from slm_ray.search.measuring import measure_in_full
from slm_ray.search.tuning import run_plan


@pytest.mark.parametrize(
    "real, stand_in",
    [
        (run_plan, search_here._run_plan),
        (measure_in_full, search_here._measure_in_full),
        (GatePool, GatesHere),
    ],
)
def test_a_stand_in_takes_every_argument(real, stand_in):
    inspect.signature(stand_in).bind(*inspect.signature(real).parameters)
