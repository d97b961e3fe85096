"""`fastcnn report`: write a page about a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcnn.cli.arguments import Parser


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn report",
        description="Write one HTML file about a run: curves, bottleneck, settings, results, environment. It "
        "needs no network.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder of the run, such as runs/resnet50-demo")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (RUN/report.html)")
    parser.add_argument(
        "--samples",
        action="store_true",
        help="add predictions for validation images: loads best.pt and the run's data",
    )
    flags = parser.parse_args(argv)
    from fastcnn.report.page import write_page
    from fastcnn.report.run import open_run
    from fastcnn.report.single import report

    opened = open_run(flags.run)
    output = flags.output or opened.folder / "report.html"
    samples = []
    if flags.samples:
        from fastcnn.report.samples import draw_samples

        samples.append(draw_samples(opened.folder))
    page = report(opened, samples)
    write_page(output, page, "the report")
    print(f"wrote {output} ({len(page.encode()) / 1e3:,.0f} kB)")
    return 0
