"""Any causal language model through transformers' own classes, with one sentence where that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.errors import UserError, first_line
from slm_ray.models.teachers import check_weight_files, quiet_transformers


@contextlib.contextmanager
def one_sentence(sentence: str) -> Iterator[None]:
    """Load quietly; whatever transformers raises (a dozen types) becomes ``sentence`` and the first line of it.

    Raises:
        UserError: Something was raised inside.
    """
    try:
        with quiet_transformers():
            yield
    except Exception as error:
        raise UserError(f"{sentence}: {first_line(error)}") from error


def read_config(source: Path | str) -> Any:
    """The config of a model folder or hub id, with no code of its own run.

    Raises:
        UserError: There is no such model, or transformers and slm_ray do not know its kind.
    """
    from transformers import AutoConfig

    with one_sentence(f"{source} could not be loaded as a causal language model"):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def load_fp32(folder: Path | str, sentence: str) -> tuple[Any, list[str]]:
    """A causal language model in fp32, and the parameters that it has no weights for, sorted.

    transformers fills those with random numbers after a warning, so they have to be looked at.

    Args:
        folder: A model folder or hub id.
        sentence: What an error begins with.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    check_weight_files(sentence, folder)
    with one_sentence(sentence):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, use_safetensors=True
        )
    return model, sorted(found["missing_keys"])


def load_student(folder: Path | str, name: str) -> Any:
    """A model folder's or hub id's causal LM in fp32, with no code of its own run.

    Args:
        folder: Where it is.
        name: What to call it in an error.

    Raises:
        UserError: It is no causal language model that transformers or slm_ray knows, or lacks some of its weights.
    """
    model, missing = load_fp32(folder, f"{name} could not be loaded as a causal language model")
    if missing:
        raise UserError(
            f"{name} has no weights for {len(missing)} of its parameters, '{missing[0]}' first: give a whole causal "
            "language model"
        )
    return model
