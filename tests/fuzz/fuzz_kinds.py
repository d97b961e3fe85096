"""All kinds of mutated input, by name."""

from __future__ import annotations

import fuzz_checkpoints
import fuzz_exported
import fuzz_labels
import fuzz_tars
import fuzz_yaml
from fuzz_harness import Kind

MODULES = (fuzz_checkpoints, fuzz_exported, fuzz_yaml, fuzz_labels, fuzz_tars)
KINDS: dict[str, Kind] = {kind.name: kind for module in MODULES for kind in module.KINDS}
