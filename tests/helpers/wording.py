"""Messages against one golden file: a test names what is wrong, `tests/messages.yaml` holds the words.

    def test_an_unknown_arch_is_refused(wording):
        wording(refusal("resnet19"))

`pytest --update-messages` (in one process) rewrites the entries of the tests that it runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[1] / "messages.yaml"
TESTS = Path(__file__).parents[1]


Golden = dict[str, dict[str, list[str]]]


def load() -> Golden:
    return yaml.safe_load(FILE.read_text()) if FILE.exists() else {}


class Wording:
    """Compare the messages of one test, in order, with those of the golden file.

    Args:
        golden: file -> test -> messages.
        update: record instead of comparing.
        replaced: parts of the messages that differ from run to run, and the names that stand for them.
    """

    def __init__(self, golden: Golden, item: pytest.Item, *, update: bool, replaced: dict[str, str]) -> None:
        self._file = item.path.relative_to(TESTS).as_posix()
        self._test = item.name
        self._golden = golden
        self._replaced = replaced
        self._expected = [] if update else list(golden.get(self._file, {}).get(self._test, []))
        self._update = update
        self._seen: list[str] = []

    def __call__(self, message: object) -> None:
        text = str(message).strip()
        for found, name in self._replaced.items():
            text = text.replace(found, name)
        number = len(self._seen)
        self._seen.append(text)
        if self._update:
            self._golden.setdefault(self._file, {})[self._test] = self._seen
            return
        where = f"tests/messages.yaml: {self._file}: {self._test}"
        assert number < len(self._expected), f"{where}: not recorded: {text}; run pytest --update-messages"
        assert text == self._expected[number], f"{where}: other words; run pytest --update-messages if meant"


def save(golden: Golden) -> None:
    ordered = {file: dict(sorted(tests.items())) for file, tests in sorted(golden.items())}
    text = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=110)
    FILE.write_text("# Made by `pytest --update-messages`. file: test: messages in order.\n" + text)
