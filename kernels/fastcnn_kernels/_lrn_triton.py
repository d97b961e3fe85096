"""Triton kernels of local response normalization: forward and gradient, each in one pass over memory.

A lane owns a group of neighboring channels of one pixel as a tuple of float32, and reads further channels on
either side. Where channels are adjacent in groups of 16 bytes, a group is one load; otherwise each channel is
a load of its own, in any dense format. A window's sum takes at most three instructions whatever its size:
channels are cut into blocks as long as the window, and each window is the end of one block and the beginning
of the next (van Herk 1992; Gil and Werman 1993), so nothing is subtracted.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def _load_size(channels: int) -> int:
    """Elements of a load: a power of two, at least a whole word in half precision."""
    return 1 << max(1, (channels - 1).bit_length())


@triton.jit
def _lanes(lanes, stride, C: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Mask of the live lanes, first channel of each lane's group, and its offset in memory."""
    GROUPS: tl.constexpr = (C + GROUP - 1) // GROUP
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        channel = lane % GROUPS * GROUP
        offset = lane.to(tl.int64) * GROUP
    else:
        channel = lane // stride % GROUPS * GROUP
        image = (lane // stride // GROUPS).to(tl.int64)
        offset = image * (C * stride) + (channel * stride + lane % stride)
    return lane < lanes, channel, offset


@triton.jit
def _inside(live, channel, j: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr):
    """Mask of the lanes whose channel j, counted from the first of the group, exists."""
    if not WIDE:
        inside = live & (channel + j >= 0) & (channel + j < C)
    elif j < 0:  # of whole groups one comparison serves a side
        inside = live & (channel > 0)
    elif j >= GROUP:
        inside = live & (channel < C - GROUP)
    else:
        inside = live
    return inside


@triton.jit
def _split(values):
    """Split blocks along their last axis, of size 2. Repeated on [lanes, 2, ..., 2] it gives memory order."""
    firsts = values[:0]
    seconds = values[:0]
    for i in tl.static_range(len(values)):
        first, second = values[i].split()
        firsts = firsts + (first,)
        seconds = seconds + (second,)
    return firsts + seconds


@triton.jit
def _join(values):
    """Inverse of `_split`."""
    HALF: tl.constexpr = len(values) // 2
    joined = values[:0]
    for i in tl.static_range(HALF):
        joined = joined + (tl.join(values[i], values[i + HALF]),)
    return joined


@triton.jit
def _load_wide(pointer, mask, COUNT: tl.constexpr):
    """Load COUNT neighboring elements per lane, zero where masked, as a tuple of float32."""
    LANES: tl.constexpr = pointer.shape[0]
    if pointer.dtype.element_ty == tl.bfloat16:
        pointer = pointer.to(tl.pointer_type(tl.int32), bitcast=True)
        value = tl.load(pointer[:, None] + tl.arange(0, COUNT // 2)[None, :], mask[:, None], other=0)
        # Two in a word: an instruction for each, where the compiler's way takes three.
        low, high = value << 16, value & -65536
        value = tl.join(low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True))
    else:
        value = tl.load(pointer[:, None] + tl.arange(0, COUNT)[None, :], mask[:, None], other=0)
        value = value.to(tl.float32)
    if COUNT == 8:
        values = _split(_split(_split((value.reshape(LANES, 2, 2, 2),))))
    elif COUNT == 4:
        values = _split(_split((value.reshape(LANES, 2, 2),)))
    else:
        values = _split((value.reshape(LANES, 2),))
    return values


@triton.jit
def _load(
    pointer,
    live,
    channel,
    stride,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Load each lane's group with BEFORE and AFTER further channels, zero beyond the ends."""
    if WIDE:
        values = _load_wide(pointer, live, GROUP)
        if BEFORE > 0:
            SIZE: tl.constexpr = _load_size(BEFORE)
            some = _load_wide(pointer - SIZE, _inside(live, channel, -1, C, GROUP, WIDE), SIZE)
            values = some[SIZE - BEFORE :] + values
        if AFTER > 0:
            SIZE_AFTER: tl.constexpr = _load_size(AFTER)
            some = _load_wide(pointer + GROUP, _inside(live, channel, GROUP, C, GROUP, WIDE), SIZE_AFTER)
            values = values + some[:AFTER]
    else:
        pointer -= BEFORE * stride
        values = (tl.load(pointer, _inside(live, channel, -BEFORE, C, GROUP, WIDE), other=0).to(tl.float32),)
        for j in tl.static_range(1 - BEFORE, GROUP + AFTER):
            pointer += stride
            value = tl.load(pointer, _inside(live, channel, j, C, GROUP, WIDE), other=0)
            values = values + (value.to(tl.float32),)
    return values


@triton.jit
def _store(pointer, values, live, channel, stride, C: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        if GROUP == 8:
            values = _join(values)
        values = _join(_join(values))
        # One cast of all, which takes two at a time.
        value = values[0].reshape(values[0].shape[0], GROUP).to(pointer.dtype.element_ty)
        tl.store(pointer[:, None] + tl.arange(0, GROUP)[None, :], value, live[:, None])
    else:
        for j in tl.static_range(GROUP):
            inside = _inside(live, channel, j, C, GROUP, WIDE)
            tl.store(pointer + j * stride, values[j].to(pointer.dtype.element_ty), inside)


@triton.jit
def _window_sums(a, b, SIZE: tl.constexpr):
    """Sums of a * b over each window of SIZE neighbors inside the tuples."""
    COUNT: tl.constexpr = len(a)
    ends = (a[COUNT - 1] * b[COUNT - 1],)  # of blocks, from each place on
    for i in tl.static_range(COUNT - 2, -1, -1):
        if (i + 1) % SIZE == 0:
            ends = (a[i] * b[i],) + ends
        else:
            ends = (tl.fma(a[i], b[i], ends[0]),) + ends
    starts = (a[0] * b[0],)  # of blocks, up to each place
    for i in tl.static_range(1, COUNT):
        if i % SIZE == 0:
            starts = starts + (a[i] * b[i],)
        else:
            starts = starts + (tl.fma(a[i], b[i], starts[i - 1]),)
    sums = a[:0]
    for i in tl.static_range(COUNT - SIZE + 1):
        if i % SIZE == 0:
            sums = sums + (ends[i],)
        else:
            sums = sums + (ends[i] + starts[i + SIZE - 1],)
    return sums


@triton.jit
def _power(d, beta, THREE_QUARTERS: tl.constexpr):
    """d ** -beta, and the reciprocal square root of d."""
    root = tl.rsqrt(d)
    if THREE_QUARTERS:
        power = root * tl.sqrt(root)
    else:
        power = tl.exp2(-beta * tl.log2(d))
    return power, root


@triton.jit
def _rectify(values):
    rectified = values[:0]
    for i in tl.static_range(len(values)):
        rectified = rectified + (tl.maximum(values[i], 0.0, propagate_nan=tl.PropagateNan.ALL),)
    return rectified


@triton.jit(do_not_specialize=["lanes"])  # one program for all batches
def forward_kernel(
    input,
    output,
    lanes,
    stride,
    scale,
    beta,
    k,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    THREE_QUARTERS: tl.constexpr,
    RELU: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """output = x / (k + scale * sum of x ** 2 over the window) ** beta.

    input, output: [images, C, pixels], channels `stride` apart: an image's pixels, or 1 in channels-last.
    """
    BEFORE: tl.constexpr = SIZE // 2
    AFTER: tl.constexpr = SIZE - 1 - BEFORE
    live, channel, offset = _lanes(lanes, stride, C, GROUP, WIDE, BLOCK)
    x = _load(input + offset, live, channel, stride, BEFORE, AFTER, C, GROUP, WIDE)
    if RELU:
        x = _rectify(x)
    sums = _window_sums(x, x, SIZE)
    y = x[:0]
    for i in tl.static_range(GROUP):
        power, _ = _power(tl.fma(sums[i], scale, k), beta, THREE_QUARTERS)
        y = y + (x[BEFORE + i] * power,)
    _store(output + offset, y, live, channel, stride, C, GROUP, WIDE)


@triton.jit(do_not_specialize=["lanes"])  # one program for all batches
def backward_kernel(
    grad_output,
    input,
    grad_input,
    lanes,
    stride,
    scale,
    beta,
    k,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    THREE_QUARTERS: tl.constexpr,
    RELU: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With d = k + scale * sum of x ** 2 over the window and e = grad_output * d ** -beta:

    grad_input = e - 2 * scale * beta * x * sum of e * x / d over the mirrored window.

    All of the shape and format of `input`.
    """
    BEFORE: tl.constexpr = SIZE // 2
    AFTER: tl.constexpr = SIZE - 1 - BEFORE
    live, channel, offset = _lanes(lanes, stride, C, GROUP, WIDE, BLOCK)
    x = _load(input + offset, live, channel, stride, SIZE - 1, SIZE - 1, C, GROUP, WIDE)
    g = _load(grad_output + offset, live, channel, stride, AFTER, BEFORE, C, GROUP, WIDE)
    if RELU:
        x = _rectify(x)
    sums = _window_sums(x, x, SIZE)
    e = x[:0]
    quotients = x[:0]
    for i in tl.static_range(GROUP + SIZE - 1):
        d = tl.fma(sums[i], scale, k)
        power, root = _power(d, beta, THREE_QUARTERS)
        e = e + (g[i] * power,)
        quotients = quotients + (e[i] * (root * root),)
    sums = _window_sums(quotients, x[BEFORE : BEFORE + GROUP + SIZE - 1], SIZE)
    factor = -2 * scale * beta
    grad = x[:0]
    for i in tl.static_range(GROUP):
        value = tl.fma(x[SIZE - 1 + i] * factor, sums[i], e[AFTER + i])
        if RELU:
            value = tl.where(x[SIZE - 1 + i] == 0, 0.0, value)
        grad = grad + (value,)
    _store(grad_input + offset, grad, live, channel, stride, C, GROUP, WIDE)
