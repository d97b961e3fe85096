"""YAML of bounded size: plain values, without aliases, deep nesting and types of Python. Torch-free."""

from __future__ import annotations

from typing import Any

MAX_CHARACTERS, MAX_SCALAR, MAX_EVENTS, MAX_DEPTH = 2_000_000, 2_000, 60_000, 20
"""Limits of a text: 60,000 events are about 30,000 class names, and take a second or two."""


def parse_yaml(text: str, *, strings: bool = False) -> Any:
    """Parse a YAML text into dicts, lists and scalars.

    Args:
        strings: keep all scalars as strings.

    Raises:
        ValueError: not YAML, or beyond the limits; the message is the reason, in one line.
    """
    import yaml

    loader = yaml.BaseLoader if strings else yaml.SafeLoader
    try:
        _check_events(text, loader)
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
    ) as error:  # a tag that does not fit its value
        raise ValueError(f"a value does not fit its tag ({type(error).__name__})") from error


def _is_parsed(event: Any) -> bool:
    """Return whether a scalar may become a number or date; a quoted text or a block stays as it is."""
    return event.style is None or event.tag is not None


def _check_events(text: str, loader: Any) -> None:
    """Raise ValueError before anything is built: some aliases of aliases stand for billions of values."""
    import yaml

    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        reason = ""
        if isinstance(event, yaml.AliasEvent):
            reason = f"an alias, *{event.anchor}; write out its value"
        elif isinstance(event, yaml.ScalarEvent) and _is_parsed(event) and len(event.value) > MAX_SCALAR:
            reason = f"a value of more than {MAX_SCALAR:,} characters"
        elif depth > MAX_DEPTH:
            reason = f"nested more than {MAX_DEPTH} levels deep"
        elif count > MAX_EVENTS:
            reason = f"more than {MAX_EVENTS // 2:,} values"
        if reason:
            line = event.start_mark.line + 1 if event.start_mark is not None else 0
            raise ValueError(f"line {line}: {reason}")
