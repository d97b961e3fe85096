"""Mutated `--config` files: any type in any place, bombs of aliases, tags, values that look like flags."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from fastcnn.config import FIELDS, Config, to_plain, to_yaml
from fastcnn.config.parse import parse
from fastcnn.config.recipes import RECIPES
from fuzz_harness import Kind
from fuzz_mutations import ODD, mutate_text, mutate_value, near

FILE = Path("input/config.yaml")


def _prepare(folder: Path) -> None:
    (folder / "input").mkdir()


def bomb(rng: random.Random) -> str:
    """Return a few lines that stand for very much, are nested very deep, or make objects of Python."""
    levels = rng.choice((3, 9, 30))
    aliases = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 20)
    )
    return rng.choice(
        (
            aliases + "color_jitter: *a2",
            merges,
            "data: &a [*a]",
            "scale: " + "[" * 5000,
            "mean: " + "{a: " * 3000,
            "- " * 5000,
            "? " * 3000,
            "seed: " + "1:" * 5000 + "1",
            "epochs: " + "9" * 50_000,
            "data: !!python/object/apply:os.system ['touch EVIL']",
            "data: !!python/name:evil.make",
            "arch: evil:make",
            "data: !!binary " + "QUJD" * 1000,
            "data: 2001-99-99",
            "data: !!int []",
            "seed: !!timestamp x",
            "decay_milestones: [" + "1, " * 20_000 + "1]",
            "mask_colors: [" + ", ".join(f"'{i:06x}'" for i in range(5000)) + "]",
        )
    )


def mutate(rng: random.Random) -> str:
    how = rng.random()
    if how < 0.15:
        text = bomb(rng)
        FILE.write_text(text)
        return text[:80]
    if how < 0.4:
        data, done = mutate_text(rng, to_yaml(Config()))
        FILE.write_bytes(data)
        return done
    values: dict[str, Any] = {}
    for name in rng.sample(list(FIELDS), rng.choice((1, 1, 2, 5))):
        plain = to_plain(Config())[name]
        values[name] = rng.choice([*ODD, near(rng, plain), rng.choice(list(RECIPES))])
    done = "" if how < 0.7 else mutate_value(rng, values)
    try:
        FILE.write_bytes(yaml.safe_dump(values, allow_unicode=True).encode(errors="surrogatepass"))
    except yaml.YAMLError:  # a key that YAML cannot write
        FILE.write_text(str(values), errors="replace")
    return f"{str(values)[:200]} {done}"


def check() -> None:
    config = parse(["--config", str(FILE)])
    written = {str(name).replace("-", "_") for name in yaml.load(FILE.read_text(), yaml.BaseLoader)}
    changed = {name for name in FIELDS if getattr(config, name) != FIELDS[name].default}
    if "recipe" not in written:
        assert changed <= {*written, "config"}, f"settings out of other settings: {changed - written}"


KINDS = (Kind("yaml", _prepare, mutate, check),)
