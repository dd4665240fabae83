"""``python -m slm_ray.export``."""

import sys

from slm_ray.export.command import main
from slm_ray.runtime.commands import run_command

sys.exit(run_command(main))
