"""From a plan to everything a run needs: the network on its device, loaders and optimizer."""

from __future__ import annotations

import torch

from fastcnn.data.loaders.base import Loader
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.transforms.mixing import Mixing
from fastcnn.engine.state import TrainState, build_state
from fastcnn.errors import UserError
from fastcnn.models.external import with_sync_bn
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, on_every_rank
from fastcnn.setup.plan import Plan
from fastcnn.transfer.freeze import Frozen, lr_scales


def build(plan: Plan, ranks: Ranks, device: torch.device) -> tuple[TrainState, Loader, Loader]:
    """The state that training changes, and the training and validation loaders.

    Raises:
        ValueError: fewer images than one batch, or than one update takes.
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
    steps_per_epoch = len(train_loader) // config.grad_accum_steps
    if steps_per_epoch == 0:
        raise UserError(
            f"--grad-accum-steps {config.grad_accum_steps}: more than the {len(train_loader)} batches of an "
            f"epoch; write {len(train_loader)} or less"
        )
    least = 1 / steps_per_epoch
    if round(float(config.epochs) * steps_per_epoch) == 0:
        raise UserError(
            f"--epochs {config.epochs:g}: less than one of the {steps_per_epoch} updates of an epoch; "
            f"write {least:.2g} or more"
        )
    schedule = Schedule(
        peak=0.0 if config.lr == "find" else float(config.lr),
        steps_per_epoch=steps_per_epoch,
        epochs=float(config.epochs),
        warmup_epochs=float(config.warmup_epochs),
        warmup_factor=config.warmup_factor,
        kind=config.sched,
        min_lr=config.min_lr,
        decay_epochs=config.decay_epochs,
        decay_milestones=config.decay_milestones,
        decay_rate=config.decay_rate,
        decay_power=config.decay_power,
    )
    network = with_sync_bn(plan.network, config.arch) if config.sync_bn else plan.network
    network = network.to(device)
    epoch = plan.checkpoint["epoch"] if plan.checkpoint is not None else 0
    thawed = config.unfreeze_epoch is not None and epoch + 1 >= config.unfreeze_epoch
    frozen = Frozen(network, plan.frozen) if plan.frozen and not thawed else None
    optimizer = build_optimizer(
        network,
        config.opt,
        schedule.peak,
        float(config.weight_decay),
        config.momentum,
        lr_scales(network, config.backbone_lr_scale, config.layer_decay),
    )
    mixing = Mixing(config.mixup, config.cutmix, config.mixup_prob, config.mixup_off_epoch)
    state = build_state(
        network,
        source.mean,
        source.std,
        optimizer,
        schedule,
        device,
        amp_dtype=machine.DTYPES[config.amp_dtype],
        channels_last=config.channels_last == "on",
        compile=config.compile == "on",
        cuda_graph=config.cuda_graph and not config.test_only,
        ema_decay=config.model_ema_decay if config.model_ema else None,
        ema_steps=config.model_ema_steps,
        accum_steps=config.grad_accum_steps,
        clip_grad=config.clip_grad,
        clip_mode=config.clip_mode,
        frozen=frozen,
        mixing=mixing if mixing.mixup > 0 or mixing.cutmix > 0 else None,
        seed=config.seed,
        tta=config.tta,
    )
    torch.manual_seed(config.seed + ranks.rank)  # from here on ranks draw differently (dropout)
    return state, train_loader, val_loader
