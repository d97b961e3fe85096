"""`fastcnn compare`: compare runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn compare",
        description="Compare runs: what differs in their settings and results, and their curves together.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the curves into a picture")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no network")
    flags = parser.parse_args(argv)
    from fastcnn.report.comparison import as_page, as_text, compare, save_png
    from fastcnn.report.page import write_page
    from fastcnn.report.run import open_run

    comparison = compare([open_run(path) for path in flags.runs])
    print(as_text(comparison))
    for opened in comparison.runs:
        for note in opened.notes:
            print(f"fastcnn: warning: {opened.folder}: {note}", file=sys.stderr)
    if flags.png is not None:
        save_png(comparison, flags.png)
        print(f"wrote {flags.png}")
    if flags.html is not None:
        write_page(flags.html, as_page(comparison), "the comparison", "--html")
        print(f"wrote {flags.html}")
    return 0
