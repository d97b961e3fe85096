"""Build a training from its plan: network on the device, loaders, optimizer, checkpointer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastcnn.config import Config
from fastcnn.data.loaders.base import Loader
from fastcnn.data.loaders.build import build_loaders, build_test_loader
from fastcnn.data.transforms.mixing import Mixing
from fastcnn.engine.checkpoint import check_metrics
from fastcnn.engine.checkpointer import Checkpointer
from fastcnn.engine.state import StepOptions, TrainState, build_state
from fastcnn.errors import UserError
from fastcnn.models.external import with_sync_bn
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, on_every_rank
from fastcnn.setup.plan import Plan
from fastcnn.tasks.base import Task
from fastcnn.tasks.build import task_for
from fastcnn.tasks.metrics import Metrics
from fastcnn.transfer.freeze import Frozen, lr_scales


@dataclass(kw_only=True)
class Training:
    """A training that is ready to start, or to resume."""

    plan: Plan
    ranks: Ranks
    task: Task
    checkpointer: Checkpointer
    """Holds the state and the loaders."""
    epoch_metrics: Metrics
    """Sums of the current epoch; empty unless the run resumes within one."""

    @property
    def state(self) -> TrainState:
        return self.checkpointer.state

    def close(self) -> None:
        """Stop the loaders."""
        self.checkpointer.loader.close()
        self.checkpointer.val_loader.close()

    def open_test_loader(self) -> Loader | None:
        """Return the loader of the held-out images; None without any. All ranks call it."""
        plan, config, test = self.plan, self.plan.config, self.plan.source.test
        if test is None:
            return None
        return on_every_rank(
            lambda: build_test_loader(
                test,
                plan.transform,
                config,
                ranks=self.ranks,
                device=self.state.device,
                seed=config.seed,
                val_size=int(config.val_img_size),
            )
        )


def build_training(plan: Plan, ranks: Ranks, device: torch.device) -> Training:
    """Build everything that a run needs, and load the checkpoint that it resumes from.

    Raises:
        ValueError: fewer images than one batch or one update.
    """
    config = plan.config
    task = task_for(config, plan.source)
    state, loader, val_loader = build(plan, ranks, device)
    checkpointer = Checkpointer(
        folder=plan.folder,
        config=config,
        source=plan.source,
        ranks=ranks,
        state=state,
        loader=loader,
        val_loader=val_loader,
        chosen=tuple(plan.reasons),
    )
    metrics = task.metrics(device)
    training = Training(plan=plan, ranks=ranks, task=task, checkpointer=checkpointer, epoch_metrics=metrics)
    try:
        if plan.checkpoint is not None:
            check_metrics(plan.checkpoint, metrics, task.best_metric)
        if plan.checkpoint is not None and config.test_only:
            checkpointer.restore_weights(plan.checkpoint)
        elif plan.checkpoint is not None:
            checkpointer.restore(plan.checkpoint, metrics)
    except BaseException:
        training.close()
        raise
    return training


def build(plan: Plan, ranks: Ranks, device: torch.device) -> tuple[TrainState, Loader, Loader]:
    """Build the state, and the training and validation loaders.

    Raises:
        ValueError: fewer images than one batch or one update.
    """
    config, source = plan.config, plan.source
    train_loader, val_loader = on_every_rank(
        lambda: build_loaders(
            source,
            plan.transform,
            config,
            ranks=ranks,
            device=device,
            seed=config.seed,
            val_size=int(config.val_img_size),
        )
    )
    schedule = _schedule(config, len(train_loader))

    # The network on its device, the frozen part of it, and its optimizer.
    network = with_sync_bn(plan.network, config.arch) if config.sync_bn else plan.network
    network = network.to(device)
    epoch = plan.checkpoint["epoch"] if plan.checkpoint is not None else 0
    thawed = config.unfreeze_epoch is not None and epoch + 1 >= config.unfreeze_epoch
    frozen = Frozen(network, plan.frozen) if plan.frozen and not thawed else None
    scales = lr_scales(network, config.backbone_lr_scale, config.layer_decay)
    optimizer = build_optimizer(network, config, lr=schedule.peak, lr_scales=scales)
    state = build_state(
        network,
        optimizer,
        schedule,
        step_options(config),
        mean=source.mean,
        std=source.std,
        frozen=frozen,
    )
    torch.manual_seed(config.seed + ranks.rank)  # from here on random numbers (dropout) differ between ranks
    return state, train_loader, val_loader


def step_options(config: Config) -> StepOptions:
    """Return the options of the training step, from settings without "auto"."""
    return StepOptions(
        amp_dtype=machine.DTYPES[config.amp_dtype],
        channels_last=config.channels_last == "on",
        compile=config.compile == "on",
        cuda_graph=config.cuda_graph and not config.test_only,
        accum_steps=config.grad_accum_steps,
        clip_grad=config.clip_grad,
        clip_mode=config.clip_mode,
        ema_decay=config.model_ema_decay if config.model_ema else None,
        ema_steps=config.model_ema_steps,
        mixing=Mixing.of(config),
        seed=config.seed,
        tta=config.tta,
    )


def _schedule(config: Config, batches: int) -> Schedule:
    """Return the learning rate schedule for the batches of an epoch; its peak is 0 with --lr find."""
    steps_per_epoch = batches // config.grad_accum_steps
    if steps_per_epoch == 0:
        raise UserError(
            f"--grad-accum-steps {config.grad_accum_steps}: more than the {batches} batches of an "
            f"epoch; use at most {batches}"
        )
    if round(float(config.epochs) * steps_per_epoch) == 0:
        raise UserError(
            f"--epochs {config.epochs:g}: less than one of the {steps_per_epoch} updates of an epoch; "
            f"use at least {1 / steps_per_epoch:.2g}"
        )
    peak = 0.0 if config.lr == "find" else float(config.lr)
    return Schedule.of(config, peak=peak, steps_per_epoch=steps_per_epoch)
