"""What ends a run: the sentence where models failed, and the type and size of what is exported."""

import pytest

from slm_ray.config.base import build_config
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.results import export_dtype, failed_models, results_table
from slm_ray.records.training import ModelOutcome, SpentFlops, TrainEvaluation, TrainFailure

FLOPS = SpentFlops(own=1.0)


def outcome(name, error=None, **more):
    evaluation = TrainEvaluation(step=0, tokens=0, loss=2.0, stderr=0.1, bits_per_byte=0.5, eval_tokens=9, flops=FLOPS,
                                 seconds=1.0)  # fmt: skip
    return ModelOutcome(
        name=name, status="failed" if error else "done", error=error, start="student", params=1000, search_flops=0.0,
        capture_flops=0.0, flops_exact=True, checkpoints="c", begin=None, evals=(evaluation,), flops=FLOPS, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("failed", "done", "resumable", "says"),
    [
        (["a"], [], False, "a: the loss is nan"),
        (["a"], [], True, "a: the loss is nan"),
        (["a"], ["b"], False, "1 of 2 models failed (a): a: the loss is nan; the other is finished"),
        (["a", "b"], ["c", "d"], True, "2 of 4 models failed (a, b): a: the loss is nan; the other 2 are finished"),
        (["a", "b"], [], False, "2 of 2 models failed (a, b): a: the loss is nan"),
    ],
)
def test_others_are_named_where_there_are_others_and_a_resume_where_it_can_help(failed, done, resumable, says):
    results = [outcome(name, f"{name}: the loss is nan") for name in failed] + [outcome(name) for name in done]
    error = failed_models(results, {name: TrainFailure(message="", resumable=resumable) for name in failed})
    assert str(error) == says and error.is_resumable == resumable


def test_the_table_says_size_and_type_of_the_weights():
    lines = results_table([outcome("a", bytes=2000 * 1024, dtype="bf16", tokens=5, seconds=1.0), outcome("b", "broke")])
    assert "1.95 MiB bf16" in lines[1] and lines[2].endswith("failed: broke")


@pytest.mark.parametrize(("given", "own", "found"), [("auto", "bf16", "bf16"), ("auto", "fp32", "fp32"),
                                                     ("fp16", "bf16", "fp16")])  # fmt: skip
def test_a_models_own_type_is_kept_unless_another_is_given(given, own, found):
    config = build_config(PretrainConfig, {"student": "x", "dtype": given})
    assert export_dtype(config, type("Model", (), {"dtype": own})) == found
