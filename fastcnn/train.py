"""Train a network.

    torchrun -m fastcnn.train --arch resnet50
    python -m fastcnn.train --arch resnet20 --data cifar10 --epochs 100

`main` parses, `fit` wires data, network and folder together, `fastcnn.engine.loop` runs the epochs. Torch is
imported after the flags are parsed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastcnn.config import Config
from fastcnn.config.parse import parse
from fastcnn.config.validate import check, ineffective
from fastcnn.errors import BadImageError, TrainingError, UserError

if TYPE_CHECKING:
    from torch import nn

    from fastcnn.engine.loop import Outcome


@dataclass(frozen=True)
class Result:
    """What a run reached."""

    network: nn.Module
    """With the weights of the best epoch, which are those of `best.pt` in the folder."""
    val: dict[str, float]
    """Validation metrics of the last epoch, percent."""
    best: dict[str, float]
    """Those of the best epoch, and its number as "epoch"."""
    images_per_second: float
    """Training throughput over all ranks; validation and the first log interval are left out."""
    folder: Path
    verdict: str = ""
    """What bounds the run, and what to try; empty if nothing was trained, and on all ranks but the first."""
    stopped_by: int | None = None
    """Number of the signal that ended the run early."""
    seconds: float = 0.0
    """Of the epochs and their validations, without start and compilation."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastcnn.train") -> int:
    """The command.

    Returns:
        The exit status: 0, 1 if the loss was not finite, 2 for a user's mistake, 128 + n after signal n.
    """
    try:
        result = fit(parse(sys.argv[1:] if argv is None else argv, prog), exits=True)
    except (UserError, TrainingError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, BadImageError):
            print(f"fastcnn: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:  # before training
        return 128 + signal.SIGINT
    return 0 if result.stopped_by is None else 128 + result.stopped_by


def fit(config: Config, exits: bool = False) -> Result:
    """Trains as `config` says, in every process that torchrun started; see `fastcnn.fit`.

    Args:
        exits: whether a second Ctrl-C ends the process, instead of raising KeyboardInterrupt.
    """
    from fastcnn.config.auto import describe
    from fastcnn.config.progressive import sizes_left
    from fastcnn.engine.checkpointer import Run
    from fastcnn.engine.evaluate import evaluate
    from fastcnn.engine.logger import open_report
    from fastcnn.engine.loop import fit_epochs
    from fastcnn.optim.schedules import describe_schedule, draw_schedule
    from fastcnn.profiling.bottleneck import verdict
    from fastcnn.runtime.distributed import Ranks, choose_device, from_main, process_group
    from fastcnn.runtime.signals import stop_on_signals
    from fastcnn.setup.build import build
    from fastcnn.setup.plan import make_plan
    from fastcnn.setup.run_folder import claim_folder, write_config
    from fastcnn.setup.tuning import autotune
    from fastcnn.setup.warmup import kernels_ahead, record_ahead, warm_up_sizes
    from fastcnn.tasks.build import build_task

    started = time.perf_counter()
    check(config)
    ranks = Ranks.from_environment()
    device = choose_device(config.device, ranks)
    with process_group(ranks, device):
        plan = make_plan(config, ranks, device)
        state, train_loader, val_loader = build(plan, ranks, device)
        task = build_task(plan.config.arch, plan.config, int(plan.config.num_classes))
        loaders = train_loader, val_loader
        run = Run(plan.folder, plan.config, plan.source, ranks, state, *loaders, tuple(plan.reasons))
        metrics = task.metrics(device)
        if plan.checkpoint is not None and config.test_only:
            run.restore_weights(plan.checkpoint)
        elif plan.checkpoint is not None:
            run.restore(plan.checkpoint, metrics)
        try:
            if config.test_only:
                val = evaluate(state, task, val_loader)
                run.share_bad_files()
                if ranks.is_main:
                    print("".join(f"{line}\n" for line in run.bad_lines()), end="")
                    print(f"{plan.checkpoint_path}: val {task.describe(val)}  {counted(val)}")
                return Result(state.network, val, run.best, 0.0, plan.folder)
            if config.preview_schedule:
                if ranks.is_main:
                    draw_schedule(state.schedule, Path("schedule.png"))
                    print(f"{describe_schedule(state.schedule)}\nschedule.png")
                return Result(state.network, {}, run.best, 0.0, plan.folder)
            run.folder = from_main(lambda: claim_folder(plan.folder, plan.config))
            settled = autotune(plan.config, plan.reasons, state, task, loaders, run.folder, ranks, started)
            plan = replace(plan, config=settled[0], reasons=settled[1])
            run.config, run.chosen = plan.config, tuple(plan.reasons)
            if ranks.is_main:
                write_config(run.folder, plan.config)
            with stop_on_signals(exits) as stop, open_report(run.folder, ranks.is_main, state) as report:
                report.say(describe(plan.config, plan.reasons))
                for line in (*ineffective(plan.config, plan.reasons), *plan.remarks(state), *run.bad_lines()):
                    report.say(line)
                if ranks.is_main:
                    run.write_bad_files()
                if not state.done:
                    sizes = sizes_left(plan.config, state.schedule.epochs, state.epoch)
                    batch = int(plan.config.batch_size), int(plan.config.in_chans)
                    shapes = sizes, int(plan.config.val_img_size), *batch
                    with kernels_ahead(state.network, device, state.amp_dtype, *shapes, ranks):
                        if plan.config.compile == "on":
                            warm_up_sizes(state, *shapes)
                window_metrics = task.metrics(device)
                if plan.config.progressive is None and not state.done:
                    record_ahead(state, task, train_loader, window_metrics)
                interval = int(plan.config.log_interval)
                diagnose = partial(verdict, config=plan.config, chosen=plan.reasons, room=plan.room(ranks))
                sums = metrics, window_metrics
                outcome = fit_epochs(run, task, val_loader, *sums, report, stop, interval, diagnose)
                report.say(_last_line(run.best, task.best_metric, outcome, run.folder))
                run.restore_best()
        finally:
            train_loader.close()
            val_loader.close()
    val = outcome.val or run.best
    return Result(
        state.network,
        val,
        run.best,
        outcome.images_per_second,
        run.folder,
        outcome.verdict,
        outcome.stopped_by,
        outcome.seconds,
    )


def counted(val: dict[str, float]) -> str:
    """How many images a validation counted, and how many it could not."""
    return f"{val['samples']:,} images" + (f" without {val['bad']} bad ones" if val["bad"] else "")


def _last_line(best: dict[str, float], metric: str, outcome: Outcome, folder: Path) -> str:
    parts = ["nothing validated yet"]
    if best:
        parts = [f"best {metric} {best[metric]:.2f}% of {counted(best)} (epoch {best['epoch']:g})"]
    if outcome.images_per_second:
        parts.append(f"{outcome.images_per_second:,.0f} img/s")
    parts.append(str(folder))
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        parts.append(f"stopped by {name}: go on with --resume {folder}/last.pt")
    return ", ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
