"""``python -m slm_ray.pretrain``: the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.pretrain.config import MAY_CHANGE, PretrainConfig
from slm_ray.records.training import TABLE_FILE, TrainedModel, TrainResult
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.stage import Stage


def execute(config: PretrainConfig, folder: RunFolder) -> None:
    """Train a run's models, or grow one."""
    if config.growth.grow_from is not None:
        from slm_ray.pretrain.growth import GrowingRun

        return GrowingRun(config, folder).execute()
    from slm_ray.pretrain.run import PretrainRun

    return PretrainRun(config, folder).execute()


def plan(config: PretrainConfig) -> str:
    """The text of ``--dry-run``."""
    from slm_ray.pretrain.forecast import plan_text

    return plan_text(config)


def follow(config: PretrainConfig) -> bool:
    """Do the work of one of torchrun's ranks other than 0, if this process is one."""
    if config.run.launcher != "local" or os.environ.get("RANK", "0") == "0":
        return False
    from slm_ray.pretrain.launch import follow

    follow(config)
    return True


def show(run: Path) -> None:
    """Print the table of a finished run."""
    print((run / TABLE_FILE).read_text(encoding="utf-8"), end="")


def export(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint (``…/checkpoints/step-00000100``) as a model folder."""
    from slm_ray.pretrain.lineage import run_options
    from slm_ray.pretrain.results import export_model

    step, model = checkpoint.name.removeprefix("step-"), checkpoint.resolve().parents[1]
    if not step.isdigit() or not (model / TrainedModel.FILE).is_file():
        raise UserError(f"--export {checkpoint} is no checkpoint of a run: give RUN/MODEL/checkpoints/step-00000100")
    config, command = run_options(model.parent)
    exported = export_model(model, str(checkpoint.parent), out, config, command=command, step=int(step))
    print(f"step {exported.step} of {checkpoint.parent} is in {out} ({exported.dtype})")


@dataclass(frozen=True)
class _Pretrain(Stage[PretrainConfig]):
    """Pretraining, which also exports single checkpoints."""

    def parser(self) -> Parser:
        """The stage's parser, with ``--export``."""
        parser = super().parser()
        parser.add_argument("--export", type=Path, default=argparse.SUPPRESS, metavar="CHECKPOINT",
                            help="write this checkpoint (…/checkpoints/step-…) as a model folder at --out")  # fmt: skip
        return parser

    def main(self, argv: Sequence[str]) -> int:
        """Export a checkpoint, or run the stage."""
        if not any(word.partition("=")[0] == "--export" for word in argv):
            return super().main(argv)
        given = vars(self.parser().parse_args(list(argv)))
        others = {"config", "resume", "dry_run", "debug"}
        if set(given) - others != {"export", "out"} or any(given[name] for name in others - {"debug"}):
            raise UserError("--export takes --out FOLDER and no other option")
        export(given["export"], Path(given["out"]))
        return 0


PRETRAIN = _Pretrain(
    name="pretrain", summary="train winners and other starts with the teacher's help", config=PretrainConfig,
    execute=execute, show=show, plan=plan, result_file=TrainResult.FILE, may_change=MAY_CHANGE,
    default_out=lambda _config, stamp: f"runs/pretrain-{stamp}", follow=follow,
    check=PretrainConfig.check_given,
)  # fmt: skip
main = PRETRAIN.main
