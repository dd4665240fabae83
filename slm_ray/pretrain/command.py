"""``python -m slm_ray.pretrain``: the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.options import add_command_flags, build_config, load_config, refuse_changes
from slm_ray.config.parser import Parser
from slm_ray.pretrain.config import PretrainConfig, default_out
from slm_ray.records.files import read_json
from slm_ray.runtime.commands import command_line
from slm_ray.runtime.runfolder import CONFIG_FILE, RunFolder, find_run

MAY_CHANGE = (
    "workers", "min_workers", "threads", "concurrent", "device", "address", "tracker", "engine", "zero", "offload",
    "micro_batch", "launcher", "activation_checkpointing", "keep_last", "spike", "storage",
)  # fmt: skip


def make_parser() -> Parser:
    """The command's parser: a flag per option, and a few that are not options of a run."""
    parser = Parser(prog="python -m slm_ray.pretrain", description="Pretrain students with the teacher's help.")
    parser.add_argument("--resume", type=Path, default=None, metavar="RUN", help="continue the run in this folder")
    parser.add_argument("--export", type=Path, default=None, metavar="CHECKPOINT",
                        help="write this checkpoint (…/checkpoints/step-…) as a model folder at --out")  # fmt: skip
    add_command_flags(parser, PretrainConfig, dry_run="print what would be done and what it costs; spend nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Pretrain.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, resume, dry_run, export = (given.pop(name) for name in ("config", "resume", "dry_run", "export"))
    given.pop("debug")
    command = command_line("python -m slm_ray.pretrain", argv)
    if export is not None:
        return _export(export, given)
    if resume is not None and dry_run:
        raise UserError("--dry-run shows what a new run would cost, and --resume continues one: give one of them")
    if resume is not None:
        return _resume(resume, config_file, given)
    config = load_config(PretrainConfig, config_file, given)
    config.check()
    if dry_run:
        from slm_ray.pretrain.dry_run import print_plan

        print_plan(config)
        return 0
    if _is_follower(config):
        return 0
    out = Path(config.out) if config.out else default_out(datetime.now().strftime("%Y%m%d-%H%M%S"))
    folder = RunFolder.create(out, config.to_json() | {"command": command})
    return _execute(config, folder, command, is_new=True)


def _is_follower(config: PretrainConfig) -> bool:
    """Do the work of one of torchrun's ranks other than 0, if this process is one."""
    if config.launcher != "local" or os.environ.get("RANK", "0") == "0":
        return False
    from slm_ray.pretrain.launch import follow

    follow(config)
    return True


def _export(checkpoint: Path, given: dict[str, Any]) -> int:
    from slm_ray.pretrain.results import MODEL_FILE, export_checkpoint

    name = checkpoint.name
    if set(given) != {"out"}:
        raise UserError("--export takes --out FOLDER and no other option")
    if not name.startswith("step-") or not name[5:].isdigit():
        raise UserError(f"--export {checkpoint} is no checkpoint: give RUN/MODEL/checkpoints/step-00000100 or the like")
    model = checkpoint.resolve().parents[1]
    of = model if (model / MODEL_FILE).is_file() and (model.parent / CONFIG_FILE).is_file() else None
    step = export_checkpoint(str(checkpoint.parent), Path(given["out"]), int(name[5:]), of)
    if of is None:
        print("it has no card: the checkpoint does not lie in the folder of its run")
    print(f"step {step} of {checkpoint.parent} is in {given['out']}")
    return 0


def _resume(path: Path, config_file: Path | None, given: dict[str, Any]) -> int:
    """Continue a run with the options it was started with."""
    refuse_changes(given, config_file, MAY_CHANGE, "run")
    find_run(path, given.get("storage"))
    saved = read_json(path / CONFIG_FILE)
    command = str(saved.pop("command", "python -m slm_ray.pretrain"))
    config = build_config(PretrainConfig, saved | given, source=str(path / CONFIG_FILE))
    config.check()
    if _is_follower(config):
        return 0
    folder = RunFolder.open_existing(path, config.storage)
    if folder.file("result.json").exists():
        print(f"{path} is finished already:\n")
        print(folder.file("table.txt").read_text(encoding="utf-8"))
        folder.close()
        return 0
    return _execute(config, folder, command)


def _execute(config: PretrainConfig, folder: RunFolder, command: str, *, is_new: bool = False) -> int:
    from slm_ray.pretrain.growth import GrowingRun
    from slm_ray.pretrain.inputs import HELD_OUT_FOLDER, INPUTS_FILE, TOKENIZER_FOLDER
    from slm_ray.pretrain.run import PretrainRun

    kind = PretrainRun if config.grow_from is None else GrowingRun
    try:
        kind(config, folder, command).execute()
    except UserError:
        if is_new and not folder.file(INPUTS_FILE).exists():
            folder.forget(HELD_OUT_FOLDER, TOKENIZER_FOLDER)
        raise
    finally:
        folder.close()
    return 0
