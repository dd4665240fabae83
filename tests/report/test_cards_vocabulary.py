from huggingface_hub import ModelCard

from slm_ray.report.vocabulary_card import vocabulary_card

VOCABULARY = {
    "model": "/home/me/runs/half/winners/0", "corpus": "swahili", "corpus_digest": "c1", "first_new": 49152,
    "new_tokens": 8000, "rows": 57152, "bytes_per_token": {"before": 2.31, "after": 4.02},
}  # fmt: skip
TEACHER = {"name": "org/teacher", "digest": "d1", "licence": "apache-2.0"}


def test_an_extended_model_says_what_it_was_and_that_it_is_not_trained():
    card = vocabulary_card(VOCABULARY, {"teacher": TEACHER}, remote_code=True, command="slm-ray tokenizer")
    data = ModelCard(card).data
    assert (data.license, data.base_model) == ("apache-2.0", "org/teacher")
    for said in (
        "# A language model with 8,000 new tokens", "| bytes per token now | 4.02 |", "| text | swahili, digest c1 |",
        "| teacher's licence | apache-2.0 |", "not trained afterwards", "slm-ray tokenizer", "trust_remote_code=True)",
    ):  # fmt: skip
        assert said in card, said
    assert "/home/me" not in card


def test_a_model_that_nobody_knows_has_a_card_too():
    card = vocabulary_card({"model": "org/model", "new_tokens": 5}, {}, remote_code=False)
    assert ModelCard(card).data.license == "other" and "org/model" in card
