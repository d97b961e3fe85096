"""Settings: what each is, its limits, the values chosen for "auto", recipes. Imports no torch."""

from fastcnn.config.settings import (
    FIELDS,
    Config,
    OptName,
    SchedName,
    backbone_of,
    flag,
    has_anchors,
    task_of,
    to_plain,
    to_yaml,
)

__all__ = [
    "FIELDS",
    "Config",
    "OptName",
    "SchedName",
    "backbone_of",
    "flag",
    "has_anchors",
    "task_of",
    "to_plain",
    "to_yaml",
]
