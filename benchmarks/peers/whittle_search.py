"""Run by the interpreter of an environment with whittle: its NSGA-II over one teacher, by its Python API.

python whittle_search.py FOLDER      # reads problem.json, weights and ids there, writes result.json

Nothing of slm_ray is installed there. The choices are those of whittle's own command, except that numbers of heads are
multiples of the query groups and neurons never more than the teacher's, without which it stops on such a teacher, and
that embedding and depth begin at a third of the teacher's, so that candidates are not spent on far smaller models: not
above, for whittle begins with half the width of every range, which must lie in it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from litgpt import Config
from safetensors.torch import load_file
from syne_tune.config_space import choice, lograndint, randint, uniform
from whittle.exceptions import IllegalSubNetworkError
from whittle.metrics.parameters import compute_parameters
from whittle.models.gpt import GPT
from whittle.search.search import multi_objective_search

_ILLEGAL = 1e9


def load_model(folder: Path, problem: dict[str, Any]) -> GPT:
    """The teacher as whittle's super-network."""
    names = ("n_embd", "n_layer", "n_head", "n_query_groups", "head_size", "intermediate_size", "norm_eps", "rope_base")
    config = Config(
        name="teacher", block_size=problem["sequence_length"], vocab_size=problem["vocab_size"],
        padded_vocab_size=problem["vocab_size"], rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", **{name: problem[name] for name in names},
    )  # fmt: skip
    model = GPT(config)
    model.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    return model.eval()


@torch.no_grad()
def mean_loss(model: GPT, ids: torch.Tensor) -> float:
    """Mean loss in nats per token; ids ``[sequences, length]``."""
    total = 0.0
    for row in ids:
        logits = model(row[None])[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return total / (len(ids) * (ids.shape[1] - 1))


def main(folder: Path) -> None:
    """Search, and write what was tried."""
    problem = json.loads((folder / "problem.json").read_text())
    torch.set_num_threads(problem["threads"])
    torch.manual_seed(problem["seed"])
    model, ids = load_model(folder, problem), load_file(folder / "ids.safetensors")["ids"]
    model.max_seq_length = ids.shape[1]
    whole = mean_loss(model, ids)
    groups = problem["n_query_groups"]
    space = {
        "embed_dim": lograndint(problem["n_embd"] // 3, problem["n_embd"]),
        "num_heads": choice([groups * kept for kept in range(1, problem["n_head"] // groups + 1)]),
        "mlp_ratio": uniform(0.5, problem["intermediate_size"] / problem["n_embd"]),
        "depth": randint(max(1, problem["n_layer"] // 3), problem["n_layer"]),
    }
    tried: list[dict[str, Any]] = []

    def objective(shape: dict[str, Any]) -> tuple[float, float]:
        shape = {name: shape[name] for name in space}
        try:
            model.select_sub_network(shape)
            loss = mean_loss(model, ids)
        except IllegalSubNetworkError as error:
            tried.append({"shape": shape, "loss": None, "error": str(error)})
            return _ILLEGAL, _ILLEGAL
        params = float(compute_parameters(model))
        tried.append({"shape": shape, "loss": loss if loss == loss else None, "params": params})
        return (loss if loss == loss else _ILLEGAL), params

    start = time.perf_counter()
    multi_objective_search(objective, space, search_strategy="nsga2", num_samples=problem["candidates"],
                           seed=problem["seed"], verbose=False)  # fmt: skip
    result = {"seconds": time.perf_counter() - start, "tokens": ids.numel(), "loss_of_the_whole": whole,
              "candidates": json.loads(json.dumps(tried, default=float))}  # fmt: skip
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result, indent=2))
    temporary.rename(folder / "result.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
