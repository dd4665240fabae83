"""``python -m slm_ray.search``."""

import sys

from slm_ray.runtime.commands import run_command
from slm_ray.search.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
