"""`python -m fastcnn` is `fastcnn`."""

from fastcnn.cli.main import main

raise SystemExit(main())
