"""All that a GPU should measure, most important first, in the minutes there are.

    python benchmarks/gpu.py --minutes 20
    python benchmarks/gpu.py --minutes 20 --data /data/photos    # for the loaders, which need DALI
    python benchmarks/gpu.py --minutes 8 --only ladder-resnet50  # items whose names begin so
    python benchmarks/gpu.py --minutes 5 --rehearse              # tiny sizes, also without a GPU

The items are commands of their own, each in a process group that is ended when the time is over. They write
JSON as they go; this script notes in benchmarks/results/MACHINE/progress.json what is done at which commit,
and goes on after it the next time, also at a later commit that changes nothing that is measured: an item that
was cut off begins anew, but for the kernels, which go on after their last row.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from comparison import same_code
from fastcnn.bench import timing
from fastcnn.runtime import environment
from fastcnn.runtime.distributed import Ranks, choose_device
from sizes import TRAIN

HERE = Path(__file__).parent
GRACE = 20.0
"""Seconds from the interrupt of a command to its kill."""
SPARE = 10.0
"""Seconds reserved for the end, after the last item."""
SOFT_LIMIT = 0.75
"""Share of an item's time after which its command starts nothing more."""
CODE = "fastcnn", "kernels", "benchmarks", ":(exclude)benchmarks/results", ":(exclude,glob)**/*.md"
"""Git pathspecs of the code that the figures depend on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    minutes: float = 20.0
    """When to be done with everything."""
    data: str | None = None
    """A folder of class folders of photos."""
    cifar10: str | None = None
    """CIFAR-10 in folders, with train/ and test/."""
    airbench: str | None = None
    """airbench94_muon.py, for CIFAR-10 side by side."""
    only: tuple[str, ...] = ()
    """Items by the beginnings of their names; they share all the time."""
    rehearse: bool = False
    """Tiny sizes, to try the whole on any machine; results go to a temporary folder."""
    results: str | None = None
    """Where the JSON goes; by default benchmarks/results/."""


@dataclass(frozen=True, kw_only=True)
class Item:
    name: str
    command: tuple[str, ...]
    at_most: float
    """Largest share of all the minutes."""
    left_out: str = ""
    """Reason why it cannot be measured here."""
    resumes: bool = False
    """The command continues its own results, so it is called again each time."""
    takes_minutes: bool = False
    """The command accepts --minutes."""


def plan(settings: Settings, device: torch.device, results: Path) -> list[Item]:
    """Items to measure, most important first."""
    python = sys.executable
    folder = results / environment.machine_name(device)
    tiny = settings.rehearse
    no_gpu = "" if device.type == "cuda" else "needs a CUDA GPU"
    no_loader = ""
    if importlib.util.find_spec("nvidia.dali") is None:
        no_loader = "DALI is not installed"
    elif settings.data is None and not tiny:
        no_loader = "--data was not given"

    def ablation(arch: str, size: int, batch: int, share: float) -> Item:
        quickly: tuple[str, ...] = ()
        if tiny:
            arch, size, batch, quickly = "lenet5", 32, 4, ("--quick",)
        sizes = ("--img-size", str(size), "--batch-size", str(batch), *quickly)
        name = f"ladder-{arch}-{size}px-batch{batch}"
        output = str(folder / f"{name}.json")
        command = (python, "-m", "fastcnn", "bench", "--arch", arch, *sizes, "--output", output)
        return Item(name=name, command=command, at_most=share, takes_minutes=True)

    def item(name: str, command: tuple[str, ...], share: float, left_out: str = "") -> Item:
        return Item(name=name, command=command, at_most=share, left_out=left_out)

    pytest = (python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--results", str(results))
    quick = ("--quick",) if tiny else ()
    rows = TRAIN["cuda" if device.type == "cuda" else "cpu"]
    first, *others = rows[:1] if tiny else rows
    data = ("--data", settings.data) if settings.data is not None else ()
    train = (*pytest, str(HERE / "bench_train.py"), *quick)
    kernels = (python, str(HERE / "bench_kernels.py"))
    side_by_side = (
        *(python, str(HERE / "bench_cifar10.py"), "--data", str(settings.cifar10)),
        *("--airbench", str(settings.airbench), "--output", str(folder / "cifar10-speed.json")),
    )
    no_airbench = "" if settings.cifar10 and settings.airbench else "--cifar10 or --airbench was not given"
    ahead = (python, "-m", "fastcnn_kernels.precompile")
    return [
        replace(item("precompile", ahead, 0.1, no_gpu), resumes=True),
        replace(item("kernels", kernels, 0.2, no_gpu), resumes=True, takes_minutes=True),
        item("accelerate", (*pytest, str(HERE / "bench_accelerate.py"), *quick), 0.25, no_gpu),
        item(f"train-{first}", (*train, "-k", str(first)), 0.3),
        ablation("resnet50", 224, 256, 0.3),
        item("cifar10-speed", side_by_side, 0.25, no_gpu or no_airbench),
        item("loader", (*pytest, str(HERE / "bench_loader.py"), *quick, *data), 0.3, no_loader),
        *(item(f"train-{row}", (*train, "-k", str(row)), 0.3) for row in others),
        replace(
            item("batch32-kernels", (*kernels, "--batch-size", "32"), 0.2, no_gpu),
            resumes=True,
            takes_minutes=True,
        ),
        *(ablation(arch, 224, 256, 0.25) for arch in (() if tiny else ("efficientnet_b0", "mobilenet_v2"))),
        item("layers", (*pytest, str(HERE / "bench_layers.py"), *quick), 0.2),
    ]


def chosen(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """Return the items whose names begin with one of `names`; they share all the time.

    Raises:
        SystemExit: one of `names` begins no item's name.
    """
    for name in names:
        if not any(item.name.startswith(name) for item in items):
            raise SystemExit(f"--only {name}: use beginnings of {', '.join(item.name for item in items)}")
    found = [item for item in items if item.name.startswith(tuple(names))]
    whole = sum(item.at_most for item in found)
    return [replace(item, at_most=item.at_most / whole) for item in found]


def run(
    items: Sequence[Item],
    minutes: float,
    progress: Path,
    commit: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    call: Callable[[Sequence[str], float], int | None] | None = None,
) -> dict[str, str]:
    """Run the items in order until the time is over.

    Returns:
        The outcome of each item; "done" also if it was done before with the same code.
    """
    end = clock() + 60 * minutes - SPARE
    done = _done(progress, commit)
    outcome: dict[str, str] = {}
    for item in items:
        left = end - clock()
        if item.name in done and not item.resumes:
            outcome[item.name] = "done before"
        elif item.left_out:
            outcome[item.name] = f"left out: {item.left_out}"
        elif left < SPARE:
            outcome[item.name] = "no time was left"
        else:
            limit = min(left, 60 * minutes * item.at_most)
            minutes_flag = ("--minutes", f"{SOFT_LIMIT * limit / 60:.2f}") if item.takes_minutes else ()
            command = (*item.command, *minutes_flag)
            print(f"== {item.name}: {' '.join(command)}", flush=True)
            start = clock()
            status = (call or _call)(command, limit)
            taken = clock() - start
            if status == 0 and item.takes_minutes and taken >= SOFT_LIMIT * limit:
                outcome[item.name] = f"ended after {taken:.0f} s, maybe not with everything"
            elif status == 0:
                outcome[item.name] = f"done in {taken:.0f} s"
                done[item.name] = taken
            else:
                why = "its time was over" if status is None else f"status {status}"
                outcome[item.name] = f"ended after {taken:.0f} s: {why}"
            timing.write_json(progress, {"what": "progress", "commit": commit, "seconds": done})
    return outcome


def _done(progress: Path, commit: str) -> dict[str, float]:
    """Seconds of the items that were done before with the code of `commit`."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        content = json.loads(progress.read_text())
        if same_code(content["commit"], commit, *CODE):
            return dict(content["seconds"])
    return {}


