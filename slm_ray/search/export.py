"""Winners as Hugging Face model folders, each with its tokenizer, card and lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm_ray.config.version import VERSION
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.loading import quiet_transformers
from slm_ray.records.files import whole_folder, write_json, write_text
from slm_ray.records.lineage import CARD_FILE, LINEAGE_FILE
from slm_ray.records.subnet import SubnetSpec
from slm_ray.report import model_card, parse_run
from slm_ray.search.inputs import SearchInputs


def export_winner(
    inputs: SearchInputs, spec: SubnetSpec, folder: Path, lineage: dict[str, Any], student: Any = None
) -> None:
    """Save a winner; the folder appears whole or not at all.

    Args:
        inputs: What the search started from.
        spec: What the winner keeps.
        folder: Where it goes.
        lineage: What is written beside it about where it came from.
        student: The winner as a model, where its weights were changed; else it is extracted.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    teacher = inputs.teacher
    with quiet_transformers(), whole_folder(folder) as temporary:
        if student is None:
            student = extract(teacher.state(), teacher.config(), teacher.family(), spec)
        save_student(student, temporary)
        teacher.tokenizer().save_pretrained(temporary)
        details = lineage | {"slm_ray": VERSION, "spec": spec.to_json()}
        write_json(temporary / LINEAGE_FILE, details)


def write_cards(run: Path, result: dict[str, Any], config: dict[str, Any], inputs: SearchInputs, date: str) -> None:
    """Write every winner's model card from the run's result."""
    records = parse_run(run, config=config, environment={}, trials=[], result=result)
    for model in records.front:
        if model.winner is None:
            continue
        folder = run / "winners" / str(model.winner)
        card = model_card(records, model, tokens_digest=inputs.calibration.digest, path=str(folder), date=date)
        write_text(folder / CARD_FILE, card)
