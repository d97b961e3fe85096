"""CUDA graphs simulated on the CPU: operations are recorded and replayed on the same tensors.

Numbers supplied by the host are recorded as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Record the operations inside; `undo` reverts them, so that recording has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for storage in _storages((args, kwargs)):
            if storage.data_ptr() not in self._made | self._before.keys():
                self._before[storage.data_ptr()] = storage, storage.clone()
        result = func(*args, **kwargs)
        known = self._before.keys()
        self._made |= {s.data_ptr() for s in _storages(result) if s.data_ptr() not in known}
        self.operations.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        for storage, value in self._before.values():
            storage.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            arguments = {storage.data_ptr() for storage in _storages((args, kwargs))}
            for old, new in zip(_tensors(result), _tensors(func(*args, **kwargs))):
                if old.untyped_storage().data_ptr() not in arguments:  # otherwise a view, or changed in place
                    old.copy_(new)


class TapeRecorder:
    """`fastcnn.engine.cuda_graph.Recorder` for the CPU."""

    def __init__(self) -> None:
        self.prepared = self.recorded = self.replayed = 0

    def prepare(self, work: Callable[[], None]) -> None:
        self.prepared += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        generator = torch.get_rng_state()
        with Tape() as tape:
            work()
        tape.undo()
        torch.set_rng_state(generator)

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay

    def reset(self) -> None:
        pass


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [tensor.untyped_storage() for tensor in _tensors(tree)]
