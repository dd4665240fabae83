"""An evaluation in which three models wrote something, as its records."""

from __future__ import annotations

import json
from pathlib import Path

PROMPTS = {f"p{number}": f"Beginning {number}" for number in range(6)}
SETTINGS = {"seed": 0, "max_new_tokens": 8}


def write_model(run: Path, name: str, texts: dict[str, str], prompts: dict[str, str] = PROMPTS) -> dict:
    folder = run / "models" / f"{name}-0"
    folder.mkdir(parents=True)
    samples = [{"id": key, "prompt": prompts[key], "text": text, "tokens": 3} for key, text in texts.items()]
    old = {"settings": SETTINGS | {"seed": 1}, "samples": [{**samples[0], "text": "of another seed"}]}
    (folder / "generation-00000000.json").write_text(json.dumps(old))
    (folder / "generation-11111111.json").write_text(json.dumps({"settings": SETTINGS, "samples": samples}))
    return {"name": name, "records": f"models/{name}-0", "generation": {"settings": SETTINGS}}


def write_run(run: Path, names: tuple[str, ...] = ("winner", "teacher", "first-n")) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        # All wrote the same after p0; otherwise nobody did, and a text does not say who wrote it.
        texts = {key: f" {key} {sum(map(ord, name))}" if key != "p0" else "alike" for key in PROMPTS}
        rows.append(write_model(run, name, texts))
    rows.append({"name": "text-only", "records": "models/text-only-0", "generation": None})
    (run / "evaluate.json").write_text(json.dumps({"models": rows}))
    return run


def save_ratings(path: Path, page: str, rater: str, ratings: dict[str, str], **changes) -> Path:
    """A file as the page's Save button writes it."""
    rows = [{"item": item, "choice": choice, "seconds": 2.5} for item, choice in ratings.items()]
    whole = {"format": "slm_ray ratings 1", "page": page, "rater": rater, "comparisons": len(rows), "ratings": rows}
    path.write_text(json.dumps(whole | changes))
    return path
