"""Whether this machine may talk to Weights & Biases, found out without asking anybody."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

DEFAULT_SERVER = "https://api.wandb.ai"


def wandb_project() -> str:
    """The project that runs go to: ``WANDB_PROJECT``, or ``slm_ray``."""
    return os.environ.get("WANDB_PROJECT") or "slm_ray"


def has_key() -> bool:
    """Whether there is a key for the server: in the environment, or in the file that ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER).hostname or ""
    for name in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            if netrc.netrc(Path(name).expanduser()).authenticators(host):
                return True
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            continue
    return False


def wandb_mode() -> str:
    """``WANDB_MODE`` if set; else online with a key at hand, offline without. Never one that would ask for a key."""
    mode = os.environ.get("WANDB_MODE") or "online"
    return "offline" if mode == "online" and not has_key() else mode
