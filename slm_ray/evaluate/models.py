"""Any causal language model, found by name, and its loss at every token."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.data.tokenizers import load_tokenizer as tokenizer_of
from slm_ray.models.bundled import BUNDLED
from slm_ray.models.families import context_length
from slm_ray.models.lm_head import final_hidden, next_token_losses
from slm_ray.models.loading import load_student
from slm_ray.models.teachers import download_snapshot, load_teacher
from slm_ray.records.files import explain_os_error

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine's disk: how the user called it, its folder, and the digest of its files' bytes."""

    name: str
    folder: Path
    digest: str


def find_model(name: str) -> ModelFolder:
    """Find a model by name; nothing of it is loaded."""
    path = Path(name).expanduser()
    if name in BUNDLED or path.suffix == ".gguf":
        folder = load_teacher(name).folder
    elif path.is_dir():
        folder = path.resolve()
    elif path.exists() or not _HUB_ID.fullmatch(name) or name.startswith(".") or path.parent.is_dir():
        # A folder here of the owner's name: a slip in a path, which no hub has to be waited for.
        known = " or ".join(BUNDLED)
        raise UserError(f"--model {name} is not a model folder, .gguf file or hub id, nor {known}: check it")
    else:
        folder = download_snapshot(name, "--model")
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {name} is not a model: config.json is missing; give a Hugging Face model folder")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"--model {name} has no *.safetensors weights: give a folder that has (pickles are not read)")
    return ModelFolder(name, folder, _digest(folder))


def count_params(model: ModelFolder) -> int:
    """Its parameters by the headers of its weights; tied ones are stored once, and counted so."""
    total = 0
    for file in sorted(model.folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"--model {model.name}: {file} is damaged ({error}): copy or download it again") from error
    return total


def _digest(folder: Path) -> str:
    try:
        files = [file for pattern in ("config.json", "tokenizer*", "*.safetensors") for file in folder.glob(pattern)]
        return digest_json({file.name: sha256_file(file) for file in sorted(files) if file.is_file()})
    except OSError as error:
        raise explain_os_error(error, f"reading the model in {folder}") from error


def load_tokenizer(model: ModelFolder) -> Any:
    """A model's own tokenizer; a UserError where it has none."""
    sentence = f"--model {model.name} has no tokenizer: put its tokenizer.json into {model.folder}"
    return tokenizer_of(model.folder, sentence)


def embedding_rows(model: Any) -> int:
    """Rows of a model's embedding: the token ids that it knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_ids(name: str, model: Any, largest_id: int) -> None:
    """Make sure that a model has an embedding row for every token id; a UserError where it has none."""
    if largest_id >= (rows := embedding_rows(model)):
        raise UserError(
            f"the tokenizer of {name} gives token id {largest_id:,}, and the model has {rows:,} embedding rows: they "
            "are not of the same model"
        )


class LoadedModel:
    """A model in memory, ready to be measured: its weights stay fp32, matrices are multiplied in ``precision``."""

    def __init__(self, model: ModelFolder, precision: str, device: torch.device) -> None:
        self.name, self.device, self.bf16 = model.name, device, precision == "bf16"
        loaded = load_student(model.folder, f"--model {model.name}")
        self.model = loaded.eval().requires_grad_(False).to(device)
        self.params = sum(parameter.numel() for parameter in self.model.parameters())
        self.head = self._plain_head()

    @torch.no_grad()
    def _plain_head(self) -> torch.Tensor | None:
        """The output head where logits are (scaled) hidden states times it; None where they are capped or biased.

        With it, no token x vocabulary tensor is made.
        """
        head = self.model.get_output_embeddings()
        if head is None or self.model.base_model is self.model:
            return None
        ids = torch.arange(min(_PROBE_TOKENS, head.weight.shape[0]), device=self.device).unsqueeze(0)
        hidden = final_hidden(self.model, ids)
        logits = self.model(ids, use_cache=False).logits.float()
        return head.weight if torch.allclose(hidden @ head.weight.T, logits, rtol=1e-3, atol=1e-4) else None

    def check_fits(self, sequence_length: int, *, separate: bool) -> None:
        """Make sure that it can read sequences, and keep their documents apart where ``separate`` wants that."""
        most = context_length(self.model.config)
        if most and sequence_length > most:
            raise UserError(
                f"--sequence-length {sequence_length} is over the {most} positions of {self.name}: give {most} or less"
            )
        if separate and not self._keeps_documents_apart():
            raise UserError(
                f"{self.name} lets attention cross from one document into the next: give --documents joined for all"
            )

    @torch.no_grad()
    def _keeps_documents_apart(self) -> bool:
        """Whether positions that begin anew are read as another document: a second half is the same without a first."""
        ids = (torch.arange(2 * _PROBE_TOKENS, device=self.device) * 7 % embedding_rows(self.model)).unsqueeze(0)
        half = torch.arange(_PROBE_TOKENS, device=self.device)
        both = self.model(ids, position_ids=torch.cat([half, half]).unsqueeze(0), use_cache=False).logits
        alone = self.model(ids[:, _PROBE_TOKENS:], position_ids=half.unsqueeze(0), use_cache=False).logits
        return torch.allclose(both[:, _PROBE_TOKENS:], alone, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def losses(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """The losses ``[batch * (sequence - 1)]`` of next tokens, fp32, in nats.

        ``ids`` and ``positions`` within documents are ``[batch, sequence]``.
        """
        targets = ids[:, 1:].flatten()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.head is None:
                logits = self.model(ids, position_ids=positions, use_cache=False).logits
                return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="none")
            hidden = final_hidden(self.model, ids, positions)[:, :-1].flatten(0, 1)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        return next_token_losses(hidden.to(dtype), self.head.to(dtype), targets)
