"""More words for a model: new rows are means of old ones, and everything else is as it was."""

import pytest
import torch

from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract
from slm_ray.models.vocabulary import extend_vocabulary
from tests.models.tiny import NAMES, VOCAB, axis_specs, tiny_family, tiny_ids, tiny_model

PARTS = [[1, 2], [3], [4, 5, 6]]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("name", NAMES)
def test_new_rows_are_means_and_the_rest_is_untouched(name):
    model, before = tiny_model(name), tiny_model(name)
    extend_vocabulary(model, VOCAB, PARTS)
    rows = model.config.vocab_size
    assert rows % 64 == 0 and rows >= VOCAB + 3
    tied = before.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    for table, old in (
        (model.get_input_embeddings(), before.get_input_embeddings().weight),
        (model.get_output_embeddings(), before.get_output_embeddings().weight),
    ):
        assert table.weight.shape == (rows, old.shape[1]) and torch.equal(table.weight[:VOCAB], old)
        for number, ids in enumerate(PARTS):
            torch.testing.assert_close(table.weight[VOCAB + number], old[ids].mean(0))
        torch.testing.assert_close(table.weight[VOCAB + 3 :], old.mean(0).expand(rows - VOCAB - 3, -1))
    others = {key: value for key, value in before.state_dict().items() if value.shape[0] != VOCAB}
    assert others and all(torch.equal(value, model.state_dict()[key]) for key, value in others.items())
    torch.testing.assert_close(logits(model, tiny_ids())[..., :VOCAB], logits(before, tiny_ids()), rtol=1e-5, atol=1e-5)


def test_a_student_whose_layers_differ_is_extended_and_saved(tmp_path):
    from transformers import AutoModelForCausalLM

    teacher, family = tiny_model("llama"), tiny_family("llama")
    spec = axis_specs(family.architecture(teacher.config))["everything"]
    student = extend_vocabulary(extract(teacher.state_dict(), teacher.config, family, spec), VOCAB, PARTS)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, VOCAB, VOCAB + 2]])
    assert torch.equal(logits(again, ids), logits(student, ids))


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(UserError, match="they are not of one model"):
        extend_vocabulary(tiny_model("llama"), VOCAB + 1, PARTS)
