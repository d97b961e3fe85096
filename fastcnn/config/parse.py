"""Parse flags, a YAML file or Python keywords into a `Config`. Torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import shlex
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcnn.config.recipes import from_recipe
from fastcnn.config.settings import FIELDS, Config, flag
from fastcnn.config.validate import check
from fastcnn.config.yaml_file import MAX_CHARACTERS, parse_yaml
from fastcnn.errors import UserError
from fastcnn.files import expand_user

ALONE = {
    "--resume": "--resume=auto",
    "--channels-last": "--channels-last=on",
    "--no-channels-last": "--channels-last=off",
}
"""Flags without a value, and their full form."""


def parse(argv: Sequence[str], prog: str = "fastcnn train", idle: Collection[str] = ()) -> Config:
    """Parse flags into a Config.

    Precedence, lowest first: defaults, `--recipe`, `--config` file, flags.

    Args:
        idle: settings without effect on the command; they stay at their defaults.

    Raises:
        SystemExit: `--help`, with status 0.
        UserError: an unknown flag, an invalid value or conflicting settings; the message names the
            correction.
    """
    argv = list(argv)
    for i, word in enumerate(argv):
        if word in ALONE and (i + 1 == len(argv) or argv[i + 1].startswith("-")):
            argv[i] = ALONE[word]
    recipe, file = _value_of("--recipe", argv), _value_of("--config", argv)
    base = from_recipe(recipe) if recipe is not None else Config()
    config = _read_flags(argv, from_yaml(file, base) if file is not None else base, prog)
    if file is not None and "arch" not in _written(argv):
        _check_named(config.arch, file)
    defaults: dict[str, Any] = {name: FIELDS[name].default for name in idle}
    config = dataclasses.replace(config, **defaults)
    check(config)
    return config


def from_yaml(path: str, base: Config) -> Config:
    """Read a `--config` file on top of `base`, through the flag parser, so that both get the same checks.

    A recipe named in the file is applied before the file's other settings.
    """
    try:
        argv = _yaml_to_argv(expand_user(path, "--config"))
        recipe = _value_of("--recipe", argv)
        if recipe is not None and recipe != "None":
            base = from_recipe(recipe)
        return _read_flags(argv, base, "fastcnn train")
    except UserError as error:
        if str(error).startswith("--config"):
            raise
        raise UserError(f"--config {path}: {error}") from error


def _read_flags(argv: Sequence[str], default: Config, prog: str) -> Config:
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            config = tyro.cli(Config, args=argv, default=default, prog=prog)
            return dataclasses.replace(config, written=default.written | _written(argv))
    except SystemExit as end:
        if not end.code:
            raise
    raise UserError(_unboxed(box.getvalue()))


def _written(argv: Sequence[str]) -> set[str]:
    """Return the names of the settings that flags set; the flags are valid."""
    names = {form: name for name in FIELDS for form in (flag(name), flag("no_" + name))}
    for name, hint in typing.get_type_hints(Config, include_extras=True).items():
        metadata = getattr(hint, "__metadata__", ())
        names |= {alias: name for part in metadata for alias in getattr(part, "aliases", None) or ()}
    words = [word.partition("=")[0].replace("_", "-") for word in argv]
    return {names[word] for word in words if word in names}


def _unboxed(box: str) -> str:
    """Convert the first paragraph of tyro's framed message to one line with the correction."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # without the title
    words = [line if set(line) - set("─-╭╮╰╯") else "" for line in lines]  # frames are of "-" in ASCII
    text = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, words))).rstrip(".")
    if unknown := re.match(r"Unrecognized options: (--[\w-]+)", text):
        near = difflib.get_close_matches(unknown[1].replace("_", "-"), map(flag, FIELDS), n=1)
        return f"{unknown[1]}: no such flag; " + (f"did you mean {near[0]}?" if near else "--help lists them")
    if stray := re.match(r"Unrecognized options: (\S+)", text):
        return f"{stray[1]}: belongs to no flag; --help lists them"
    heads = "Error parsing|Missing value for argument|invalid choice .* for argument"
    if bad := re.match(rf"(?:{heads}) (\S+)", text):
        for name in bad[1].strip("':.").split("/"):
            if name[2:].replace("-", "_") in FIELDS:
                value = re.search(r"\[('.*')\]$|(?:: |invalid choice )('[^']*')", text)
                given = value and " ".join(re.findall(r"'([^']*)'", value[1] or value[2]))
                return f"{name} {given}: use {_wanted(name)}" if given else f"{name}: add {_wanted(name)}"
    return f"{text}; --help lists the flags"


