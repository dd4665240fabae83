"""``python -m slm_ray.proxies``."""

import sys

from slm_ray.core.commands import run_command
from slm_ray.proxies.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
