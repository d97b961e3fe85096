"""How long each layer takes, forward and backward, without torch.compile.

The backward pass calls no modules: each of autograd's nodes is timed, and belongs to those calls during which
it was made.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastcnn.analysis.summary import calls


def time_layers(
    network: nn.Module, image: Tensor, dtype: torch.dtype = torch.float32, repeats: int = 5, warmup: int = 2
) -> list[tuple[float, float]]:
    """Milliseconds forward and backward of each call of a module, in `summarize`'s order: medians.

    Args:
        network: on the image's device, the CPU or a CUDA GPU, in either mode; its gradients are dropped.
        image: [N, C, H, W].
        dtype: of autocast; float32: none.
        repeats: passes that are timed, after `warmup` others.
    """
    passes = [_time_once(network, image, dtype) for _ in range(warmup + repeats)][warmup:]
    network.zero_grad()
    times = []
    for spans in zip(*passes, strict=True):
        forward, backward = zip(*spans)
        times.append((statistics.median(forward), statistics.median(backward)))
    return times


def _time_once(network: nn.Module, image: Tensor, dtype: torch.dtype) -> list[tuple[float, float]]:
    forward: list[list[Any]] = []  # of each call, the moments of its beginning and its end
    backward: list[list[list[Any]]] = []  # of each call, those of its nodes
    running: list[int] = []
    nodes: set[Any] = set()

    def moment() -> Any:
        if not image.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(moments: list[Any]) -> float:
        if len(moments) < 2:  # a node that the loss does not need
            return 0.0
        start, end = moments
        return start.elapsed_time(end) if image.is_cuda else 1000 * (end - start)

    def watch_new_nodes(tensors: object) -> None:
        found = [leaf.grad_fn for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
        while found:
            node = found.pop()
            if node is None or node in nodes or "AccumulateGrad" in node.name():
                continue
            nodes.add(node)
            found += [earlier for earlier, _ in node.next_functions]
            moments: list[Any] = []
            node.register_prehook(lambda grads, moments=moments: moments.append(moment()))
            node.register_hook(lambda inputs, outputs, moments=moments: moments.append(moment()))
            for call in running:
                backward[call].append(moments)

    def enter(name: str, module: nn.Module, args: object) -> None:
        watch_new_nodes(args)
        running.append(len(forward))
        backward.append([])
        forward.append([moment()])

    def leave(name: str, module: nn.Module, output: object) -> None:
        forward[running[-1]].append(moment())
        watch_new_nodes(output)
        running.pop()

    network.zero_grad()
    with calls(network, enter, leave):
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            output = network(image)
        means = [leaf.float().mean() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        torch.stack(means).sum().backward()
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return [
        (milliseconds(span), sum(milliseconds(moments) for moments in spans))
        for span, spans in zip(forward, backward)
    ]
