"""`python -m fastcnn` is `fastcnn`."""

from fastcnn.cli.main import command

raise SystemExit(command())
