"""A picture in the cell of a notebook that is replaced by newer ones. IPython is not imported unasked."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Return whether this code runs in a kernel of Jupyter: a notebook, JupyterLab, Colab or VS Code."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class CellPicture:
    """A PNG in the output of the cell that calls `show` first."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, png: bytes) -> None:
        """Show a picture in place of the last one."""
        from IPython.display import Image, display

        picture = Image(data=png, format="png")
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)
