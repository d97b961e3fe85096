"""`--batch-size max`, and `auto` on a GPU: how many images fit into its memory, by trying."""

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
from fastcnn.runtime.machine import DTYPES
from fastcnn.setup.cpu_trials import random_images
from fastcnn.setup.warmup import InputShapes, any_loss, kernels_ahead

RESERVE = 0.1
"""Share of the free memory that is left for the loader, the moving average and fragmentation."""
OUT_OF_MEMORY = "out of memory", "STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"
"""In the messages of PyTorch's allocator and the driver, of cuBLAS and cuDNN before 9, and of cuDNN 9."""
NO_ALGORITHM = "Unable to find a valid cuDNN algorithm", "unable to find an engine to execute"
"""PyTorch's, if each algorithm of cuDNN failed, maybe for want of a workspace, maybe for another reason."""
MULTIPLE = 8
"""Of larger batches: what matrix products on a GPU like."""


def largest_that_fits(fits: Callable[[int], bool], cap: int) -> int:
    """The largest batch up to `cap`, from 8 on a multiple of 8 unless it is `cap` itself, or 0.

    It doubles until one does not fit, and halves what is in between. A batch that does not fit may have left
    the memory in pieces, so what is found is tried once more, and a smaller one taken if it fails now.
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
    """The largest batch that can be trained and validated on this CUDA device, and on those of all ranks.

    Args:
        build: makes the network; what it computes is not compiled here, which takes no less memory.
        config: settings without "auto", but for the batch.
        cap: images of a batch at most.

    Raises:
        UserError: not even one image fits.
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

    found = min(gather_to_all(largest_that_fits(fits, cap)))
    network.cpu()
    _free()
    if found == 0:
        raise UserError(
            f"--batch-size {config.batch_size}: not one image of {config.img_size} px fits the GPU's memory; "
            "use a smaller --img-size or --arch, or end what else runs on it"
        )
    return found


def is_too_many(size: int, error: RuntimeError) -> bool:
    """Whether an error means that so many images do not fit.

    Not all that run out of memory are `torch.OutOfMemoryError`: libraries have memory of their own. Where
    cuDNN finds no algorithm for even one image, it is not for want of memory.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return any(part in text for part in OUT_OF_MEMORY) or (
        size > 1 and any(part in text for part in NO_ALGORITHM)
    )


def _fits(network: nn.Module, config: Config, size: int, limit: int, device: torch.device) -> bool:
    """Whether an update and a validation of so many images stay below `limit` bytes."""
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _try(network, config, size, device)
        return torch.cuda.max_memory_reserved(device) <= limit
    except RuntimeError as error:
        if not is_too_many(size, error):
            raise
        return False
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
