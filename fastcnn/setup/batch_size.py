"""`--batch-size max`, and `auto` on a GPU: largest batch that fits its memory, by trials."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import nn

from fastcnn.config import Config, OptimizerSettings
from fastcnn.engine.state import Normalized
from fastcnn.errors import UserError
from fastcnn.optim.build import build_optimizer
from fastcnn.runtime.distributed import Ranks, gather_to_all
from fastcnn.runtime.machine import DTYPES, is_out_of_memory
from fastcnn.setup.cpu_trials import random_images
from fastcnn.setup.warmup import InputShapes, any_loss, kernels_ahead

RESERVE = 0.1
"""Fraction of the free memory reserved for the loader, the moving average and fragmentation."""
NO_ALGORITHM = "Unable to find a valid cuDNN algorithm", "unable to find an engine to execute"
"""Messages of PyTorch after all algorithms of cuDNN failed: for lack of workspace, or for another reason."""
MULTIPLE = 8
"""Divisor of larger batches, for fast matrix products on a GPU."""


def largest_that_fits(fits: Callable[[int], bool], cap: int) -> int:
    """Return the largest batch up to `cap` that fits, or 0; from 8 on a multiple of 8, or `cap` itself.

    The size doubles until it does not fit, and bisection follows. A failed trial may have fragmented the
    memory, so the result is tried again and reduced while it fails.
    """
    if fits(cap):
        return cap
    low, high = 0, 1  # 0 fits
    while high < cap and fits(high):
        low, high = high, 2 * high
    high = min(high, cap)
    while high - low > (MULTIPLE if low >= MULTIPLE else 1):
        middle = (low + high) // 2
        if low >= MULTIPLE:
            middle = max(middle - middle % MULTIPLE, low + MULTIPLE)
        low, high = (middle, high) if fits(middle) else (low, middle)
    while low > 0 and not fits(low):
        low = low - MULTIPLE if low > MULTIPLE else low - 1
    return low


def find_batch_size(
    build: Callable[[], nn.Module], config: Config, cap: int, device: torch.device, ranks: Ranks
) -> int:
    """Return the largest batch that trains and validates on this CUDA device and those of all ranks.

    Args:
        build: returns the network. It is not compiled here, which takes no less memory.
        config: settings without "auto", except for the batch size.
        cap: max images per batch.

    Raises:
        UserError: a single image does not fit.
    """
    network = build().to(device)
    if config.channels_last == "on":
        network = network.to(memory_format=torch.channels_last)
    shapes = InputShapes(
        sizes=config.progressive or (int(config.img_size),),
        val_size=int(config.val_img_size),
        batch_size=cap,
        channels=int(config.in_chans),
    )
    with kernels_ahead(network, shapes, device=device, dtype=DTYPES[config.amp_dtype], ranks=ranks):
        pass
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    limit = int((1 - RESERVE) * min(free + torch.cuda.memory_reserved(device), allowed))

    def fits(size: int) -> bool:
        return _fits(network, config, size, limit, device)

    largest = min(gather_to_all(largest_that_fits(fits, cap)))
    network.cpu()
    _free()
    if largest == 0:
        raise UserError(
            f"--batch-size {config.batch_size}: not one image of {config.img_size} px fits the GPU's memory; "
            "use a smaller --img-size or --arch, or end what else runs on it"
        )
    return largest


def is_too_many(size: int, error: RuntimeError) -> bool:
    """Return whether an error means that a batch of `size` images does not fit.

    If cuDNN finds no algorithm for a single image, lack of memory is not the reason.
    """
    return is_out_of_memory(error) or (size > 1 and any(part in str(error) for part in NO_ALGORITHM))


def _fits(network: nn.Module, config: Config, size: int, limit: int, device: torch.device) -> bool:
    """Return whether an update and a validation of `size` images stay below `limit` bytes."""
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _try(network, config, size, device)
        return torch.cuda.max_memory_reserved(device) <= limit
    except RuntimeError as error:
        if not is_too_many(size, error):
            raise
        return False
    except ValueError:  # batch norm of one value per channel, for which `check_shapes` has a message
        if size > 1:
            raise
        return True
    finally:
        network.zero_grad(set_to_none=True)
        _free()


def _try(network: nn.Module, config: Config, size: int, device: torch.device) -> None:
    channels, pixels, val_pixels = int(config.in_chans), int(config.img_size), int(config.val_img_size)
    model = Normalized(
        network, [0.5] * channels, [0.5] * channels, channels_last=config.channels_last == "on"
    )
    model = model.to(device)
    optimizer = build_optimizer(network, OptimizerSettings(opt=config.opt, weight_decay=0.0), lr=0.0)
    dtype, half = DTYPES[config.amp_dtype], config.amp_dtype != "fp32"
    with torch.autocast(device.type, dtype=dtype, enabled=half):
        outputs = model.train()(random_images((size, channels, pixels, pixels), device))
    any_loss(outputs).backward()
    optimizer.step()
    del outputs
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=half):
        model.eval()(random_images((size, channels, val_pixels, val_pixels), device))


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
