"""Geometry of a depthwise convolution computed in patches, one axis at a time.

One of the two maps of a convolution is cut into patches that a lane keeps in registers; the other is read
through a window that slides with the patch. Forward, the output is patched and the input is windowed. For
both gradients ("transposed") the input's map is patched and the gradient of the output is windowed. The tap
that joins a patch element and a window element depends on their offsets alone. It is known at compile time,
so a stride wastes no multiply-add.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from triton import constexpr_function

SOURCE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the patched map and of the windowed map.

    A compile-time argument of the kernels: its fields are plain numbers; the compiler evaluates its methods.
    """

    patched: int
    """Size of the patched map."""
    windowed: int
    """Size of the windowed map."""
    patch: int
    """Elements of a patch; when transposed, a multiple of the stride."""
    kernel: int
    stride: int
    padding: int
    transposed: bool
    source: str = SOURCE
    """Hash of this file: Triton's cache key has the fields of a compile-time argument, not its methods."""

    @constexpr_function
    def patches(self) -> int:
        return -(-self.patched // self.patch)

    @constexpr_function
    def first(self) -> int:
        """Start of the window of the patch at 0."""
        return -((self.kernel - 1 - self.padding) // self.stride) if self.transposed else -self.padding

    @constexpr_function
    def span(self) -> int:
        """Number of elements in the window."""
        if self.transposed:
            return (self.patch - 1 + self.padding) // self.stride - self.first() + 1
        return (self.patch - 1) * self.stride + self.kernel

    @constexpr_function
    def tap(self, i: int, w: int) -> int:
        """Tap that joins element i of the patch and w of the window; outside the kernel's range if none does.

        It solves output * stride + tap - padding = input.
        """
        if self.transposed:
            return i + self.padding - (w + self.first()) * self.stride
        return w - i * self.stride

    @constexpr_function
    def meets(self, i: int, w: int, low: int = 0, high: int | None = None) -> bool:
        """True if a tap from `low` to below `high`, by default the kernel's size, joins the two elements."""
        return low <= self.tap(i, w) < (self.kernel if high is None else high)

    @constexpr_function
    def window_leaves(self) -> tuple[bool, ...]:
        """True for each window element that lies outside the map for some patch, so its load is masked."""
        last_patch = (self.patches() - 1) * self.patch
        last = last_patch // self.stride if self.transposed else last_patch * self.stride
        places = range(self.first(), self.first() + self.span())
        return tuple(place < 0 or last + place >= self.windowed for place in places)

    @constexpr_function
    def patch_leaves(self) -> tuple[bool, ...]:
        """True for each patch element that lies outside the map for some patch."""
        return (self.patched % self.patch != 0,) * self.patch

    @constexpr_function
    def owns(self, w: int) -> bool:
        """True if element w of the window is an output over the patch itself; each output has one owner.

        For transposed axes.
        """
        return 0 <= w + self.first() < self.patch // self.stride

    @constexpr_function
    def owns_all(self) -> bool:
        """True if every output has an owner, which excess padding prevents."""
        return self.patches() * self.patch // self.stride >= self.windowed


MOST_PIXELS = {
    # (pass, kernel, stride): largest patch. Larger patches need fewer instructions per output, but more
    # registers and a longer program; these sizes were the fastest on an H200 (benchmarks/LOG.md).
    ("forward", 3, 1): 28,
    ("forward", 5, 1): 28,
    ("forward", 7, 1): 16,
    ("forward", 3, 2): 28,
    ("forward", 5, 2): 28,
    ("forward", 7, 2): 14,
    ("input_grad", 3, 2): 28,
    ("input_grad", 5, 2): 32,
    ("input_grad", 7, 2): 28,
    ("weight_grad", 3, 1): 16,
    ("weight_grad", 5, 1): 16,
    ("weight_grad", 7, 1): 14,
    ("weight_grad", 3, 2): 32,
    ("weight_grad", 5, 2): 28,
    ("weight_grad", 7, 2): 28,
}


@functools.cache
def cut(
    kind: str,
    patched: tuple[int, int],
    windowed: tuple[int, int],
    *,
    kernel: int,
    stride: int,
    padding: tuple[int, int],
) -> tuple[Axis, Axis]:
    """Choose the patches that need the fewest instructions for a whole map; return their rows and columns.

    Args:
        kind: "forward", "input_grad" or "weight_grad".
        patched, windowed: height and width of the two maps.
    """
    transposed = kind != "forward"
    unit = stride if transposed else 1
    widest = 14 if transposed else 14 // stride  # its window at stride 2 is twice as wide
    best: tuple[float, int] | None = None
    for height in range(unit, 4 + 1, unit):
        for width in range(unit, widest + 1, unit):
            # Not 1: Triton 3.6 unpacks a tuple of one element that is a tuple of one element itself.
            if not 1 < height * width <= MOST_PIXELS[kind, kernel, stride]:
                continue
            rows, columns = (
                Axis(
                    patched=patched[i],
                    windowed=windowed[i],
                    patch=size,
                    kernel=kernel,
                    stride=stride,
                    padding=padding[i],
                    transposed=transposed,
                )
                for i, size in enumerate((height, width))
            )
            multiply_adds = 2 * height * width * kernel**2 / (stride**2 if transposed else 1)
            loads = 4 * rows.span() * columns.span()  # a load, two conversions, sometimes a mask
            rest = 1.5 * height * width + kernel**2 + 50
            cost = rows.patches() * columns.patches() * (multiply_adds + loads + rest), -width
            if best is None or cost < best:
                best, found = cost, (rows, columns)
    return found


@functools.cache
def chunk(groups: int) -> int:
    """Number of channel groups (pairs, or single channels) that adjacent lanes take, a divisor of `groups`.

    It is near 32: a warp reads whole lines of 128 bytes, no lane idles, and the next warps take the
    neighboring patches.
    """
    divisors = [d for d in range(1, groups + 1) if groups % d == 0]
    # Whole sectors of 32 bytes are preferred.
    return min(divisors, key=lambda d: max(d / 32, 32 / d) * (1 if d % 8 == 0 else 1.5))
