"""``python -m slm_ray.tokenizer``: train or extend a tokenizer."""

import sys

from slm_ray.pretrain.tokenizer_command import main
from slm_ray.runtime.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
