"""YAML of bounded size, and what a `--config` file cannot do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import fastcnn
from fastcnn.config.parse import parse
from fastcnn.config.yaml_file import parse_yaml

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}{f', *{a}' * 9}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


def test_plain_values_are_read():
    assert parse_yaml("a: [1, 2.5, x]\nb: {c: true}") == {"a": [1, 2.5, "x"], "b": {"c": True}}
    assert parse_yaml("a: [1, 2.5, x]", strings=True) == {"a": ["1", "2.5", "x"]}
    names = "".join(f"  {i}: class {i}\n" for i in range(5000))
    assert len(parse_yaml(f"names:\n{names}")["names"]) == 5000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "line 2: an alias, \\*a; write out its value"),
        ("a: &a [*a]", "an alias"),
        ("[" * 100_000, "nested more than 20 levels"),
        ("a: " + "1:" * 100_000 + "1", "more than 2,000 characters"),
        ("[" + "1," * 200_000 + "1]", "more than 30,000 values"),
        ("#" * 3_000_000, "more than 2,000,000 characters"),
        ("a: 2001-99-99", "month must be"),
        ("a: !!bool maybe", "a value does not fit its tag"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: {[b]: c}", "unhashable key"),
    ],
    ids=["bomb", "itself", "nested", "number", "values", "characters", "date", "tag", "code", "key"],
)
def test_what_is_large_or_no_plain_value_is_refused_at_once(text, reason):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=reason) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    "text",
    [
        "color_jitter: [0.1, --epochs, 3]",
        "data: --epochs",
        "label_column: [a, -b, '3']",
        BOMB,
        "arch: evil:make",
        "arch: 'evil:make; ls'",
    ],
    ids=["list", "value", "short", "bomb", "code", "quoted"],
)
def test_a_file_sets_no_flags_and_names_no_code(tmp_path, monkeypatch, text, wording):
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("open('ran', 'w')\nmake = dict\n")
    Path("mine.yaml").write_text(text)
    messages = []
    for read in (lambda: parse(["--config", "mine.yaml"]), lambda: fastcnn.fit(config="mine.yaml")):
        with pytest.raises(ValueError) as caught:
            read()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("--config mine.yaml: ")
    wording(messages[0])
    assert not Path("ran").exists()


def test_code_of_a_file_is_used_if_the_user_names_it_too(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("arch: mine:make\nepochs: 3\nscale: [0.1, 1]\nmean: [-.0, 1e-3, 0.5]\n")
    config = parse(["--config", str(file), "--arch", "mine:make"])
    assert (config.arch, config.epochs, config.mean) == ("mine:make", 3, (0, 0.001, 0.5))
    assert parse(["--config", str(file), "-a", "resnet18"]).arch == "resnet18"