def _wanted(name: str) -> str:
    """Describe the accepted values of a flag."""
    words = _in_words(typing.get_type_hints(Config)[name[2:].replace("-", "_")])
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _in_words(kind: Any) -> list[str]:
    options = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return [f"{len(options)} numbers" if ... not in options else "numbers"]
    if typing.get_origin(kind) is typing.Literal:
        return list(options)
    if options:
        return [word for option in options for word in _in_words(option)]
    names = {int: ["a whole number"], float: ["a number"], type(None): []}
    return names.get(kind, ["a value"])


def from_settings(settings: Mapping[str, Any], function: str = "fit()") -> Config:
    """Convert Python keywords of a function to a Config; raise ValueError for an unknown or ill-typed one."""
    _check_names(settings, function)
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    for name in ("data", "data_root", "labels", "weights", "output_dir", "resume", "config"):
        if isinstance(values.get(name), Path):
            values[name] = str(values[name])
    if isinstance(values.get("label_column"), str):
        values["label_column"] = (values["label_column"],)
    if isinstance(values.get("tracker"), str) and values["tracker"] != "none":
        values["tracker"] = (values["tracker"],)
    base = from_recipe(values["recipe"]) if values.get("recipe") else Config()
    if values.get("config"):
        base = from_yaml(values["config"], base)
    config = dataclasses.replace(base, **values, written=base.written | frozenset(values))
    if values.get("config") and "arch" not in values:
        _check_named(config.arch, values["config"])
    check(config)
    return config


def _check_named(arch: str, file: str) -> None:
    """Raise UserError for a network that is code, and that a file alone names."""
    if ":" in arch:
        module = arch.partition(":")[0]
        raise UserError(
            f"--config {file}: its arch {arch} is code of the module {module}; if you trust it, add --arch "
            f"{shlex.quote(arch)}"
        )


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(name + "="):
            return word.split("=", 1)[1]
    return None


def _check_names(settings: Mapping[str, Any], where: str) -> None:
    for name in settings:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `python -m fastcnn.train --help`"
            raise UserError(f"{where}: unknown setting {name!r}; {hint}")


def _check_words(path: Path, name: str, value: Any) -> None:
    """Raise UserError for a value that would be read as a flag of its own."""
    for word in map(str, value if isinstance(value, list) else [value]):
        if word.startswith("-") and re.fullmatch(r"-[\d.].*|-inf|-nan", word) is None:
            raise UserError(
                f"--config {path}: {name}: {word} begins with a dash, as a flag; use another value"
            )


def _yaml_to_argv(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            settings = parse_yaml(file.read(MAX_CHARACTERS + 1))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; use the path of a YAML file") from error
    except ValueError as error:  # also bytes that are no text
        raise UserError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"--config {path}: write one `name: value` a line, such as `arch: resnet18`")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    _check_names(settings, f"--config {path}")
    for name, value in settings.items():
        if name == "config" or isinstance(value, dict):
            raise UserError(f"--config {path}: {name}: use single values, and no further file")
    argv: list[str] = []
    for name, value in settings.items():
        _check_words(path, name, value)
        if isinstance(FIELDS[name].default, bool):
            if not isinstance(value, bool):
                raise UserError(f"--config {path}: {name} is true or false, not {value!r}")
            argv.append(flag(name) if value else "--no-" + flag(name)[2:])
        elif isinstance(value, list):
            argv += [flag(name), *map(str, value)]
        elif isinstance(value, bool):  # YAML reads `compile: on` as true
            argv += [flag(name), "on" if value else "off"]
        else:
            argv += [flag(name), str(value)]
    return argv
