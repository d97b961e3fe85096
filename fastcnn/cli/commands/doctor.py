"""`fastcnn doctor`: check the installation and the machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from fastcnn.cli.arguments import Parser
from fastcnn.errors import UserError
from fastcnn.files import expand_user
from fastcnn.version import __version__


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "fastcnn doctor",
        description="Check the installation and the machine: one line for each check, with what to do. "
        "Exit status 1 if a check fails.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", metavar="FOLDER", help="also measure how fast its files are read")
    parser.add_argument("--json", action="store_true", help="print JSON, for a bug report")
    flags = parser.parse_args(argv)
    folder = expand_user(flags.data, "--data") if flags.data is not None else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"--data {flags.data}: no such folder; use a folder of images")
    from fastcnn.doctor.checks import run_checks

    findings = []
    for finding in run_checks(str(folder) if folder is not None else None):
        findings.append(finding)
        if not flags.json:
            print(finding, flush=True)
    if flags.json:
        content = {"fastcnn": __version__, "findings": [dataclasses.asdict(f) for f in findings]}
        print(json.dumps(content, indent=1))
    return int(any(finding.status == "FAIL" for finding in findings))
