"""Comparison of messages with the golden file `tests/messages.yaml`.

    def test_an_unknown_arch_is_refused(wording):
        wording(refusal("resnet19"))

`pytest --update-messages` (in one process) rewrites the entries of the tests it runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

TESTS = Path(__file__).parents[1]
FILE = TESTS / "messages.yaml"


Golden = dict[str, dict[str, list[str]]]


def load() -> Golden:
    return yaml.safe_load(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


class Wording:
    """Compare the messages of one test, in order, with those of the golden file.

    Args:
        golden: file -> test -> messages.
        file: file of the test, relative to tests/.
        test: name of the test, with its parameters.
        update: record instead of comparing.
        replaced: parts of the messages that differ between runs, with their placeholders.
    """

    def __init__(
        self, golden: Golden, file: str, test: str, *, update: bool, replaced: dict[str, str] | None = None
    ) -> None:
        self._golden = golden
        self._file = file
        self._test = test
        self._where = f"tests/messages.yaml: {file}: {test}"
        self._replaced = replaced or {}
        self._expected = list(golden.get(file, {}).get(test, []))
        self._update = update
        self._seen: list[str] = []

    def __call__(self, message: object) -> None:
        text = str(message).strip()
        for found, name in self._replaced.items():
            text = text.replace(found, name)
        if os.sep != "/":  # the file has the paths of POSIX
            text = text.replace(os.sep, "/")
        number = len(self._seen)
        self._seen.append(text)
        if self._update:
            return
        assert number < len(self._expected), (
            f"{self._where}: not recorded: {text}; run pytest --update-messages"
        )
        assert text == self._expected[number], (
            f"{self._where}: other words; run pytest --update-messages if meant"
        )

    def line(self, text: str, part: str) -> None:
        """Compare the lines of a text that contain `part`; raise AssertionError if there are none."""
        lines = [line for line in text.splitlines() if part in line]
        assert lines, f"no line with {part!r} in:\n{text}"
        for line in lines:
            self(line)

    def close(self) -> None:
        """After a passed test, record its messages, or check that no recorded message is missing."""
        if not self._update:
            missing = self._expected[len(self._seen) :]
            assert not missing, f"{self._where}: not said: {missing}; run pytest --update-messages if meant"
            return
        self._golden.setdefault(self._file, {})[self._test] = self._seen


def save(golden: Golden, collected: dict[str, set[str]]) -> None:
    """Write the golden file; drop tests that no longer compare messages from fully collected files."""
    kept: Golden = {}
    for file, tests in sorted(golden.items()):
        exist = collected.get(file, set(tests))
        kept[file] = {test: lines for test, lines in sorted(tests.items()) if lines and test in exist}
    text = yaml.safe_dump(
        {f: t for f, t in kept.items() if t}, sort_keys=False, allow_unicode=True, width=110
    )
    head = "# Made by `pytest --update-messages`. file: test: messages in order.\n"
    FILE.write_text(head + text, encoding="utf-8")
