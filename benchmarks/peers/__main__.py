"""``python -m benchmarks.peers``: rows made one after the other, each in a process of its own, then the table.

python -m benchmarks.peers --out FOLDER [--peers a,b] [--tokens 100k] [--threads 1] [--other TEXTFILE]
python -m benchmarks.peers --out FOLDER --table
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.peers.options import PeerOptions, parse
from benchmarks.peers.study import Study, use_threads
from benchmarks.peers.table import render
from slm_ray.config.errors import UserError
from slm_ray.records.files import write_json


def _one_row(options: PeerOptions) -> None:
    from benchmarks.peers.rows import make_row, measure_teacher, row_folder

    study = Study(options)
    if options.row == "teacher":
        measure_teacher(study)
        return
    failed = row_folder(study, str(options.row)) / "failed.json"
    try:
        make_row(study, str(options.row))
    except UserError as error:
        failed.parent.mkdir(parents=True, exist_ok=True)
        write_json(failed, {"error": str(error)})
        raise
    failed.unlink(missing_ok=True)


def main(argv: Sequence[str]) -> int:
    """Make the rows and print the table.

    Args:
        argv: The arguments.

    Returns:
        0; 1 where a row failed, 2 where the options are wrong.
    """
    try:
        options, only_table = parse(argv)
        if only_table:
            print(render(options.out, options.tokens), end="")
            return 0
        use_threads(options.threads)
        if options.row:
            _one_row(options)
            return 0
        Study(options)  # refuses a folder that was begun with other options
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    codes = [subprocess.run([sys.executable, "-m", "benchmarks.peers", *argv, "--row", name]).returncode
             for name in ("teacher", *options.peers)]  # fmt: skip
    print(render(options.out, options.tokens), end="")
    return int(any(codes))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
