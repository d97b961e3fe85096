"""Train a network.

    torchrun -m fastcnn.train --arch resnet50
    python -m fastcnn.train --arch resnet20 --data cifar10 --epochs 100

`main` parses flags and turns errors into exit statuses. `fit` plans and builds the run, and takes one of
three exits: validate only, preview the schedule, or train. Torch is imported after the flags are parsed.
"""

from __future__ import annotations

from fastcnn.runtime.signals import end_at_once, end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()  # also while the modules below are imported

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn import files
from fastcnn.config import Config
from fastcnn.config.duration import parse_time
from fastcnn.config.parse import parse
from fastcnn.config.validate import check, ineffective
from fastcnn.errors import (
    LocalError,
    PeerLostError,
    TrainingError,
    UserError,
    WriteError,
    escape_unprintable,
)
from fastcnn.runtime.parent import end_with_parent, is_torchruns

if TYPE_CHECKING:
    from torch import nn

    from fastcnn.engine.checkpointer import Checkpointer
    from fastcnn.engine.logger import Logger
    from fastcnn.engine.loop import OnEpoch, Outcome, Trainer
    from fastcnn.runtime.peers import Peers
    from fastcnn.runtime.signals import StopRequest
    from fastcnn.setup.build import Training
    from fastcnn.setup.run_lock import RunLock
    from fastcnn.tasks.metrics import Metrics
    from fastcnn.trackers.tracking import Tracking


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
    history: list[dict[str, Any]] = field(default_factory=list)
    """Records of the epochs, as in metrics.jsonl of the folder; those before a resume are included."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastcnn.train") -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 for a non-finite loss, 2 for a user's mistake, 3 for an error of the machine
        after which the run can be resumed, 128 + n after signal n.
    """
    if is_torchruns():
        end_with_parent()  # also while torch is imported
    escape_unprintable()
    try:
        result = fit(parse(sys.argv[1:] if argv is None else argv, prog), exits=True)
    except PeerLostError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"fastcnn: error: {error}", file=sys.stderr)
        end_at_once(error.status)
    except (UserError, TrainingError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, LocalError):
            print(f"fastcnn: error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        return files.report_stdout(error)
    except KeyboardInterrupt:  # before training
        return 128 + signal.SIGINT
    return 0 if result.stopped_by is None else 128 + result.stopped_by


def fit(config: Config, *, exits: bool = False, on_epoch: OnEpoch | None = None) -> Result:
    """Train with these settings, in every process that torchrun started; see `fastcnn.fit`.

    Args:
        exits: a second Ctrl-C ends the process, instead of raising KeyboardInterrupt; so does a file that is
            not read within `--read-timeout`.
        on_epoch: called by rank 0 with the record of each epoch, once it is saved; a true result stops the
            run, and an error in it ends the run on every rank.
    """
    started = time.perf_counter()
    from fastcnn.data.reading import time_limit
    from fastcnn.runtime.distributed import Ranks, choose_device, process_group
    from fastcnn.runtime.machine import memory_errors_named
    from fastcnn.setup.build import build_training
    from fastcnn.setup.plan import make_plan
    from fastcnn.setup.run_lock import RunLock

    if is_torchruns():
        end_with_parent()
    check(config)
    ranks = Ranks.from_environment()
    device = choose_device(config.device, ranks)
    peer_timeout = parse_time(config.peer_timeout, "--peer-timeout")
    reading = time_limit(parse_time(config.read_timeout, "--read-timeout")) if exits else nullcontext()
    group = process_group(ranks, device, peer_timeout)
    with reading, group as peers, memory_errors_named(device), RunLock() as lock:
        training = build_training(make_plan(config, ranks, device, lock), ranks, device)
        try:
            if config.test_only:
                return _validate(training)
            if config.preview_schedule:
                return _preview_schedule(training)
            return _train(training, lock, peers, started=started, exits=exits, on_epoch=on_epoch)
        except WriteError as error:
            raise WriteError(f"{error}{_next_start(training)}", error.code) from error
        finally:
            training.close()


def _next_start(training: Training) -> str:
    """Return how to continue after a file could not be written; "" on ranks that may not see the folder."""
    from fastcnn.engine.checkpointer import LAST
    from fastcnn.setup.observe import resume_flags

    run, source = training.checkpointer, training.plan.checkpoint_path
    if not training.ranks.is_main:
        return ""
    last = run.folder / LAST if (run.folder / LAST).is_file() else source
    if last is None:
        return "; then start again"
    return f"; then continue with --resume {last}{resume_flags(run.config)}"


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
        print(describe_schedule(run.state.schedule))
        draw_schedule(run.state.schedule, Path("schedule.png"))
        print("schedule.png")
    return Result(network=run.state.network, val={}, best=run.best, folder=run.folder)


def _train(
    training: Training,
    lock: RunLock,
    peers: Peers | None,
    *,
    started: float,
    exits: bool,
    on_epoch: OnEpoch | None,
) -> Result:
    """Train the remaining epochs into the run's folder."""
    from fastcnn.engine.logger import open_logger
    from fastcnn.engine.loop import Trainer
    from fastcnn.profiling.bottleneck import diagnose
    from fastcnn.runtime.distributed import from_main
    from fastcnn.setup.run_record import recorded

    run, task, is_main = training.checkpointer, training.task, training.ranks.is_main
    warning = _begin(training, lock, started)
    plan = training.plan
    tracking = _tracking(training) if is_main else None
    opened = open_logger(run.folder, run.state, enabled=is_main, tracking=tracking)
    with opened as logger, recorded(training, started, logger.info) as record:
        if lock.note:
            logger.info(lock.note)
        _announce(training, logger)
        if warning is not None:
            logger.info(warning)
        interval_metrics = task.metrics(run.state.device)
        if not run.state.done:
            _warm_up(training, interval_metrics)
        trainer = partial(
            Trainer,
            run,
            task,
            logger,
            diagnose=record.noting(
                partial(diagnose, config=plan.config, chosen=plan.reasons, room=plan.room(training.ranks))
            ),
            epoch_metrics=training.epoch_metrics,
            interval_metrics=interval_metrics,
        )
        outcome, interrupted = _run(trainer, peers, exits=exits, on_epoch=on_epoch)
        test = _conclude(training, logger, outcome, interrupted=interrupted, started=started)
        record.end(outcome, run.best, test)
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
        history=from_main(lambda: logger.history),
    )


