"""`python -m fastcnn` is `fastcnn`."""

from fastcnn.cli import main

raise SystemExit(main())
