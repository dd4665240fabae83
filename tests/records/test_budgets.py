import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.budget import Budget, measure_cost, parse_budget
from slm_ray.records.cost import kv_bytes_per_token, num_params
from tests.models.tiny import tiny_config, tiny_family

# SmolLM2-135M's sizes: 134,515,008 parameters.
SMOLLM2 = tiny_family("llama").architecture(
    tiny_config(
        "llama", vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, attention_bias=False, mlp_bias=False,
    )
)  # fmt: skip
WHOLE = num_params(SMOLLM2)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("0.5", 3 * WHOLE // 8, WHOLE // 2),
        ("60M", 45_000_000, 60_000_000),
        ("60M..70M", 60_000_000, 70_000_000),
        ("0..60M", 0, 60_000_000),
        ("0.4..0.7", int(0.4 * WHOLE), int(0.7 * WHOLE)),
        ("40%..60M", int(0.4 * WHOLE), 60_000_000),
        ("1", 3 * WHOLE // 4, WHOLE),
        ("134515008..134515008", WHOLE, WHOLE),
    ],
)
def test_budgets_as_people_type_them(text, low, high):
    budget = parse_budget("params", text, SMOLLM2, 512)
    assert budget.quantity == "params" and budget.is_ceiling == (".." not in text)
    assert (budget.low, budget.high) == (pytest.approx(low, abs=1), pytest.approx(high, abs=1))
    assert budget.holds(budget.low) and budget.holds(budget.high)
    assert not budget.holds(budget.high + 1) and not budget.holds(budget.low - 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no budget: write a ceiling like 0.5 or 60M"),
        ("60M..", "is no budget"),
        ("1..2..3", "is no budget"),
        ("sixty", "'sixty' is not a number"),
        ("70M..60M", "is an empty range"),
        ("0", "is an empty range"),
        ("200M", "--params 200M is more than the teacher's 135M"),
        ("60M..200M", "is more than the teacher's 135M"),
        ("150%", "is a share above 100%"),
        ("1.2", "is a share above 1: give at most 1"),
        ("0.5..1.5", "--params 1.5 is a share above 1"),
        ("120", "is a count of 120 parameters, which no model is made of"),
        ("1e400", "is more than the teacher's 135M"),
    ],
)
def test_what_is_no_budget_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_budget("params", text, SMOLLM2, 512)


def test_other_quantities_have_their_own_whole():
    assert parse_budget("kv_bytes", "0.5", SMOLLM2, 512).high == kv_bytes_per_token(SMOLLM2) // 2
    assert parse_budget("flops", "1", SMOLLM2, 2048).high == measure_cost(SMOLLM2, "flops", 2048)
    with pytest.raises(UserError, match="--kv-bytes 1G is more than"):
        parse_budget("kv_bytes", "1G", SMOLLM2, 512)


def test_an_unknown_quantity_offers_the_nearest():
    with pytest.raises(UserError, match="did you mean 'params'"):
        Budget("param", 0, 1)
    with pytest.raises(UserError, match="did you mean 'flops'"):
        measure_cost(SMOLLM2, "flop", 512)


def test_a_budget_is_readable():
    assert str(parse_budget("params", "60M..70M", SMOLLM2, 512)) == "60M..70M parameters"
