"""``python -m slm_ray.logits``: write a teacher's logits to a store."""

import sys

from slm_ray.distill.command import main
from slm_ray.runtime.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
