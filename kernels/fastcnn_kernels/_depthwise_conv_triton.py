"""Triton kernels of depthwise convolution in channels-last memory: forward, input gradient, weight gradient.

A lane owns a patch of rows x columns outputs in two neighboring channels (one, if their number is odd) as a
tuple of float32 accumulators. Each loaded element feeds all the taps that meet it, so a 3 x 3 kernel loads
2.6 elements per output instead of 9. All offsets between elements, and the taps that join them, are fixed at
compile time (`_patches.Axis`). A kernel is compiled once for each shape of layer, whatever the batch:
`do_not_specialize` keeps Triton from compiling again for a number that is 1 or a multiple of 16. Offsets
within an image are 32-bit, offsets of images 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(pointer, row_inside, column_inside, ROW_LEAVES: tl.constexpr, COLUMN_LEAVES: tl.constexpr):
    """The elements at `pointer` as float32 [lanes, channels of a lane]; zero outside the map."""
    if ROW_LEAVES and COLUMN_LEAVES:
        value = tl.load(pointer, row_inside & column_inside, other=0)
    elif ROW_LEAVES:
        value = tl.load(pointer, row_inside, other=0)
    elif COLUMN_LEAVES:
        value = tl.load(pointer, column_inside, other=0)
    else:
        value = tl.load(pointer)
    if (
        pointer.dtype.element_ty == tl.int32
    ):  # two bfloat16: an instruction for each, where a cast takes three
        low = (value << 16).to(tl.float32, bitcast=True)
        high = (value & -65536).to(tl.float32, bitcast=True)
        value = tl.join(low, high)
    return value.to(tl.float32)


@triton.jit
def _load_row(
    pointer, row_inside, inside, ROW_LEAVES: tl.constexpr, LEAVES: tl.constexpr, STEP: tl.constexpr
):
    """Load a row of elements STEP apart; LEAVES marks those that may lie outside the map."""
    row = (_load(pointer, row_inside, inside[0], ROW_LEAVES, LEAVES[0]),)
    for i in tl.static_range(1, len(LEAVES)):
        row = row + (_load(pointer + i * STEP, row_inside, inside[i], ROW_LEAVES, LEAVES[i]),)
    return row


@triton.jit
def _load_taps(pointer, COUNT: tl.constexpr, STEP: tl.constexpr):
    taps = (tl.load(pointer),)
    for k in tl.static_range(1, COUNT):
        taps = taps + (tl.load(pointer + k * STEP),)
    return taps


@triton.jit
def _repeat(value, COUNT: tl.constexpr):
    values = (value,)
    for _ in tl.static_range(1, COUNT):
        values = values + (value,)
    return values


@triton.jit
def _positions_inside(start, COUNT: tl.constexpr, SIZE: tl.constexpr):
    inside = ((start >= 0) & (start < SIZE),)
    for i in tl.static_range(1, COUNT):
        inside = inside + ((start + i >= 0) & (start + i < SIZE),)
    return inside


@triton.jit
def _window_start(patch_start, AXIS: tl.constexpr):
    if AXIS.transposed:
        start = patch_start // AXIS.stride + AXIS.first()
    else:
        start = patch_start * AXIS.stride + AXIS.first()
    return start


@triton.jit
def _convolve_row(sums, window, taps, COLUMNS: tl.constexpr):
    """Add the products of a window row and a kernel row to the row of sums that they meet in."""
    WIDTH: tl.constexpr = COLUMNS.patch
    added = sums[:0]
    for j in tl.static_range(WIDTH):
        total = sums[j]
        for q in tl.static_range(COLUMNS.span()):
            if COLUMNS.meets(j, q):
                total = tl.fma(window[q], taps[COLUMNS.tap(j, q)], total)
        added = added + (total,)
    return added


@triton.jit
def _correlate_row(sums, patch, window, COLUMNS: tl.constexpr):
    """Add the products of a patch row and a window row to the gradient of the kernel row that joins them."""
    KERNEL: tl.constexpr = COLUMNS.kernel
    WIDTH: tl.constexpr = COLUMNS.patch
    added = sums[:0]
    for k in tl.static_range(KERNEL):
        total = sums[k]
        for j in tl.static_range(WIDTH):
            for q in tl.static_range(COLUMNS.span()):
                if COLUMNS.meets(j, q, k, k + 1):
                    total = tl.fma(patch[j], window[q], total)
        added = added + (total,)
    return added


@triton.jit
def _lanes(block, CHUNK: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr):
    """Patch and first channel of each lane; chunks of channels vary fastest, then patches."""
    lane = block // (GROUPS // CHUNK) * LANES + tl.arange(0, LANES)
    channel = (block % (GROUPS // CHUNK) * CHUNK + lane % CHUNK) * GROUP
    return lane // CHUNK, channel


@triton.jit(do_not_specialize=["batch"])
def convolve_kernel(
    source,
    taps,
    bias,
    output,
    batch,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Forward, and the gradient of the input: transposed, or at stride 1 forward with flipped taps.

    source: [batch, windowed rows, windowed columns, CHANNELS].
    taps: float32 [kernel * kernel, CHANNELS].
    output: [batch, patched rows, patched columns, CHANNELS].
    """
    HEIGHT: tl.constexpr = ROWS.patch
    WIDTH: tl.constexpr = COLUMNS.patch
    KERNEL: tl.constexpr = ROWS.kernel
    OUT_ROWS: tl.constexpr = ROWS.patched
    OUT_COLUMNS: tl.constexpr = COLUMNS.patched
    IN_ROWS: tl.constexpr = ROWS.windowed
    IN_COLUMNS: tl.constexpr = COLUMNS.windowed
    DOWN: tl.constexpr = ROWS.patches()
    ACROSS: tl.constexpr = COLUMNS.patches()

    patch, channel = _lanes(tl.program_id(0), CHUNK, CHANNELS // GROUP, GROUP, LANES)
    image = patch // (DOWN * ACROSS)
    row = patch % DOWN * HEIGHT  # neighbors in a column share rows of the window, so they are adjacent
    column = patch // DOWN % ACROSS * WIDTH
    window_row = _window_start(row, ROWS)
    window_column = _window_start(column, COLUMNS)
    group = tl.arange(0, GROUP)[None, :]

    # Lanes beyond the last image read that image again, which saves a mask on each load, and store nothing.
    image_read = tl.minimum(image, batch - 1).to(tl.int64)
    offset = (window_row * IN_COLUMNS + window_column) * CHANNELS + channel
    pointer = source + (image_read * (IN_ROWS * IN_COLUMNS * CHANNELS) + offset)
    if source.dtype.element_ty == tl.bfloat16 and GROUP == 2:
        STEP: tl.constexpr = CHANNELS // 2
        pointer = pointer.to(tl.pointer_type(tl.int32), bitcast=True)
    else:
        STEP: tl.constexpr = CHANNELS
        pointer = pointer[:, None] + group
        window_row = window_row[:, None]
        window_column = window_column[:, None]
    LEAVES: tl.constexpr = COLUMNS.window_leaves()
    inside = _positions_inside(window_column, COLUMNS.span(), IN_COLUMNS)

    taps += channel[:, None] + group
    if HAS_BIAS:
        start = tl.load(bias + channel[:, None] + group).to(tl.float32)
    else:
        start = tl.zeros([LANES, GROUP], tl.float32)
    sums = _repeat(_repeat(start, WIDTH), HEIGHT)
    kernel = (_load_taps(taps, KERNEL, CHANNELS),)
    if ROWS.transposed:
        for k in tl.static_range(1, KERNEL):
            kernel = kernel + (_load_taps(taps + k * KERNEL * CHANNELS, KERNEL, CHANNELS),)
    for r in tl.static_range(ROWS.span()):
        if not ROWS.transposed and 0 < r and r < KERNEL:  # not before it is needed, which saves registers
            kernel = kernel + (_load_taps(taps + r * KERNEL * CHANNELS, KERNEL, CHANNELS),)
        row_inside = (window_row + r >= 0) & (window_row + r < IN_ROWS)
        window = _load_row(
            pointer + r * IN_COLUMNS * STEP, row_inside, inside, ROWS.window_leaves()[r], LEAVES, STEP
        )
        for i in tl.static_range(HEIGHT):
            if ROWS.meets(i, r):
                total = _convolve_row(sums[i], window, kernel[ROWS.tap(i, r)], COLUMNS)
                sums = sums[:i] + (total,) + sums[i + 1 :]

    offset = image.to(tl.int64) * (OUT_ROWS * OUT_COLUMNS * CHANNELS)
    pointer = output + (offset + ((row * OUT_COLUMNS + column) * CHANNELS + channel))[:, None] + group
    for i in tl.static_range(HEIGHT):
        for j in tl.static_range(WIDTH):
            live = (image < batch) & (row + i < OUT_ROWS) & (column + j < OUT_COLUMNS)
            value = sums[i][j].to(output.dtype.element_ty)
            tl.store(pointer + (i * OUT_COLUMNS + j) * CHANNELS, value, live[:, None])


@triton.jit(do_not_specialize=["batch", "splits"])
def correlate_kernel(
    input,
    grad_output,
    partial,
    batch,
    splits,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LANES: tl.constexpr,
):
    """First stage of the weight gradient: each lane sums over images for its patch of the input.

    input: [batch, patched rows, patched columns, CHANNELS].
    grad_output: [batch, windowed rows, windowed columns, CHANNELS].
    partial: float32 [splits * patches, kernel * kernel, CHANNELS], one row more with a bias; this launch
        writes rows FIRST to LAST of the kernel.
    """
    HEIGHT: tl.constexpr = ROWS.patch
    WIDTH: tl.constexpr = COLUMNS.patch
    KERNEL: tl.constexpr = ROWS.kernel
    IN_ROWS: tl.constexpr = ROWS.patched
    IN_COLUMNS: tl.constexpr = COLUMNS.patched
    OUT_ROWS: tl.constexpr = ROWS.windowed
    OUT_COLUMNS: tl.constexpr = COLUMNS.windowed
    DOWN: tl.constexpr = ROWS.patches()
    PATCHES: tl.constexpr = ROWS.patches() * COLUMNS.patches()

    slot, channel = _lanes(tl.program_id(0), CHUNK, CHANNELS // GROUP, GROUP, LANES)
    split = tl.program_id(1)
    patch = tl.minimum(slot, PATCHES - 1)
    row = patch % DOWN * HEIGHT
    column = patch // DOWN * WIDTH
    window_row = _window_start(row, ROWS)
    window_column = _window_start(column, COLUMNS)
    group = tl.arange(0, GROUP)[None, :]

    patch_offset = (row * IN_COLUMNS + column) * CHANNELS + channel
    window_offset = (window_row * OUT_COLUMNS + window_column) * CHANNELS + channel
    if input.dtype.element_ty == tl.bfloat16 and GROUP == 2:
        STEP: tl.constexpr = CHANNELS // 2
        input = input.to(tl.pointer_type(tl.int32), bitcast=True)
        grad_output = grad_output.to(tl.pointer_type(tl.int32), bitcast=True)
        patch_offset = patch_offset // 2
        window_offset = window_offset // 2
    else:
        STEP: tl.constexpr = CHANNELS
        patch_offset = patch_offset[:, None] + group
        window_offset = window_offset[:, None] + group
        row = row[:, None]
        column = column[:, None]
        window_row = window_row[:, None]
        window_column = window_column[:, None]
    CUT: tl.constexpr = ROWS.patch_leaves()[0]
    PATCH_LEAVES: tl.constexpr = COLUMNS.patch_leaves()
    WINDOW_LEAVES: tl.constexpr = COLUMNS.window_leaves()
    patch_inside = _positions_inside(column, WIDTH, IN_COLUMNS)
    window_inside = _positions_inside(window_column, COLUMNS.span(), OUT_COLUMNS)

    zero = tl.zeros([LANES, GROUP], tl.float32)
    sums = _repeat(_repeat(zero, KERNEL), LAST - FIRST)
    bias_sum = zero
    image = split
    while image < batch:
        pointer = input + image.to(tl.int64) * (IN_ROWS * IN_COLUMNS * STEP) + patch_offset
        rows = (_load_row(pointer, row < IN_ROWS, patch_inside, CUT, PATCH_LEAVES, STEP),)
        for i in tl.static_range(1, HEIGHT):
            pointer += IN_COLUMNS * STEP
            rows = rows + (_load_row(pointer, row + i < IN_ROWS, patch_inside, CUT, PATCH_LEAVES, STEP),)
        pointer = grad_output + image.to(tl.int64) * (OUT_ROWS * OUT_COLUMNS * STEP) + window_offset
        for r in tl.static_range(ROWS.span()):
            row_inside = (window_row + r >= 0) & (window_row + r < OUT_ROWS)
            window = _load_row(
                pointer + r * OUT_COLUMNS * STEP,
                row_inside,
                window_inside,
                ROWS.window_leaves()[r],
                WINDOW_LEAVES,
                STEP,
            )
            for i in tl.static_range(HEIGHT):
                if ROWS.meets(i, r, FIRST, LAST):
                    total = _correlate_row(sums[ROWS.tap(i, r) - FIRST], rows[i], window, COLUMNS)
                    sums = sums[: ROWS.tap(i, r) - FIRST] + (total,) + sums[ROWS.tap(i, r) - FIRST + 1 :]
            if HAS_BIAS and ROWS.owns(r):
                for q in tl.static_range(COLUMNS.span()):
                    if COLUMNS.owns(q):
                        bias_sum += window[q]
        image += splits

    live = (slot < PATCHES)[:, None]
    ROW_COUNT: tl.constexpr = KERNEL * KERNEL + HAS_BIAS
    place = (split * PATCHES + patch).to(tl.int64) * (ROW_COUNT * CHANNELS) + channel
    pointer = partial + place[:, None] + group
    for k in tl.static_range(FIRST, LAST):
        for m in tl.static_range(KERNEL):
            tl.store(pointer + (k * KERNEL + m) * CHANNELS, sums[k - FIRST][m], live)
    if HAS_BIAS and FIRST == 0:
        tl.store(pointer + KERNEL * KERNEL * CHANNELS, bias_sum, live)


@triton.jit(do_not_specialize=["count"])
def reduce_kernel(
    partial,
    grad_weight,
    grad_bias,
    count,
    channels,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Second stage: add `count` partial sums to grad_weight [channels, TAPS] and grad_bias [channels].

    The order is fixed, so the same input gives the same bits.
    """
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tap = tl.program_id(1)
    pointer = partial + tap * channels + channel[None, :]
    step = (TAPS + HAS_BIAS) * channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = 0
    while start < count:
        part = start + tl.arange(0, ROWS)
        mask = (part < count)[:, None] & (channel < channels)[None, :]
        total += tl.load(pointer + part.to(tl.int64)[:, None] * step, mask, other=0)
        start += ROWS
    value = tl.sum(total, 0)
    if tap < TAPS:
        tl.store(grad_weight + channel * TAPS + tap, value, channel < channels)
    else:
        tl.store(grad_bias + channel, value, channel < channels)


@triton.jit
def taps_kernel(weight, taps, channels, TAPS: tl.constexpr, FLIP: tl.constexpr, BLOCK: tl.constexpr):
    """weight [channels, TAPS] to float32 taps [TAPS, channels]: neighboring lanes read side by side."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap = place // channels
    source = place % channels * TAPS + (TAPS - 1 - tap if FLIP else tap)
    live = place < TAPS * channels
    tl.store(taps + place, tl.load(weight + source, live).to(tl.float32), live)
