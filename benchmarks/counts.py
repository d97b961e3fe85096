"""Counts that no noise touches: what a step dispatches, allocates, waits for and compiles; the kernels' code.

    python benchmarks/counts.py             # measures, and writes the counts of the installed versions
    python benchmarks/counts.py --check     # compares with what was written; 1 if anything is wrong

Needs no GPU. Steps are fastcnn's own, on the CPU at small sizes: operators below autograd, tensors with
memory of their own among their results, and questions that would make the host wait for a GPU. Memory that an
operator uses within itself is not seen, so that the counts do not depend on the processor. Graphs are traced,
and run uncompiled. The kernels are compiled for sm_90 and read by `audit.py`.

The file is keyed by the minor versions of torch and Triton. Where it has the installed ones, every count must
be the same. Where it lacks them, `--check` reports it and compares with the nearest version: what must be 0
is 0, and no count is more than a tenth larger. CONTRIBUTING.md says how to change the file on purpose.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcnn.bench import timing
from fastcnn.bench.training_steps import Workload, build_own_state
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.state import StepOptions, TrainState
from fastcnn.engine.step import train_step
from fastcnn.tasks.base import Task
from fastcnn.tasks.metrics import Metrics

FILE = Path(__file__).parent / "results" / "counts.json"
ARCHITECTURE = "sm_90"


class Case(NamedTuple):
    """A training step to count."""

    arch: str
    img_size: int
    batch_size: int
    dtype: torch.dtype = torch.float32
    clip_and_average: bool = False
    """Clip the gradient norm and keep a moving average of the weights."""

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.arch} {dtype}" + (" clip, average" if self.clip_and_average else "")


CASES = (
    Case("lenet5", 32, 2),
    Case("resnet18", 64, 2),
    Case("resnet18", 64, 2, torch.bfloat16),
    Case("resnet18", 64, 2, torch.bfloat16, clip_and_average=True),
    Case("mobilenet_v2", 64, 2),
    Case("mobilenet_v2", 64, 2, torch.bfloat16),
)

Counts = dict[str, dict[str, int]]
"""Counts by case and name: "resnet18 float32" → "operators" → 512."""
Found = dict[str, Counts]
"""Counts by version: "torch 2.15", "triton 3.9"."""


# Operators, memory and host syncs

WAITS = {
    "aten::_local_scalar_dense",  # .item(), bool(), float(), int(), an index
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::_unique2",
}
"""Operators that synchronize the host: they return a value to it, or a result whose shape depends on data."""
WAITING_CALLS = {Tensor.cpu, Tensor.numpy, Tensor.tolist}
"""Calls that dispatch nothing on the CPU, but synchronize with a GPU."""


class Operators(TorchDispatchMode):
    """Counts operators dispatched below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys(("operators", "tensors", "bytes", "waits"), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counts["operators"] += 1
        self.counts["waits"] += func.name().partition(".")[0] in WAITS
        fresh = _storages(result)
        for known in _storages((args, kwargs)):
            fresh.pop(known, None)
        self.counts["tensors"] += len(fresh)
        self.counts["bytes"] += sum(fresh.values())
        return result


def _storages(values: Any) -> dict[int, int]:
    """Address and bytes of each storage of the tensors in `values`."""
    found = {}
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return found


class WaitingCalls(TorchFunctionMode):
    """Counts calls in `WAITING_CALLS`, which are not dispatched on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in WAITING_CALLS
        return func(*args, **(kwargs or {}))


def counted(step: Callable[[], object]) -> dict[str, int]:
    with WaitingCalls() as calls, Operators() as operators:
        step()
    return {**operators.counts, "waits": operators.counts["waits"] + calls.count}


# fastcnn's steps


def prepare(case: Case, *, compile: bool = False) -> tuple[TrainState, Task, Batch, Metrics]:
    workload = Workload(case.arch, case.img_size, case.batch_size, "cpu")
    ema_decay, clip_grad = (0.9, 1.0) if case.clip_and_average else (None, None)
    options = StepOptions(amp_dtype=case.dtype, compile=compile, ema_decay=ema_decay, clip_grad=clip_grad)
    state = build_own_state(workload, options)
    task = workload.task()
    return state, task, workload.batch(), task.metrics(state.device)


def step_counts(case: Case) -> dict[str, int]:
    """Counts of the third step, after all lazy initialization."""
    state, task, batch, metrics = prepare(case)

    def step() -> None:
        train_step(state, task, [batch], metrics)

    step()
    step()
    return counted(step)


class _Once:
    """A loader of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.num_samples, self.skipped = batch, len(batch.mask), 0

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch


def graph_counts(case: Case) -> dict[str, int]:
    """Counts of compiled graphs in two rounds of three steps and an evaluation.

    Graphs of the second round count as recompilations.
    """
    from torch._dynamo.utils import counters

    with compile_without_backend():
        state, task, batch, metrics = prepare(case, compile=True)
        counters.clear()
        graphs = []
        for _ in range(2):
            state.train_model.train()
            for _ in range(3):
                train_step(state, task, [batch], metrics)
            evaluate(state, task, cast(Loader, _Once(batch)))
            graphs.append(counters["stats"]["unique_graphs"])
    breaks = sum(counters["graph_break"].values())
    return {"graphs": graphs[0], "recompilations": graphs[1] - graphs[0], "graph breaks": breaks}


@contextlib.contextmanager
def compile_without_backend() -> Iterator[None]:
    """Let torch.compile trace graphs but run them eagerly."""
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="eager")):
        yield


