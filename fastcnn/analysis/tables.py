"""Tables of `fastcnn summary` and `fastcnn models`.

fastcnn summary resnet50
fastcnn summary mobilenet_v2 --depth 3 --batch-size 32 --profile
fastcnn models

`fastcnn models` prints a file, since computing it takes many seconds. Update it by

python -m fastcnn.analysis.tables > fastcnn/analysis/networks.txt
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.analysis.layer_times import time_layers
from fastcnn.analysis.receptive_field import Field, Local, Undefined, first_tensor
from fastcnn.analysis.summary import Summary, summarize
from fastcnn.errors import UserError
from fastcnn.models import DETECTION, MODELS, SEGMENTATION, build, constructor
from fastcnn.models.external import is_external
from fastcnn.models.parts import image_sizes
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.runtime.environment import machine_name
from fastcnn_kernels.depthwise_conv import FLOPS

WIDTH = 100
"""Line width in characters."""
LEFT = ("network", "segmentation", "layer", "kind", "output", "receptive field", "weights")
"""Left-aligned columns."""
NOTES = {
    "gate": "times a factor that sees the whole image",
    "norm": "with statistics of the whole image",
    "up": "after upsampling each position sees a part of the window, and its neighbour another",
}
SKIPPED = {
    *("batch_norm", "layer_norm", "relu", "relu6", "hardswish", "silu", "gelu"),
    *("normal_", "uniform_", "zero_", "kaiming_normal_"),
}


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Device and arithmetic of layer timings."""

    device: str = "auto"
    """"auto", "cuda" or "cpu"."""
    amp_dtype: str = "fp32"
    """"fp32", "bf16" or "fp16"."""


def show_summary(
    arch: str,
    *,
    img_size: int | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    batch_size: int | None = None,
    depth: int = 2,
    profile: ProfileOptions | None = None,
) -> None:
    """Print the layers of a network, by default as published.

    Args:
        arch: name as for `--arch`.
        img_size: side of the images in pixels.
        batch_size: number of images; None: 1, and 2 with `profile`, since batch norm in training may need
            two.
        depth: number of module levels in the table.
        profile: time each layer, with the network in training mode; None: evaluation mode, no times.

    Raises:
        UserError: unknown network or device, or the network fails on such images.
    """
    network, channels = _build(arch, num_classes, in_chans, meta=True)
    size = _image_size(arch, img_size)
    shape = (batch_size or (2 if profile else 1), channels, size, size)
    try:
        result = summarize(network.train(profile is not None), torch.empty(shape, device="meta"))
    except Exception as error:  # third-party code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{arch}: cannot take images {_by(shape)}: {reason}; "
            "use another --img-size, --in-chans or --batch-size"
        ) from error
    lines = [f"{arch} in {'training' if profile else 'evaluation'} mode, images {_by(shape)}"]
    if profile:
        network, _ = _build(arch, num_classes, in_chans, meta=False)
        lines.append(_add_times(result, network, shape, profile))
    print("\n".join((*lines, "", *layer_table(result, depth))))


def all_models() -> str:
    """Return tables of the networks of `fastcnn.models` as published, by task; MACs are multiply-adds."""
    tables = {"network": MODELS, "segmentation": SEGMENTATION, "detection": DETECTION}
    lists = ("\n".join(_models_table(title, names)) for title, names in tables.items())
    last = "unet/NAME, yolo/NAME, yolov1/NAME: on any network of the first table, in place of resnet18"
    return "\n\n".join(lists) + f"\n{last}\n"