def _begin(training: Training, lock: RunLock, started: float) -> str | None:
    """Claim the run's folder, resolve what needs a dry run, and save the settings. All ranks call it.

    Returns:
        A warning about the room for checkpoints; None if there is enough.
    """
    from fastcnn.runtime.distributed import from_main, on_main
    from fastcnn.setup.run_folder import claim_folder, write_config
    from fastcnn.setup.storage import check_room

    run = training.checkpointer
    run.folder = from_main(lambda: claim_folder(training.plan.folder, training.plan.config, lock))
    run.check_lock = lock.check
    warning = None if run.state.done else from_main(lambda: check_room(run))
    config, reasons = _tune(training, started)
    training.plan = replace(training.plan, config=config, reasons=reasons)
    run.config, run.chosen = config, tuple(reasons)
    on_main(lambda: write_config(run.folder, config), run.state.device)
    return warning


def _conclude(
    training: Training, logger: Logger, outcome: Outcome, *, interrupted: bool, started: float
) -> dict[str, float]:
    """Load the best weights, evaluate the held-out images, end the log; return the metrics of the test."""
    run = training.checkpointer
    has_best = run.restore_best()
    test = {} if interrupted else _test(training)
    if test:
        _log_test(training, logger, test, "epoch {epoch:g}" if has_best else "the last epoch")
    if run.best:
        logger.track({"kind": "best", "step": run.state.step, **run.best})
    logger.close()  # the total time includes it
    total = time.perf_counter() - started
    logger.info(_last_line(run.best, training.task.best_metric, outcome, run, total))
    return test


def _tracking(training: Training) -> Tracking:
    """Return the trackers of the run on rank 0."""
    from fastcnn.config import to_plain
    from fastcnn.trackers.base import TrackedRun
    from fastcnn.trackers.registry import chosen
    from fastcnn.trackers.tracking import Tracking

    run, config = training.checkpointer, training.plan.config
    tracked = TrackedRun(folder=run.folder, settings=to_plain(config), project=config.tracker_project)
    resumes = training.plan.checkpoint is not None
    return Tracking(chosen(config.tracker), tracked, device=run.state.device, resumes=resumes)


def _run(
    trainer: Callable[[StopRequest], Trainer],
    peers: Peers | None,
    *,
    exits: bool,
    on_epoch: OnEpoch | None,
) -> tuple[Outcome, bool]:
    """Train under stop requests; before and after it, signals end the process.

    Returns:
        The outcome, and whether a signal arrived.

    Raises:
        PeerLostError: another rank is lost.
    """
    from fastcnn.runtime.distributed import any_rank, is_collective_failure
    from fastcnn.runtime.signals import stop_on_signals

    check_peers = peers.check if peers is not None else lambda: None
    with stop_on_signals(exits=exits, check_peers=check_peers) as stop:
        try:
            run = trainer(stop)
            outcome = run.fit(on_epoch)
            return outcome, outcome.stopped_by is not None or any_rank(bool(stop), run.state.device)
        except RuntimeError as error:
            if stop.signal is None or not is_collective_failure(error):
                raise
            reason = f"another rank ended before the save after {signal.Signals(stop.signal).name}"
            raise PeerLostError(reason, 128 + stop.signal) from error


def _log_test(training: Training, logger: Logger, test: dict[str, float], weights: str) -> None:
    from fastcnn.runtime.distributed import on_main

    run, metric = training.checkpointer, training.task.best_metric
    described = f"{metric} {test[metric]:.2f}% of {counted(test)} (weights of {weights.format(**run.best)})"
    step, epoch = run.state.step, run.state.epoch
    progress = step / run.state.schedule.steps_per_epoch
    record = {"step": step, "progress": progress, "epoch": epoch, "metrics": test}
    on_main(lambda: logger.log_test(described, record), run.state.device)
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


def _last_line(
    best: dict[str, float], metric: str, outcome: Outcome, run: Checkpointer, seconds: float
) -> str:
    """Return the last line of a run, with its total time in seconds, start-up included."""
    from fastcnn.engine.logger import clock
    from fastcnn.setup.observe import resume_flags

    parts = ["nothing validated yet"]
    if best:
        parts = [f"best {metric} {best[metric]:.2f}% of {counted(best)} (epoch {best['epoch']:g})"]
    if outcome.images_per_second:
        parts.append(f"{outcome.images_per_second:,.0f} img/s")
    parts += [f"total time {clock(seconds)}", str(run.folder)]
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        flags = resume_flags(run.config)
        parts.append(f"stopped by {name}: continue with --resume {run.folder}/last.pt{flags}")
    return ", ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
