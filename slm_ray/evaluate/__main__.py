"""``python -m slm_ray.evaluate``."""

import sys

from slm_ray.evaluate.command import main
from slm_ray.runtime.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
