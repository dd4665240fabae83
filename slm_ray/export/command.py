"""``slm-ray export MODEL``: a model as GGUF for llama.cpp and Ollama, for vLLM, or as a plain model of its family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from slm_ray.config.base import Config, Names, add_flags, build_config, option
from slm_ray.config.errors import UserError, nearest
from slm_ray.config.parser import Parser
from slm_ray.config.units import format_bytes, format_count

_KINDS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS",
)  # fmt: skip


class ExportConfig(Config):
    """The options of the command."""

    to: Literal["gguf", "vllm", "plain"] = option(
        "gguf", "gguf: files for llama.cpp; vllm: attention in every layer, silent where there was none; plain: the "
        "family's own class, smaller layers filled up with zeros"
    )  # fmt: skip
    quantize: Names = option((), "gguf: types of the weights, a file each [default: the model's own]")
    out: str | None = option(None, "folder to write [default: MODEL-gguf, MODEL-vllm or MODEL-plain]")

    @field_validator("quantize")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(kind.upper() for kind in value)
        for kind in value:
            if kind not in _KINDS:
                raise ValueError(f"'{kind}' is not one of them: {nearest(kind, _KINDS)}")
        return value


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="python -m slm_ray.export", description="Write a model for the programs that serve it.")
    parser.add_argument("model", metavar="MODEL", help="folder of a winner or of any other model")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    add_flags(parser, ExportConfig)
    return parser


def main(argv: Sequence[str]) -> int:
    """Write the model.

    Raises:
        UserError: There is no such model, or it cannot be written in that format.
    """
    given = vars(make_parser().parse_args(list(argv)))
    folder = Path(given.pop("model")).expanduser()
    given.pop("debug")
    config = build_config(ExportConfig, given)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model directory: give one that has a config.json, such as RUN/winners/0")
    if config.to != "gguf" and config.quantize:
        raise UserError("--quantize is for --to gguf: leave it out")
    whole = folder.resolve()
    out = Path(config.out).expanduser() if config.out else whole.with_name(f"{whole.name}-{config.to}")
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out, or delete it")
    (_to_gguf if config.to == "gguf" else _to_folder)(folder, out, config)
    return 0


def _load(folder: Path) -> tuple[Any, Any, str]:
    """A model in fp32, its family, and the type of its weights on the disk.

    Raises:
        UserError: It does not load, or no family is declared for it.
    """
    from slm_ray.models.families import check_model_type
    from slm_ray.models.loading import load_student, read_config
    from slm_ray.models.precision import dtype_name

    config = read_config(folder)
    family = check_model_type(str(folder), config.model_type, config.to_dict())
    return load_student(folder, str(folder)), family, dtype_name(config.dtype)


def _to_folder(folder: Path, out: Path, config: ExportConfig) -> None:
    from slm_ray.data.tokenizers import load_tokenizer
    from slm_ray.models.extraction import save_student
    from slm_ray.models.padding import give_all_attention, pad_to_plain
    from slm_ray.records.cost import num_params
    from slm_ray.records.files import whole_folder

    model, family, dtype = _load(folder)
    padded = (pad_to_plain if config.to == "plain" else give_all_attention)(model, family)
    with whole_folder(out) as temporary:
        saved = save_student(padded, temporary, load_tokenizer(folder), dtype)
    before, after = (num_params(family.architecture(one.config)) for one in (model, padded))
    cost = f"{format_count(after)} parameters where {format_count(before)} compute" if after > before else "no padding"
    is_plain = padded.config.model_type == family.model_type
    kind = "plain" if is_plain else "layer by layer"
    print(f"{out}: a {family.model_type} model, {kind}, {cost}, {format_bytes(saved.bytes)}")
    if config.to == "vllm":
        flags = "" if is_plain else " --trust-remote-code --model-impl transformers"
        print(f"Next: vllm serve {out}{flags}")


def _to_gguf(folder: Path, out: Path, config: ExportConfig) -> None:
    from slm_ray.export.gguf_file import OWN_KINDS, check_kinds, requantize, uneven_rows, write_gguf
    from slm_ray.records.files import whole_folder, write_text

    check_kinds(config.quantize)
    model, family, dtype = _load(folder)
    own = dtype.upper().replace("FP", "F")
    kinds = config.quantize or (own,)
    if uneven := uneven_rows(model) if set(kinds) - {"F32", "F16", "BF16"} else []:
        print(f"note: rows of {len(uneven)} matrices, {uneven[0]} first, are no multiple of 32 numbers: they stay F16")
    with whole_folder(out) as temporary:
        own_name = folder.resolve().name
        name = f"winner-{own_name}" if own_name.isdigit() else own_name
        base = temporary / f"{name}-{own}.gguf"
        for kind in kinds:
            file = temporary / f"{name}-{kind}.gguf"
            if kind in OWN_KINDS:
                write_gguf(model, family, folder, file, kind)
                continue
            if not base.exists():
                write_gguf(model, family, folder, base, own)
            requantize(base, file, kind)
        if own not in kinds:
            base.unlink(missing_ok=True)
        first = f"{name}-{kinds[0]}.gguf"
        write_text(temporary / "Modelfile", f"FROM ./{first}\n")
    files = sorted(out.glob("*.gguf"))
    for file in files:
        print(f"{file}: {format_bytes(file.stat().st_size)}")
    print(f"Next: llama-cli -m {files[0]} -p 'Once upon a time'\n      ollama create {name} -f {out / 'Modelfile'}")
