"""``python -m slm_ray.sweep``."""

import sys

from slm_ray.core.commands import run_command
from slm_ray.sweep.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