def kernel_counts() -> Counts:
    """Instructions, registers and spills of each kernel on its typical layer."""
    import audit

    found = {}
    for case in audit.cases(audit.TYPICAL):
        code = audit.compile_case(case, ARCHITECTURE)
        found[f"{case.name} {ARCHITECTURE}"] = {
            "instructions": code.instructions,
            "registers": code.registers,
            "spilled": code.spilled,
        }
    return found


# The file


def version(name: str) -> str:
    """ "torch 2.15" of "2.15.0+cu132"."""
    return f"{name} {'.'.join(importlib.import_module(name).__version__.split('.')[:2])}"


def measure() -> Found:
    steps = {str(case): {**step_counts(case), **graph_counts(case)} for case in CASES}
    found = {version("torch"): steps}
    if importlib.util.find_spec("triton") is not None:
        found[version("triton")] = kernel_counts()
    return found


def read(path: Path) -> Found:
    return json.loads(path.read_text()) if path.exists() else {}


NEVER = ("waits", "recompilations", "graph breaks", "spilled")
"""Counts that are 0 with any version."""
MAX_GROWTH = 1.1
"""Allowed ratio of a count to that of another version."""


def nearest(versions: str, known: Sequence[str]) -> str | None:
    """The known version of the same library nearest to `versions`, such as "torch 2.13".

    Of two equally near versions the newer is returned.
    """

    def place(name: str) -> tuple[int, int]:
        major, minor = name.split()[1].split(".")
        return int(major), int(minor)

    major, minor = place(versions)
    candidates = [name for name in known if name.split()[0] == versions.split()[0]]
    return min(
        candidates,
        key=lambda name: (abs(place(name)[0] - major), abs(place(name)[1] - minor), -place(name)[1]),
        default=None,
    )


def compare(versions: str, before: Counts, now: Counts, *, exact: bool = True) -> list[str]:
    """Return a line for each unexpected count.

    Args:
        versions: library and version of the counts in `now`, such as "torch 2.15".
        exact: `before` has the same version; otherwise only `NEVER` and `MAX_GROWTH` are checked.
    """
    lines = []
    for what in sorted(before.keys() | now.keys()):
        was, is_now = before.get(what, {}), now.get(what, {})
        if not exact and not (was and is_now):
            then, today = ("counted" if counts else "nothing" for counts in (was, is_now))
            lines.append(f"{versions}, {what}: {then} before, {today} now")
            continue
        for name in sorted(was.keys() | is_now.keys()):
            a, b = was.get(name), is_now.get(name)
            if exact:
                wrong = a != b
            elif name in NEVER:
                wrong = bool(b)
            else:
                wrong = a is not None and b is not None and b > MAX_GROWTH * a
            if wrong:
                old, new = ("nothing" if count is None else count for count in (a, b))
                lines.append(f"{versions}, {what}: {name} {old} before, {new} now")
    return lines


def check(before: Found, now: Found, path: Path) -> int:
    """Print each comparison with its differences; return the exit status."""
    status = 0
    known, seen = ({versions.split()[0] for versions in found} for found in (before, now))
    for library in sorted(known - seen) if sys.platform == "linux" else ():  # Triton is for Linux
        print(f"{library}: nothing was counted; install it")
        status = 1
    for versions, counts in sorted(now.items()):
        other = nearest(versions, list(before))
        if other is None:
            print(f"{versions}: nothing in {path} to compare with; `python benchmarks/counts.py` adds it")
            status = 1
            continue
        lines = compare(versions, before[other], counts, exact=other == versions)
        if other != versions:
            print(f"{versions}: not in {path} (`python benchmarks/counts.py` adds it); compared with {other}")
        print("\n".join(lines) or f"{versions}: {'unchanged' if other == versions else 'within bounds'}")
        status = status or int(bool(lines))
    return status


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; return 1 if a count is wrong")
    parser.add_argument("--file", type=Path, default=FILE, help="the JSON file (%(default)s)")
    settings = parser.parse_args(argv)
    before, now = read(settings.file), measure()
    if settings.check:
        return check(before, now, settings.file)
    lines = [line for key in now.keys() & before.keys() for line in compare(key, before[key], now[key])]
    print("\n".join(sorted(lines)) or "no count changed")
    timing.write_json(settings.file, dict(sorted({**before, **now}.items())))
    print(settings.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
