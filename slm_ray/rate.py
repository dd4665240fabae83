"""``python -m slm_ray.rate``: people compare what models wrote; see ``slm_ray/evaluate/rating``."""

import sys

from slm_ray.evaluate.rating.command import main
from slm_ray.runtime.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
