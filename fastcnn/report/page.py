"""HTML pages in one file, which load nothing: templates, style, uPlot and data inside.

All content of runs is text to the template (autoescape) or escaped JSON. The content security policy allows
the scripts of this package alone, by their hashes, and no connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastcnn import files
from fastcnn.report import words
from fastcnn.report.charts import Chart
from fastcnn.version import __version__

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = "uPlot.iife.min.js", "charts.js"
STYLES = "uPlot.min.css", "page.css"
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
MAX_BYTES = 2_000_000
"""Max size of a page."""


def render(template: str, charts: Sequence[Chart], **content: Any) -> str:
    """Return a page.

    Args:
        template: file in `assets`.
        charts: drawn where the template has a figure of their key.
        content: variables of the template, without markup.
    """
    scripts = [(ASSETS / name).read_text("utf-8") for name in SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src " + " ".join(
        f"'sha256-{digest}'" for digest in hashes
    )
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": words.plain,
        "setting": words.value,
        "duration": words.duration,
        "moment": words.moment,
        "rate": words.rate,
    }
    return environment.get_template(template).render(
        policy=Markup(policy),
        license=Markup((ASSETS / "uPlot.LICENSE").read_text("utf-8")),
        scripts=[Markup(script) for script in scripts],
        style=Markup("\n".join((ASSETS / name).read_text("utf-8") for name in STYLES)),
        chart_data=Markup(as_json([chart.as_plain() for chart in charts])),
        charts=charts,
        version=__version__,
        written=time.time(),
        **content,
    )


def as_json(value: object) -> str:
    """Return JSON without a character that ends a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(ESCAPES)


def write_page(path: Path, page: str, what: str, flag: str = "--output") -> None:
    """Write a page.

    Args:
        what: noun for the error message.
        flag: flag that names the path.

    Raises:
        UserError: it cannot be written there.
    """
    path = files.expand_user(path, flag)
    with files.of_flag(flag):
        files.write_text(path, page.encode("utf-8", "replace").decode(), what)
