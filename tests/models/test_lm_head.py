import pytest
import torch

from slm_ray.models.lm_head import VOCABULARY_SLICE, kl_divergences, next_token_losses
from tests.references import naive_divergences, naive_losses

WIDTH = 16
# Around one slice of the vocabulary, and a last slice of one row.
VOCABULARIES = [2, VOCABULARY_SLICE, VOCABULARY_SLICE + 1, 5000]


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("scale", [0.1, 5.0])  # nearly uniform; nearly certain
def test_losses_are_those_of_whole_logits(vocabulary, scale):
    hidden, head = drawn(40, WIDTH, seed=1, scale=scale), drawn(vocabulary, WIDTH, seed=2)
    targets = torch.randint(vocabulary, (40,), generator=torch.Generator().manual_seed(3))
    expected = naive_losses(hidden, head, targets)
    torch.testing.assert_close(next_token_losses(hidden, head, targets).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_divergences_are_those_of_whole_distributions(vocabulary, scale):
    teacher, student = drawn(40, WIDTH, seed=1, scale=scale), drawn(40, WIDTH, seed=4, scale=scale)
    head = drawn(vocabulary, WIDTH, seed=2)
    found, expected = kl_divergences(teacher, student, head).double(), naive_divergences(teacher, student, head)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found >= 0).all() and not torch.allclose(found, kl_divergences(student, teacher, head).double())


@pytest.mark.parametrize("far", [200.0, 3000.0])
def test_huge_logits_stay_finite(far):
    hidden, head = torch.tensor([[far], [-far]]), torch.tensor([[1.0], [0.0], [-1.0]])
    losses = next_token_losses(hidden, head, torch.tensor([0, 0]))
    torch.testing.assert_close(losses, torch.tensor([0.0, 2 * far]))
    assert torch.isfinite(kl_divergences(hidden, -hidden, head)).all()
