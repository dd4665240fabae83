"""An evaluation in which three models wrote something, as its records."""

from __future__ import annotations

import json
from pathlib import Path

from slm_ray.records.base import SCHEMA_VERSION, write_record
from slm_ray.records.evaluation import EvaluationResult, ModelFigures
from slm_ray.records.files import write_json
from slm_ray.records.measurement import GenerationFigures, GenerationRecord, GenerationSettings, Sample

PROMPTS = {f"p{number}": f"Beginning {number}" for number in range(6)}
SETTINGS = GenerationSettings(
    max_new_tokens=8, temperature=0, top_p=1, seed=0, references=False, prompts_digest="0" * 16
)


def write_model(run: Path, name: str, texts: dict[str, str], prompts: dict[str, str] = PROMPTS) -> ModelFigures:
    """A model's row, and its records: of this evaluation, and of an earlier one with another seed."""
    samples = tuple(
        Sample(id=key, domain="all", prompt=prompts[key], reference=None, text=text, tokens=3, ended=False, cut=0)
        for key, text in texts.items()
    )
    for number, settings in enumerate((SETTINGS.model_copy(update={"seed": 1}), SETTINGS)):
        shown = samples if number else (samples[0].model_copy(update={"text": "of another seed"}),)
        figures = GenerationFigures(prompts=len(shown), settings=settings, metrics={}, samples=shown, notes=())
        record = GenerationRecord(
            name="generation", key=str(number), settings={}, model=name, params=1, seconds=0, figures=figures,
            values={}, statistics={}, signatures={},
        )  # fmt: skip
        write_json(run / "models" / f"{name}-0" / f"generation-{str(number) * 8}.json", record.to_json())
    return ModelFigures(name=name, records=f"models/{name}-0", generation=figures)


def write_result(run: Path, *models: ModelFigures) -> None:
    write_record(run, EvaluationResult(models=models))


def write_run(run: Path, names: tuple[str, ...] = ("winner", "teacher", "first-n")) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        # All wrote the same after p0; otherwise nobody did, and a text does not say who wrote it.
        texts = {key: f" {key} {sum(map(ord, name))}" if key != "p0" else "alike" for key in PROMPTS}
        rows.append(write_model(run, name, texts))
    write_result(run, *rows, ModelFigures(name="text-only", records="models/text-only-0"))
    return run


def save_ratings(path: Path, page: str, rater: str, ratings: dict[str, str], **changes) -> Path:
    """A file as the page's Save button writes it."""
    rows = [{"item": item, "choice": choice} for item, choice in ratings.items()]
    path.write_text(json.dumps({"version": SCHEMA_VERSION, "page": page, "rater": rater, "ratings": rows} | changes))
    return path
