"""The golden file of messages: what changes is noticed, and each entry belongs to a test."""

from __future__ import annotations

import ast

import pytest

from wording import TESTS, Wording, load

GOLDEN = load()
RECORDED = {"test_a.py": {"test_b": ["--lr -1: write 0 or more", "--epochs 0: write more than 0"]}}


def recorded(test: str = "test_b") -> Wording:
    return Wording(RECORDED, "test_a.py", test, update=False)


def test_the_recorded_words_in_their_order_pass():
    compare = recorded()
    compare("--lr -1: write 0 or more")
    compare(ValueError("--epochs 0: write more than 0\n"))
    compare.close()


def test_another_word_fails():
    with pytest.raises(AssertionError, match="test_a.py: test_b: other words; run pytest --update-messages"):
        recorded()("--lr -1: write 1 or more")


def test_a_message_that_was_not_recorded_fails_and_says_how_to_record_it():
    with pytest.raises(AssertionError, match="not recorded: --lr 2: too much; run pytest --update-messages"):
        recorded("test_c")("--lr 2: too much")


def test_a_recorded_message_that_is_no_longer_said_fails():
    compare = recorded()
    compare("--lr -1: write 0 or more")
    with pytest.raises(AssertionError, match="not said: .'--epochs 0: write more than 0'"):
        compare.close()


def test_what_differs_from_run_to_run_is_replaced():
    golden = {"test_a.py": {"test_b": ["--config TMP/mine.yaml: not YAML"]}}
    compare = Wording(golden, "test_a.py", "test_b", update=False, replaced={"/tmp/7": "TMP"})
    compare("--config /tmp/7/mine.yaml: not YAML")


def test_recording_takes_what_was_seen_once_the_test_has_passed():
    golden = {"test_a.py": {"test_b": ["old"]}}
    compare = Wording(golden, "test_a.py", "test_b", update=True)
    compare("new")
    assert golden == {"test_a.py": {"test_b": ["old"]}}
    compare.close()
    assert golden == {"test_a.py": {"test_b": ["new"]}}


@pytest.mark.parametrize("file", GOLDEN)
def test_each_entry_belongs_to_a_test_that_compares(file):
    functions = [
        node for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)
    ]
    comparing = {
        node.name for node in functions if "wording" in [argument.arg for argument in node.args.args]
    }
    assert {test.partition("[")[0] for test in GOLDEN[file]} <= comparing


def test_no_entry_holds_what_differs_from_run_to_run():
    said = [message for tests in GOLDEN.values() for messages in tests.values() for message in messages]
    assert not [message for message in said if "/tmp/" in message or "pytest-" in message]
