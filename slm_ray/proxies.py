"""``python -m slm_ray.proxies``: how well each proxy agrees with quality after training."""

import sys

from slm_ray.runtime.commands import run_command
from slm_ray.studies.proxies_command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
