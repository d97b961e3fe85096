"""What several families share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fastcnn_kernels import DepthwiseConv2d

Norm = Callable[[int], nn.Module]


class ConvNormAct(nn.Sequential):
    """Convolution without bias, padded to keep the size at stride 1; batch norm; activation.

    Args:
        kernel, stride: of both axes.
        activation: class of the activation; None: none.
        depthwise: one filter for each channel; `in_channels` and `out_channels` are the same.
        norm: makes the normalization of so many channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        depthwise: bool = False,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        padding = (kernel - 1) // 2
        conv: nn.Module
        if depthwise:
            assert in_channels == out_channels
            conv = DepthwiseConv2d(in_channels, kernel, stride, padding, bias=False)
        else:
            conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        super().__init__(
            conv, norm(out_channels), *([] if activation is None else [activation(inplace=True)])
        )


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, up where that would take away more than a tenth (MobileNetV2)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def he_normal(network: nn.Module, linear_std: float | None = None) -> None:
    """Starts convolutions as He et al. 2015 (section 2.2, by outputs), with biases of 0.

    Args:
        linear_std: deviation of linear layers, with biases of 0; None leaves them as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0, linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
