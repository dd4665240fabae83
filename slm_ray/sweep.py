"""``python -m slm_ray.sweep``: run a sweep file."""

import sys

from slm_ray.runtime.commands import run_command
from slm_ray.studies.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
