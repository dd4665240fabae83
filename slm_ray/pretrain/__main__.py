"""``python -m slm_ray.pretrain``."""

import sys

from slm_ray.pretrain.command import main
from slm_ray.runtime.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