def _call(command: Sequence[str], seconds: float) -> int | None:
    """Run a command; return its exit status, or None if it exceeded its time limit."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE.parent / "kernels"))),
    }
    if inherited := os.environ.get("PYTHONPATH"):
        variables["PYTHONPATH"] += os.pathsep + inherited
    process = subprocess.Popen(command, start_new_session=True, cwd=HERE.parent, env=variables)
    try:
        return process.wait(max(1.0, seconds - GRACE))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # its own child processes, if any are left
            os.killpg(process.pid, signal.SIGKILL)


def main(settings: Settings) -> int:
    device = choose_device("auto", Ranks())
    results = Path(settings.results).absolute() if settings.results else HERE / "results"
    if settings.rehearse and settings.results is None:
        import tempfile

        results = Path(tempfile.mkdtemp(prefix="fastcnn-rehearsal-"))
    elif device.type != "cuda" and not settings.rehearse:
        print("no CUDA device here: nothing measured; --rehearse tries the whole on this machine")
        return 0
    progress = results / environment.machine_name(device) / "progress.json"
    commit = environment.environment(device)["commit"]
    items = plan(settings, device, results)
    if settings.only:
        items = chosen(items, settings.only)
    outcome = run(items, settings.minutes, progress, commit)
    print(*(f"{name}: {what}" for name, what in outcome.items()), str(progress.parent), sep="\n")
    return 1 if any("status" in what for what in outcome.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings, description=__doc__)))
