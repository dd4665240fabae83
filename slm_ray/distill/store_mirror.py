"""A logit store that is kept at a storage as well while it is captured, and fetched from there on another machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from slm_ray.distill.store_format import work_folder
from slm_ray.runtime.mirror import Mirror, bring_back, lies_in_a_mirror
from slm_ray.runtime.progress import Console
from slm_ray.runtime.storage import storage_of


@contextlib.contextmanager
def mirrored_store(out: Path, storage: str | None, console: Console) -> Iterator[None]:
    """Fetch what there is of a store, and keep it at the storage while the block makes it.

    Args:
        out: What the store is called.
        storage: As ``--storage`` has it; None: ``$SLM_RAY_STORAGE``, or nowhere if that is not set.
        console: Where to say what goes wrong.

    Raises:
        UserError: The storage cannot be reached.
    """
    place, work = storage_of(storage), work_folder(out)
    if not place or lies_in_a_mirror(out):
        yield
        return
    if not out.exists():
        bring_back(work, place, out.name)  # a whole one takes its name as one does that was killed just before
    now = out if out.exists() else work
    now.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(now, place, console.line, out.name)
    mirror.start()
    try:
        yield
    finally:
        mirror.stop(moved_to=out if out.exists() else work)
