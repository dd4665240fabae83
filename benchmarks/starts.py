"""Starts before training: sub-networks as cut out and with fitted weights, rankings beside an integer program.

python benchmarks/starts.py                          # no search: what the learned rankings keep at 70% and 50%
python benchmarks/starts.py --run RUN                # the front's best models of a finished search
python benchmarks/starts.py --data FOLDER --other python-docs   # calibrated on a folder of texts, measured on more

Weights are fitted on train text. Held-out text and the other text are measured for the table and decide nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import as_ids, load_result, load_stack, machine_line

from slm_ray.config.base import flatten
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.split import HELD_OUT
from slm_ray.models.extraction import extract
from slm_ray.models.reconstruction import ReconstructionSettings, reconstruct
from slm_ray.records.cost import num_params
from slm_ray.records.files import cache_folder
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.runtime.progress import Console
from slm_ray.search.config import SearchConfig
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.reconstruction import measure_model
from slm_ray.search.stack import GenomeStack

TARGETS = ((0.70, 1.4), (0.50, 2.4))  # share of the teacher's parameters, times its perplexity to reach
FARTHEST = 1.3  # times those, on text not calibrated on


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = flatten(SearchConfig())
    parser.add_argument("--run", type=Path, help="folder of a finished search")
    parser.add_argument(
        "--data", default=defaults["data"], help="the text calibrated on: a name, a file, a folder, or a hub id"
    )
    parser.add_argument(
        "--other", action="append", default=[], help="a text to measure on besides; may be given several times"
    )
    parser.add_argument("--other-tokens", type=int, default=8192, help="how much of it")
    parser.add_argument("--held-out-tokens", type=int, default=8192, help="how much of the text calibrated on")
    default = defaults["reconstruct_tokens"]
    parser.add_argument("--tokens", type=int, default=default, help="train tokens that weights are fitted on")
    parser.add_argument(
        "--teacher-text", type=float, default=defaults["teacher_text"], help="share of them that the teacher writes"
    )
    parser.add_argument("--threads", type=int, default=None, help="threads [default: torch's]")
    return parser.parse_args()


def ranked_specs(inputs: SearchInputs, stack: GenomeStack) -> dict[str, SubnetSpec]:
    """What the ranking learned nearest to each size keeps."""
    whole = num_params(inputs.architecture)
    found = {}
    for number, (share, _) in enumerate(TARGETS):
        which = min(number, len(stack.genomes) - 1)
        found[f"ranking, {share:.0%}"] = stack.decode(stack.ranked(which, int(share * whole)))
    return found


def searched_specs(run: Path, inputs: SearchInputs, stack: GenomeStack) -> dict[str, SubnetSpec]:
    """The front's best model, by calibration text, at or below each size."""
    _, result, trials = load_result(run)
    genes = {trial.trial: trial.genes for trial in trials}
    whole, found = num_params(inputs.architecture), {}
    for share, _ in TARGETS:
        under = [member for member in result.front if member.params <= share * whole]
        if under:
            best = min(under, key=lambda member: member.calibration_perplexity)
            found[f"search, {share:.0%}"] = stack.decode(stack.from_text(genes[best.trial]))
    return found


def other_ids(config: SearchConfig, inputs: SearchInputs, name: str, tokens: int) -> torch.Tensor:
    """Tokens of a text that nothing was calibrated on."""
    corpus = load_corpus(name, config.data.text_field, Console())
    return as_ids(prepare_tokens(
        corpus, inputs.teacher.tokenizer(), HELD_OUT, num_tokens=tokens, sequence_length=config.length,
        cache=cache_folder() / "tokens", console=Console(),
    ))  # fmt: skip


def verdict(ratio: float, target: float) -> str:
    """Whether a ratio reaches its target, a miss said as one."""
    return f"{target:.2f}× reached" if ratio <= target else f"{target:.2f}× missed"


def main() -> None:
    """Print the table."""
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    own = SearchConfig().replace(
        data=given.data, reconstruct_tokens=given.tokens, teacher_text=given.teacher_text,
        held_out_tokens=given.held_out_tokens,
    )  # fmt: skip
    config = load_result(given.run)[0] if given.run else own
    inputs, stack = load_stack(config)
    assert inputs.reconstruction is not None
    specs = ranked_specs(inputs, stack)
    specs |= searched_specs(given.run, inputs, stack) if given.run else {}
    texts = {Path(config.data.data).stem: as_ids(inputs.held_out)}
    for name in given.other:
        texts[Path(name).stem] = other_ids(config, inputs, name, given.other_tokens)
    family, hf_config, state = inputs.teacher.family(), inputs.teacher.config(), inputs.teacher.state_as(torch.float32)

    def student(spec: SubnetSpec) -> Any:
        return extract(state, hf_config, family, spec)

    base = {name: measure_model(student(full_subnet(inputs.architecture)), ids).value for name, ids in texts.items()}
    print(f"{machine_line()}, {torch.get_num_threads()} threads")
    written = f", {inputs.reconstruction.written_tokens:,} of them the teacher's own text"
    print(f"fitted on {inputs.reconstruction.num_tokens:,} train tokens of {Path(config.data.data).stem}"
          + (written if inputs.reconstruction.written_tokens else "") + "; teacher: "
          + ", ".join(f"{value:.2f} on {name}" for name, value in base.items()))  # fmt: skip
    print("| start | share | weights | " + " | ".join(f"{name} | × teacher | target" for name in texts) + " |")
    print("|---" * (3 + 3 * len(texts)) + "|")
    models = {name: student(spec) for name, spec in specs.items()}
    rows = {(name, "as cut out"): {text: measure_model(model, ids).value for text, ids in texts.items()}
            for name, model in models.items()}  # fmt: skip
    start = time.perf_counter()
    pairs = [(models[name], spec) for name, spec in specs.items()]
    settings = ReconstructionSettings(bf16=inputs.precision == "bf16")
    reconstruct(state, hf_config, family, pairs, as_ids(inputs.reconstruction), settings)
    seconds = time.perf_counter() - start
    for name, model in models.items():
        rows[name, "fitted"] = {text: measure_model(model, ids).value for text, ids in texts.items()}
    whole = num_params(inputs.architecture)
    for (name, weights), values in rows.items():
        share = num_params(specs[name].architecture_in(inputs.architecture)) / whole
        target = next(limit for size, limit in TARGETS if name.endswith(f"{size:.0%}"))
        scales = (1.0, *[FARTHEST] * len(given.other))
        cells = [f"{value:.2f} | {value / base[text]:.2f}× | {verdict(value / base[text], target * scale)}"
                 for (text, value), scale in zip(values.items(), scales, strict=True)]  # fmt: skip
        print(f"| {name} | {share:.1%} | {weights} | {' | '.join(cells)} |")
    print(f"fitting {len(models)} models side by side: {seconds:.0f} s")


if __name__ == "__main__":
    main()
