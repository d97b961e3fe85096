"""`fastcnn runs`: list a folder of runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser


def run(argv: Sequence[str]) -> int:
    from fastcnn.report.listing import SORTS, as_plain, as_table, find_runs

    parser = Parser("fastcnn runs", description="List a folder of runs.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="(%(default)s)")
    parser.add_argument("--sort", choices=tuple(SORTS), default="when", help="order (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    flags = parser.parse_args(argv)
    runs = sorted(find_runs(flags.folder), key=SORTS[flags.sort])
    print(json.dumps([as_plain(run) for run in runs], indent=1) if flags.json else as_table(runs))
    for run in runs:
        for note in run.notes:
            print(f"fastcnn: warning: {run.folder}: {note}", file=sys.stderr)
    return 0
