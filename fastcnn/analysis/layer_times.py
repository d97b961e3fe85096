"""Times of each layer, forward and backward, without torch.compile.

The backward pass does not call modules. Instead, each autograd node is timed, and counts for the module calls
that were active when it was created.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastcnn.analysis.summary import module_calls


def time_layers(
    network: nn.Module, image: Tensor, dtype: torch.dtype = torch.float32, repeats: int = 5, warmup: int = 2
) -> list[tuple[float, float]]:
    """Return median milliseconds, forward and backward, of each module call, in the order of `summarize`.

    Args:
        network: on the device of the image, CPU or CUDA, in either mode; its gradients are reset.
        image: [N, C, H, W].
        dtype: type of autocast; float32: no autocast.
        repeats: number of timed passes, after `warmup` untimed ones.
    """
    passes = [_time_once(network, image, dtype) for _ in range(warmup + repeats)][warmup:]
    network.zero_grad()
    times = []
    for spans in zip(*passes, strict=True):
        forward, backward = zip(*spans)
        times.append((statistics.median(forward), statistics.median(backward)))
    return times


def _time_once(network: nn.Module, image: Tensor, dtype: torch.dtype) -> list[tuple[float, float]]:
    recorder = _Recorder(image)
    network.zero_grad()
    with module_calls(network, recorder.enter, recorder.leave):
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            output = network(image)
        means = [leaf.float().mean() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        torch.stack(means).sum().backward()
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return recorder.milliseconds()


class _Recorder:
    """Timestamps of the module calls and autograd nodes of one pass."""

    def __init__(self, image: Tensor) -> None:
        self.cuda = image.is_cuda
        self.forward: list[list[Any]] = []
        """Start and end of each call."""
        self.backward: list[list[list[Any]]] = []
        """Start and end of each autograd node of each call."""
        self._active: list[int] = []
        self._nodes: set[Any] = set()

    def enter(self, name: str, module: nn.Module, args: object) -> None:
        self._watch_new_nodes(args)
        self._active.append(len(self.forward))
        self.backward.append([])
        self.forward.append([self._timestamp()])

    def leave(self, name: str, module: nn.Module, output: object) -> None:
        self.forward[self._active[-1]].append(self._timestamp())
        self._watch_new_nodes(output)
        self._active.pop()

    def milliseconds(self) -> list[tuple[float, float]]:
        """Return the times of each call, forward and backward; the device must be synchronized."""
        return [
            (self._duration(span), sum(map(self._duration, spans)))
            for span, spans in zip(self.forward, self.backward)
        ]

    def _timestamp(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _duration(self, span: list[Any]) -> float:
        if len(span) < 2:  # a node that the loss does not depend on
            return 0.0
        start, end = span
        return start.elapsed_time(end) if self.cuda else 1000 * (end - start)

    def _watch_new_nodes(self, tensors: object) -> None:
        """Time the nodes created since the last call, for all active module calls."""
        pending = [leaf.grad_fn for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
        while pending:
            node = pending.pop()
            if node is None or node in self._nodes or "AccumulateGrad" in node.name():
                continue
            self._nodes.add(node)
            pending += [earlier for earlier, _ in node.next_functions]
            span: list[Any] = []
            node.register_prehook(lambda grads, span=span: span.append(self._timestamp()))
            node.register_hook(lambda inputs, outputs, span=span: span.append(self._timestamp()))
            for call in self._active:
                self.backward[call].append(span)
