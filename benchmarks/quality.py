"""Quality before training: the front's best models at 70% and 50%, by transformers' own forward pass in fp32.

python benchmarks/quality.py RUN
"""

from __future__ import annotations

import torch
from common import as_ids, load_result, machine_line, run_argument

from slm_ray.models.extraction import extract
from slm_ray.runtime.progress import Console, Progress
from slm_ray.search.inputs import prepare_inputs
from slm_ray.search.rank import bind_genomes, rank_units

LEVELS = ((0.70, 2.0), (0.50, 12.0))


@torch.no_grad()
def perplexity(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Perplexity over all sequences, from the model's own logits."""
    losses = [
        torch.nn.functional.cross_entropy(model(row[None]).logits[0, :-1].float(), row[1:], reduction="sum")
        for row in ids
    ]
    return float(torch.exp(sum(losses) / (ids.numel() - len(ids))))


def main() -> None:
    """Print the table."""
    folder = run_argument(__doc__ or "").parse_args().run
    config, result, trials = load_result(folder)
    inputs = prepare_inputs(config, Console())
    teacher = inputs.teacher
    ranking = rank_units(config, inputs, Progress(Console(), "importance", 1))
    stack = bind_genomes(config, inputs, ranking)
    ids = as_ids(inputs.held_out)
    state, hf_config, family = teacher.state(), teacher.config(), teacher.family()
    genes = {trial["trial"]: trial["genes"] for trial in trials}
    whole = result["teacher"]["cost"]["params"]
    from transformers import AutoModelForCausalLM

    base = perplexity(AutoModelForCausalLM.from_pretrained(teacher.folder, dtype=torch.float32).eval(), ids)
    print(f"{machine_line()}\nheld-out {config.data}, {len(ids)}x{ids.shape[1]} tokens, fp32, teacher {base:.3f}\n")
    print("| at most | parameters | share | perplexity | x teacher | target |\n|---|---|---|---|---|---|")
    for share, target in LEVELS:
        under = [entry for entry in result["front"] if entry["cost"]["params"] <= share * whole]
        if not under:
            continue
        best = min(under, key=lambda entry: entry["calibration_perplexity"])
        student = extract(state, hf_config, family, stack.decode(stack.from_text(genes[best["trial"]])))
        count = sum(parameter.numel() for parameter in student.parameters())
        value = perplexity(student, ids)
        print(f"| {share:.0%} | {count:,} | {count / whole:.4f} | {value:.2f} | {value / base:.3f} | {target} |")


if __name__ == "__main__":
    main()
