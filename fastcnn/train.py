"""Train a network.

    torchrun -m fastcnn.train --arch resnet50
    python -m fastcnn.train --arch resnet20 --data cifar10 --epochs 100

`main` parses flags and turns errors into exit statuses. `fit` plans and builds the run, and takes one of
three exits: validate only, preview the schedule, or train. Torch is imported after the flags are parsed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastcnn.config import Config
from fastcnn.config.parse import parse
from fastcnn.config.validate import check, ineffective
from fastcnn.errors import LocalError, TrainingError, UserError

if TYPE_CHECKING:
    from torch import nn

    from fastcnn.engine.logger import Logger
    from fastcnn.engine.loop import Outcome
    from fastcnn.setup.build import Training
    from fastcnn.tasks.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a run."""

    network: nn.Module
    """Network with the weights of the best epoch, as in `best.pt` of the folder."""
    val: dict[str, float]
    """Validation metrics of the last epoch, in percent."""
    best: dict[str, float]
    """Validation metrics of the best epoch, and its number as "epoch"."""
    test: dict[str, float] = field(default_factory=dict)
    """Metrics of the held-out images with the weights of the best epoch; empty without any."""
    images_per_second: float = 0.0
    """Training throughput over all ranks, without validation and the first log interval."""
    folder: Path
    verdict: str = ""
    """Bottleneck of the run and advice; empty if nothing was trained, and on all ranks but the first."""
    stopped_by: int | None = None
    """Number of the signal that ended the run early."""
    seconds: float = 0.0
    """Duration of the epochs and their validations, without start-up and compilation."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastcnn.train") -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 for a non-finite loss, 2 for a user's mistake, 128 + n after signal n.
    """
    try:
        result = fit(parse(sys.argv[1:] if argv is None else argv, prog), exits=True)
    except (UserError, TrainingError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, LocalError):
            print(f"fastcnn: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:  # before training
        return 128 + signal.SIGINT
    return 0 if result.stopped_by is None else 128 + result.stopped_by


def fit(config: Config, *, exits: bool = False) -> Result:
    """Train with these settings, in every process that torchrun started; see `fastcnn.fit`.

    Args:
        exits: a second Ctrl-C ends the process, instead of raising KeyboardInterrupt.
    """
    from fastcnn.runtime.distributed import Ranks, choose_device, process_group
    from fastcnn.runtime.machine import memory_errors_named
    from fastcnn.setup.build import build_training
    from fastcnn.setup.plan import make_plan

    started = time.perf_counter()
    check(config)
    ranks = Ranks.from_environment()
    device = choose_device(config.device, ranks)
    with process_group(ranks, device), memory_errors_named(device):
        training = build_training(make_plan(config, ranks, device), ranks, device)
        try:
            if config.test_only:
                return _validate(training)
            if config.preview_schedule:
                return _preview_schedule(training)
            return _train(training, started, exits=exits)
        finally:
            training.close()


def _validate(training: Training) -> Result:
    """Evaluate the checkpoint and print its metrics."""
    from fastcnn.engine.evaluate import evaluate

    run, plan = training.checkpointer, training.plan
    val = evaluate(run.state, training.task, run.val_loader)
    run.share_bad_files()
    test = _test(training)
    if training.ranks.is_main:
        print("".join(f"{line}\n" for line in run.bad_lines()), end="")
        for name, measured in (("val", val), ("test", test)):
            if measured:
                described = training.task.describe(measured)
                print(f"{plan.checkpoint_path}: {name} {described}  {counted(measured)}")
    return Result(network=run.state.network, val=val, best=run.best, test=test, folder=plan.folder)


def _test(training: Training) -> dict[str, float]:
    """Evaluate the held-out images with the current weights; empty without any. All ranks call it."""
    from fastcnn.engine.evaluate import evaluate

    run = training.checkpointer
    run.test_loader = training.open_test_loader()
    if run.test_loader is None:
        return {}
    try:
        measured = evaluate(run.state, training.task, run.test_loader)
        run.share_bad_files()
    finally:
        run.test_loader.close()
    return measured


def _preview_schedule(training: Training) -> Result:
    """Draw and print the learning rate schedule."""
    from fastcnn.optim.schedules import describe_schedule, draw_schedule

    run = training.checkpointer
    if training.ranks.is_main:
        draw_schedule(run.state.schedule, Path("schedule.png"))
        print(f"{describe_schedule(run.state.schedule)}\nschedule.png")
    return Result(network=run.state.network, val={}, best=run.best, folder=run.folder)


def _train(training: Training, started: float, *, exits: bool) -> Result:
    """Train the remaining epochs into the run's folder."""
    from fastcnn.engine.logger import open_logger
    from fastcnn.engine.loop import Trainer
    from fastcnn.profiling.bottleneck import diagnose
    from fastcnn.runtime.distributed import any_rank, from_main
    from fastcnn.runtime.signals import stop_on_signals
    from fastcnn.setup.run_folder import claim_folder, write_config

    run, task, is_main = training.checkpointer, training.task, training.ranks.is_main
    run.folder = from_main(lambda: claim_folder(training.plan.folder, training.plan.config))
    config, reasons = _tune(training, started)
    plan = training.plan = replace(training.plan, config=config, reasons=reasons)
    run.config, run.chosen = config, tuple(reasons)
    if is_main:
        write_config(run.folder, config)
    with stop_on_signals(exits=exits) as stop, open_logger(run.folder, run.state, enabled=is_main) as logger:
        _announce(training, logger)
        interval_metrics = task.metrics(run.state.device)
        if not run.state.done:
            _warm_up(training, interval_metrics)
        trainer = Trainer(
            run,
            task,
            logger,
            stop,
            partial(diagnose, config=config, chosen=reasons, room=plan.room(training.ranks)),
            epoch_metrics=training.epoch_metrics,
            interval_metrics=interval_metrics,
        )
        outcome = trainer.fit()
        interrupted = outcome.stopped_by is not None or any_rank(bool(stop), run.state.device)
        has_best = run.restore_best()
        test = {} if interrupted else _test(training)
        if test:
            _log_test(training, logger, test, "epoch {epoch:g}" if has_best else "the last epoch")
        logger.info(_last_line(run.best, task.best_metric, outcome, run.folder))
    return Result(
        network=run.state.network,
        val=outcome.val or run.best,
        best=run.best,
        test=test,
        images_per_second=outcome.images_per_second,
        folder=run.folder,
        verdict=outcome.verdict,
        stopped_by=outcome.stopped_by,
        seconds=outcome.seconds,
    )


def _log_test(training: Training, logger: Logger, test: dict[str, float], weights: str) -> None:
    run, metric = training.checkpointer, training.task.best_metric
    described = f"{metric} {test[metric]:.2f}% of {counted(test)} (weights of {weights.format(**run.best)})"
    step, epoch = run.state.step, run.state.epoch
    progress = step / run.state.schedule.steps_per_epoch
    logger.log_test(described, {"step": step, "progress": progress, "epoch": epoch, "metrics": test})
    if training.ranks.is_main:
        run.write_bad_files()


def _tune(training: Training, started: float) -> tuple[Config, dict[str, str]]:
    """Resolve the settings that need a dry run of the training: `--lr find` and `--time-budget`."""
    from fastcnn.setup.lr_finder import find_lr
    from fastcnn.setup.time_budget import fit_time_budget

    config, reasons = training.plan.config, training.plan.reasons
    if config.lr == "find":
        config, reasons = find_lr(training, config, reasons)
    if config.time_budget is not None:
        config, reasons = fit_time_budget(training, config, reasons, started)
    return config, reasons


def _announce(training: Training, logger: Logger) -> None:
    """Log the settings, warnings and remarks before the first step."""
    from fastcnn.config.auto import describe

    run, plan = training.checkpointer, training.plan
    logger.info(describe(plan.config, plan.reasons))
    for line in (*ineffective(plan.config, plan.reasons), *plan.remarks(run.state), *run.bad_lines()):
        logger.info(line)
    if training.ranks.is_main:
        run.write_bad_files()


def _warm_up(training: Training, interval_metrics: Metrics) -> None:
    """Compile kernels and network, and capture the step, before the first one."""
    from fastcnn.config.progressive import sizes_left
    from fastcnn.setup.warmup import InputShapes, kernels_ahead, record_ahead, warm_up_sizes

    state, config = training.state, training.plan.config
    shapes = InputShapes(
        sizes=sizes_left(config, state.schedule.epochs, state.epoch),
        val_size=int(config.val_img_size),
        batch_size=int(config.batch_size),
        channels=int(config.in_chans),
    )
    dtype, ranks = state.options.amp_dtype, training.ranks
    with kernels_ahead(state.network, shapes, device=state.device, dtype=dtype, ranks=ranks):
        if config.compile == "on":
            warm_up_sizes(state, shapes)
    if config.progressive is None:
        record_ahead(state, training.task, training.checkpointer.loader, interval_metrics)


def counted(val: dict[str, float]) -> str:
    """Format the number of validated images, and of undecodable ones."""
    return f"{val['samples']:,} images" + (f" without {val['bad']} undecodable ones" if val["bad"] else "")


def _last_line(best: dict[str, float], metric: str, outcome: Outcome, folder: Path) -> str:
    parts = ["nothing validated yet"]
    if best:
        parts = [f"best {metric} {best[metric]:.2f}% of {counted(best)} (epoch {best['epoch']:g})"]
    if outcome.images_per_second:
        parts.append(f"{outcome.images_per_second:,.0f} img/s")
    parts.append(str(folder))
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        parts.append(f"stopped by {name}: continue with --resume {folder}/last.pt")
    return ", ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
