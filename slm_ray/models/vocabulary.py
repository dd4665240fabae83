"""Embedding and output-head rows for more tokens, or for fewer; nothing else of the model changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save_file

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.data.tokenizer_trimming import read_vocabulary, renumber_settings
from slm_ray.models.extraction import student_config
from slm_ray.models.loading import quiet_transformers
from slm_ray.models.scratch import pad_vocabulary
from slm_ray.models.slicing import slice_state
from slm_ray.models.teachers import MANIFEST_FILE, WEIGHTS_FILE, Teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.files import read_json, whole_folder, write_json
from slm_ray.records.lineage import find_lineage
from slm_ray.records.subnet import SubnetSpec, from_ranges, full_subnet

_TRIMMED_FORMAT = 1  # raise it when the same ids would give another folder


def extended_rows(old_rows: int, num_tokens: int) -> int:
    """Rows for a vocabulary of ``num_tokens``: a multiple of 64, and never fewer than there were."""
    return max(old_rows, pad_vocabulary(num_tokens))


@torch.no_grad()
def extend_vocabulary(model: Any, first_new: int, parts: list[list[int]]) -> Any:
    """Give a model rows for new tokens, each the mean of the rows of the old tokens that its text had been split into.

    That is Fast Vocabulary Transfer (Gee et al., arXiv 2402.09977); for tokens merged from old ones it needs no second
    language and no auxiliary embeddings, as WECHSEL (arXiv 2112.06598) and FOCUS (arXiv 2305.14481) do. An output head
    of its own gets its rows in the same way; a tied one stays tied. Rows behind the last token, up to a multiple of 64,
    are the mean of all old rows, if they are new.
    """
    tables = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings())
    old = [table.weight.detach().clone() for table in tables]
    if len(old[0]) < first_new:
        raise UserError(
            f"the model has {len(old[0]):,} rows for its tokenizer's {first_new:,} tokens: they are not of one model"
        )
    rows = extended_rows(len(old[0]), first_new + len(parts))
    model.resize_token_embeddings(rows, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()][: len(tables)]
    for table, before in zip(tables, old, strict=True):
        weight = table.weight
        weight[: len(before)] = before
        weight[len(before) :] = before[:first_new].float().mean(0).to(weight.dtype)
        for number, ids in enumerate(parts):
            weight[first_new + number] = before[ids].float().mean(0).to(weight.dtype)
        bias = getattr(table, "bias", None)
        if bias is not None and len(bias) == rows:
            bias[first_new:] = bias[:first_new].float().mean().to(bias.dtype)
    model.tie_weights()
    return model


def with_vocabulary(teacher: Architecture, kept: Sequence[int]) -> SubnetSpec:
    """The sub-network that keeps all but some rows of the vocabulary."""
    return dataclasses.replace(full_subnet(teacher), vocabulary=tuple(kept))


def trimmed_teacher(teacher: Teacher, kept: Sequence[int]) -> Teacher:
    """A teacher that reads and writes some of its tokens only: a folder beside its own, made once.

    Its distribution is the whole teacher's restricted to these ids, so it is what a student with them is pruned from
    and distilled from. ``kept``: Ids, ascending.
    """
    spec, family, config = with_vocabulary(teacher.architecture(), kept), teacher.family(), teacher.config()
    key = digest_json({"teacher": teacher.digest, "kept": spec.to_json()["vocabulary"], "format": _TRIMMED_FORMAT})
    folder = teacher.folder.parent / f"trimmed-{key}"
    if not (folder / MANIFEST_FILE).is_file():
        tokenizer, settings = read_vocabulary(teacher.tokenizer()).trim(kept), teacher.generation_config()
        with quiet_transformers(), whole_folder(folder) as temporary:
            state = slice_state(teacher.state(), family, spec, teacher.architecture())
            save_file(state, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
            own = student_config(config, family, spec, teacher.architecture())
            own.dtype = config.dtype
            own.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            if settings is not None:
                renumbered_generation(settings, kept).save_pretrained(temporary)
            manifest = read_json(teacher.folder / MANIFEST_FILE)
            write_json(temporary / MANIFEST_FILE, manifest | {"sha256": sha256_file(temporary / WEIGHTS_FILE)})
    digest = str(read_json(folder / MANIFEST_FILE)["sha256"])[:16]
    return dataclasses.replace(teacher, folder=folder, digest=digest)


def on_ids_of(student: str, teacher: Teacher) -> Teacher:
    """The teacher restricted to the tokens that a student pruned from it keeps."""
    lineage = find_lineage(student)
    kept = lineage.spec.get("vocabulary") if lineage is not None and lineage.spec else None
    if lineage is None or lineage.teacher is None or kept is None or lineage.teacher.digest != teacher.digest:
        return teacher
    return trimmed_teacher(teacher, from_ranges(kept))


def renumbered_generation(settings: Any, kept: Sequence[int]) -> Any:
    """A generation config with the ids of a trimmed vocabulary."""
    return type(settings).from_dict(renumber_settings(settings.to_dict(), kept))
