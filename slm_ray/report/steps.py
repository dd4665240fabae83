"""What to do next: the commands that the summary, the page and the model card offer."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from slm_ray.config.errors import UserError
from slm_ray.records.files import read_json
from slm_ray.records.search import RUINED_RATIO
from slm_ray.report.model import Model, RunRecords
from slm_ray.report.tables import best_name

_PROMPT = "Python is a"
_RUN_FLAGS = ("--params", "--flops", "--kv-bytes", "--out", "--resume")
_TIGHTER = 0.75


def needs_remote_code(run: RunRecords, model: Model) -> bool:
    """Whether a winner loads only with ``trust_remote_code=True`` where slm_ray is not installed.

    The saved model says so itself; one that is not there is judged by its sizes.
    """
    folder = run.winner_folder(model)
    try:
        saved = read_json(run.folder / folder / "config.json") if folder else None
    except UserError:
        saved = None
    if isinstance(saved, Mapping):
        return "auto_map" in saved
    return model.shape is not None and not model.shape.is_uniform


def load_code(path: str, remote_code: bool) -> str:
    """Python that loads a saved winner and lets it write a little."""
    where = json.dumps(path, ensure_ascii=False)
    remote = ", trust_remote_code=True" if remote_code else ""
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({where}{remote})",
            f"tokenizer = AutoTokenizer.from_pretrained({where}{remote})",
            f'inputs = tokenizer("{_PROMPT}", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=30)[0]))",
        ]
    )


def load_command(path: str, remote_code: bool) -> str:
    """The same as one shell command."""
    where = json.dumps(path, ensure_ascii=False)
    remote = ", trust_remote_code=True" if remote_code else ""
    ask = f'("{_PROMPT}", max_new_tokens=30)[0]["generated_text"]'
    code = f'from transformers import pipeline; print(pipeline("text-generation", {where}{remote}){ask})'
    return f"python -c {shlex.quote(code)}"


def resume_command(run: RunRecords) -> str:
    """The command that continues an unfinished run."""
    return f"python -m slm_ray.search --resume {shlex.quote(str(run.folder))}"


def _without_run_flags(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in _RUN_FLAGS:
            skip = True
        elif not word.startswith(tuple(f"{flag}=" for flag in _RUN_FLAGS)):
            kept.append(word)
    return kept


def tighter_command(run: RunRecords) -> str | None:
    """The same search with three quarters of its budget, or None where the run does not say how it was made."""
    if not run.command or run.budget is None or run.teacher is None:
        return None
    best, whole_perplexity = run.best, run.teacher.held_out_perplexity
    if best and best.perplexity and whole_perplexity and best.perplexity > RUINED_RATIO * whole_perplexity:
        return None  # smaller still would be no better
    quantity, _, high = run.budget
    whole = run.teacher.cost_of(quantity)
    try:
        words = _without_run_flags(shlex.split(run.command))
    except ValueError:
        return None
    if not whole or not words:
        return None
    share = f"{max(_TIGHTER * high / whole, 0.01):.2f}"
    return f"{shlex.join(words)} --{quantity.replace('_', '-')} {share}"


def next_steps(run: RunRecords) -> list[tuple[str, str]]:
    """What to do next, each with its code; paths are relative to the run folder."""
    best = run.best
    folder = run.winner_folder(best) if best else None
    steps = []
    if not run.finished:
        steps.append(("Continue this run", resume_command(run)))
    if best and folder:
        steps.append((f"Load {best_name(run)} (from this folder)", load_code(folder, needs_remote_code(run, best))))
    if tighter := tighter_command(run):
        steps.append(("Search again with a tighter budget", tighter))
    return steps
