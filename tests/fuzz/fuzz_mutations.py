"""Mutations of bytes, of nested values and of text, each drawn from a seeded generator."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63 - 1, -(2**63), 10**12, 10**25, 0.5, -0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", "x", "auto", "none", "1", "-1", "1e400", "--epochs", "a\nb", "\x00"),
    *("x" * 5000, "../../outside", "/dev/zero", "evil:make", "9" * 5000, "\ud800", "\uff4e"),
    *([], {}, [[]], [None], {"a": 1}, [0.1, "--epochs", 3], {"evil": "evil:make"}, [1e308] * 9),
]
"""Values of any type, which replace one of a valid input."""


def odd_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD))


def places(value: Any, limit: int = 2000) -> list[tuple[Any, Any]]:
    """Return the containers and keys of all nested values, each container once."""
    found: list[tuple[Any, Any]] = []
    waiting, seen = [value], set()
    while waiting and len(found) < limit:
        one = waiting.pop()
        if id(one) in seen or not isinstance(one, dict | list):
            continue
        seen.add(id(one))
        keys = list(one) if isinstance(one, dict) else list(range(len(one)))
        found += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    return found


def mutate_value(rng: random.Random, value: Any) -> str:
    """Change one to three nested values in place; return what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found:
            break
        top = [place for place in found if place[0] is value]
        owner, key = rng.choice(top if rng.random() < 0.3 else found)
        old = owner[key]
        action = rng.choice(("odd", "odd", "odd", "near", "near", "delete", "swap", "rename", "copies"))
        if action == "odd":
            owner[key] = odd_value(rng)
        elif action == "near":
            owner[key] = near(rng, old)
        elif action == "delete":
            del owner[key]
        elif action == "swap":
            other, there = rng.choice(found)
            owner[key] = copy.deepcopy(other[there]) if there in _keys(other) else None
        elif action == "rename" and isinstance(owner, dict):
            owner[odd_key(rng)] = owner.pop(key)
        else:
            owner[key] = [old] * rng.choice((0, 1, 2, 500))
        new = repr(owner[key])[:60] if key in _keys(owner) else ""
        done.append(f"{action} {str(key)[:40]!r} {new}")
    return "; ".join(done)


def _keys(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else range(len(owner))


def odd_key(rng: random.Random) -> Any:
    return rng.choice(["", "x", 0, -1, 10**9, None, True, 1.5, "evil:make", "0", "a\nb"])


def near(rng: random.Random, value: Any) -> Any:
    """Return a value of the same type that is a little or very different."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value, value * 10**6, value * 2, value << 40])
    if isinstance(value, float):
        return rng.choice([value * 1e300, -value, value + 1, value / 1e300, round(value)])
    if isinstance(value, str):
        return rng.choice([value[:-1], value + value, value.upper(), f" {value}", value + "\n", value[::-1]])
    if isinstance(value, list | tuple):
        items = list(value)
        return rng.choice([items[:-1], items + items[:1], items[::-1], items * 2, [items]])
    if isinstance(value, Tensor):
        return near_tensor(rng, value)
    return copy.deepcopy(value)


def near_tensor(rng: random.Random, value: Tensor) -> Any:
    changes = [
        lambda: value.flatten(),
        lambda: value[None],
        lambda: value.double(),
        lambda: value.half(),
        lambda: value.long() if value.is_floating_point() else value.float(),
        lambda: value.to(torch.complex64),
        lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value + 1,
        lambda: torch.zeros((), dtype=value.dtype).expand(10**6, 10**6),
        lambda: value.flatten()[:-1].clone(),
        lambda: torch.cat([value.flatten(), value.flatten()]),
        lambda: value.to_sparse() if value.ndim else value,
        lambda: value.to("meta"),
        lambda: value.tolist(),
        lambda: torch.zeros(0),
        lambda: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value[..., None],
    ]
    try:
        return rng.choice(changes)()
    except RuntimeError:  # a change that this tensor does not allow
        return torch.zeros(3, 5)


def mutate_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Cut, overwrite, insert, repeat or swap bytes; return the result and what was done."""
    changed = bytearray(data)
    done = []
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        count = rng.choice((1, 4, 30, 1000))
        action = rng.choice(("cut", "bits", "bits", "zeros", "ones", "random", "insert", "remove", "repeat"))
        if action == "cut":
            del changed[at:]
        elif action == "bits" and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif action in ("zeros", "ones", "random"):
            fill = {"zeros": bytes(count), "ones": b"\xff" * count, "random": rng.randbytes(count)}[action]
            changed[at : at + count] = fill
        elif action == "insert":
            changed[at:at] = rng.randbytes(count)
        elif action == "remove":
            del changed[at : at + count]
        else:
            changed[at:at] = changed[at : at + count] * rng.choice((1, 50))
        done.append(f"{action} {count} at {at}")
    return bytes(changed), "; ".join(done)


TOKENS = (
    *(
        "-1",
        "0",
        "1e999",
        "nan",
        "9" * 400,
        "0x10",
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        "&",
        '"',
        "'",
        ",",
        ":",
        "\n",
    ),
    *(
        "\t",
        "\x00",
        "\ufeff",
        "\u2028",
        "*a",
        "&a",
        "!!python/name:os.system",
        "- ",
        "? ",
        "%",
        "#",
        "--epochs",
    ),
    *("<!DOCTYPE x>", "../", "/etc/passwd", "x" * 3000, "true", "null", "...", "---"),
)


def mutate_text(rng: random.Random, text: str) -> tuple[bytes, str]:
    """Insert tokens, or remove, repeat or swap lines; now and then in another encoding, or as bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, text.encode())
    done = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        action = rng.choice(("token", "token", "token", "remove", "repeat", "swap", "number"))
        if action == "token":
            place = rng.randrange(len(text) + 1)
            token = rng.choice(TOKENS)
            text = text[:place] + token + text[place:]
            done.append(f"{token[:20]!r} at {place}")
            continue
        if action == "number":
            words = lines[at].split(" ")
            words[rng.randrange(len(words))] = rng.choice(TOKENS)
            lines[at] = " ".join(words)
        elif action == "remove":
            del lines[at]
        elif action == "repeat":
            lines[at:at] = [lines[at]] * rng.choice((1, 200))
        else:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        text = "\n".join(lines)
        done.append(f"{action} line {at}")
    encoding = rng.choice(("utf-8",) * 8 + ("utf-16", "utf-32", "latin-1"))
    return text.encode(encoding, "replace"), "; ".join(done)