def _models_table(title: str, names: Iterable[str]) -> list[str]:
    from fastcnn.transfer.weights import has_pretrained

    rows = []
    for name in names:
        counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
        with _Outline(), counter, torch.no_grad():
            network, channels = _build(name, None, None, meta=True)
            size = int(network.default_image_size)  # type: ignore[arg-type]
            network.eval()(torch.empty(1, channels, size, size, device="meta"))
        parameters = sum(p.numel() for p in network.parameters())
        macs = short(counter.get_total_flops() // 2)
        rows.append((name, f"{parameters:,}", macs, str(size), "yes" if has_pretrained(name) else "no"))
    titles = (title, "parameters", "MACs", "image", "weights")
    return grid({title: list(column) for title, column in zip(titles, zip(*rows))})


class _Outline(TorchFunctionMode):
    """Skips operations without effect on shapes and multiply-adds: half of the time on the meta device."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return first_tensor((args, kwargs)) if func.__name__ in SKIPPED else func(*args, **kwargs)


def _build(arch: str, num_classes: int | None, in_chans: int | None, *, meta: bool) -> tuple[nn.Module, int]:
    """Return a network, on the meta device or the CPU, and its input channels."""
    if in_chans is None:
        in_chans = inspect.signature(constructor(arch)).parameters["in_chans"].default
    outline = meta and not is_external(arch)  # external networks may need values when they are built
    with torch.device("meta" if outline else "cpu"):
        network = build(arch, num_classes, in_chans)
    return (network.to("meta") if meta else network), in_chans


def _image_size(arch: str, size: int | None) -> int:
    """Return `size` after a check that the network takes it; None: the published size."""
    default, fixed, minimum, multiple = image_sizes(arch)
    if size is None:
        return default
    if (fixed and size != default) or size < minimum or size % multiple:
        takes = f"{minimum} px or more" + (f", multiples of {multiple}" if multiple > 1 else "")
        raise UserError(f"--img-size {size}: {arch} takes {f'{default} px only' if fixed else takes}")
    return size


def _add_times(result: Summary, network: nn.Module, shape: tuple[int, ...], options: ProfileOptions) -> str:
    """Time the layers of `result`, and return a line on the conditions."""
    ranks, device, amp_dtype = Ranks.from_environment(), options.device, options.amp_dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose_device(device, ranks)
    if not machine.is_native(amp_dtype, chosen):
        raise UserError(
            f"--amp-dtype {amp_dtype}: this processor has no {amp_dtype} arithmetic, and emulated times "
            "would mislead; use --amp-dtype fp32"
        )
    machine.prepare(chosen, machine.cores_per_process(ranks), deterministic=False)
    network = network.train().to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(shape, device=chosen).contiguous(memory_format=torch.channels_last)
    layer_times = time_layers(network, image, machine.DTYPES[amp_dtype])
    for layer, times in zip(result.layers, layer_times, strict=True):
        layer.milliseconds = times
    return f"timed on {machine_name(chosen)} in {amp_dtype}, channels-last, without torch.compile; medians"


def layer_table(summary: Summary, depth: int = 2) -> list[str]:
    """Return the layers and totals as lines of at most `WIDTH` characters.

    Args:
        depth: number of module levels in the table; deeper ones are included in their parents.
    """
    shown, parents = [layer for layer in summary.layers[1:] if layer.depth <= depth], {0: ""}
    names = []
    for layer in shown:
        parents[layer.depth] = f"{layer.name}."
        names.append("  " * (layer.depth - 1) + layer.name.removeprefix(parents[layer.depth - 1]))
    images = summary.layers[0].shape[:1]
    columns = {
        "layer": names,
        "kind": [layer.kind for layer in shown],
        "output": [_by(s[1:] if s[:1] == images else s) for s in (layer.shape for layer in shown)],
        "parameters": [f"{layer.parameters:,}" if layer.parameters else "" for layer in shown],
        "MACs": [short(layer.multiply_adds) if layer.multiply_adds else "" for layer in shown],
        "kept MiB": [_figure(layer.saved_bytes / 2**20) if layer.saved_bytes else "" for layer in shown],
    }
    if summary.layers[0].milliseconds is not None:
        for i, title in enumerate(("fwd ms", "bwd ms")):
            columns[title] = [_figure(layer.milliseconds[i]) if layer.milliseconds else "" for layer in shown]
    columns["receptive field"] = [_field(layer.field) for layer in shown]
    return [*grid(columns), "", *_notes(summary)]


def _field(field: Field | None) -> str:
    return "not defined" if isinstance(field, Undefined) else "" if field is None else str(field)


def _notes(summary: Summary) -> Iterator[str]:
    total = summary.layers[0]
    maps = [layer.field for layer in summary.layers if isinstance(layer.field, Local)]
    notes = {word for field in maps for word in field.notes}
    yield "Receptive field: size/stride/offset in pixels"
    yield from (f"  {word}: {meaning}" for word, meaning in NOTES.items() if word in notes)
    for reason, name in summary.undefined.items():
        yield f"Not defined from {name} on: {reason}"
    for name, count in summary.uncalled.items():
        yield f"Not called: {name}, {count:,} parameters"
    times = total.milliseconds
    if times is not None:
        yield f"{_figure(times[0])} ms forward, {_figure(times[1])} ms backward"
    size, kept = _figure(summary.parameter_bytes / 2**20), _figure(total.saved_bytes / 2**20)
    macs = short(total.multiply_adds)
    yield f"{total.parameters:,} parameters ({size} MiB), {macs} multiply-adds, {kept} MiB kept for backward"


def grid(columns: dict[str, list[str]]) -> list[str]:
    """Return columns with titles as lines. Names are left-aligned, figures right-aligned, long names cut."""
    widths = {title: max(map(len, (title, *cells))) for title, cells in columns.items()}
    for title in ("kind", "layer"):
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - WIDTH
        if title in widths and excess > 0:
            widths[title] = max(8, widths[title] - excess)
    lines = []
    for row in zip(*((title, *cells) for title, cells in columns.items())):
        cells = []
        for (title, width), cell in zip(widths.items(), row):
            cell = cell if len(cell) <= width else cell[: width - 2] + ".."
            cells.append(cell.ljust(width) if title in LEFT else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def short(number: float) -> str:
    """Format a number with three digits and a power of 1,000: 4.09G."""
    power = 0
    while number >= 999.5:
        number, power = number / 1000, power + 1
    return f"{number:#.3g}".rstrip(".") + "KMGTP"[power - 1] if power else str(number)


if __name__ == "__main__":
    print(all_models(), end="")
