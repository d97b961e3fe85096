"""A kernel of Triton, which reads the code from a file."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 128


@triton.jit
def double(pointer, BLOCK: tl.constexpr):
    places = pointer + tl.arange(0, BLOCK)
    tl.store(places, 2 * tl.load(places))


def compile_ahead() -> int:
    """Compile it for compute capability 8.0, also without a GPU; return the bytes of machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(double, {"pointer": "*fp32", "BLOCK": "constexpr"}, {"BLOCK": BLOCK})
    return len(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"])


def launch() -> bool:
    """Run it on the GPU; return whether the result is right."""
    x = torch.ones(BLOCK, device="cuda")
    double[1,](x, BLOCK)
    return bool((x == 2).all())
