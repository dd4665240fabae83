import pytest

from tests.studies.tiny_sweep import TinySweep, make_tiny_sweep


@pytest.fixture(scope="session")
def tiny_sweep(tmp_path_factory) -> TinySweep:
    return make_tiny_sweep(tmp_path_factory.mktemp("tiny_sweep"))
