"""Puts weights into a network that they fit but for its classifier, its channels or its positions."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.parts import classifier_names
from fastcnn.models.vit import resize_positions

NAMED_AT_MOST = 4
"""Parameters that a message names of each kind of mismatch."""


def load_weights(
    network: nn.Module, state: dict[str, Tensor], told: str = "weights", other_classes: bool = False
) -> list[str]:
    """Puts a state dict into a network.

    A classifier for other classes and missing auxiliary classifiers start fresh; a first layer for another
    number of channels and position embeddings of another length are adapted.

    Args:
        told: what the user wrote, for messages.
        other_classes: the weights are for other classes, even if they are as many.

    Returns:
        What was not simply loaded, for people.

    Raises:
        UserError: anything else does not fit.
    """
    own, state = network.state_dict(), dict(state)
    auxiliaries = {name.partition(".")[0] for name in (*own, *state) if name.lower().startswith("aux")}
    parts = (*classifier_names(network), *sorted(auxiliaries))
    remarks = [_keep_fresh(part, own, state, other_classes) for part in parts]
    first = next((f"{n}.weight" for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), "")
    if _other_length(first, own, state):
        before, after = state[first].shape[1], own[first].shape[1]
        state[first] = adapt_channels(state[first], after)
        remarks.append(f"{first}: adapted from {before} channels to {after}")
    positions = "encoder.pos_embedding"
    if _other_length(positions, own, state):
        before, after = state[positions].shape[1], own[positions].shape[1]
        side = math.isqrt(after - 1)
        if math.isqrt(before - 1) ** 2 == before - 1:  # squares of patches, and a class token
            state[positions] = resize_positions(state[positions], (side, side))
            remarks.append(f"{positions}: interpolated from {before} tokens to {after}")
    for name in own.keys() - state.keys():  # files from before torch 0.4.1 have none, and nothing reads it
        if name.endswith(".num_batches_tracked"):
            state[name] = own[name]
    _check_fit(own, state, told)
    network.load_state_dict(state)
    return [remark for remark in remarks if remark]


def _keep_fresh(part: str, own: dict[str, Tensor], state: dict[str, Tensor], other_classes: bool) -> str:
    """Where a part of the network has other names, shapes or classes in `state`, puts its own values there
    and says so."""
    mine = {name: value for name, value in own.items() if name.startswith(f"{part}.")}
    theirs = {name: value for name, value in state.items() if name.startswith(f"{part}.")}
    alike = {name: v.shape for name, v in mine.items()} == {name: v.shape for name, v in theirs.items()}
    if alike and not (other_classes and mine):
        return ""
    for name in theirs:
        del state[name]
    state.update(mine)
    if not mine:
        return f"{part}: left out, the network has none"
    if not theirs:
        return f"{part}: starts fresh, the weights have none"
    if alike:
        return f"{part}: starts fresh, the weights are for other classes"
    then = _classes(theirs)
    if then == _classes(mine):
        return f"{part}: starts fresh, the weights have another"
    return f"{part}: starts fresh, the weights are for {then} classes"


def _classes(classifier: dict[str, Tensor]) -> int:
    """Of a classifier's tensors, the last layer's outputs; 0 if it has no weights."""
    return [0, *(len(value) for name, value in sorted(classifier.items()) if value.ndim > 1)][-1]


def _other_length(name: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Whether two tensors differ in their second dimension."""
    both = name in own and name in state and own[name].ndim == state[name].ndim
    return both and own[name].shape[1] != state[name].shape[1]


def _check_fit(own: dict[str, Tensor], state: dict[str, Tensor], told: str) -> None:
    problems = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)} for {list(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    said = [f"{len(names)} {what} ({_some(names)})" for what, names in problems.items() if names]
    if said:
        raise UserError(f"{told}: made for another network: {', '.join(said)}; write its --arch")


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED_AT_MOST]) + (", ..." if len(names) > NAMED_AT_MOST else "")


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight [out, in, h, w] for another number of channels, so that its output keeps
    its size on images whose channels are alike (as timm's `adapt_input_conv`)."""
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-channels // before), 1, 1)[:, :channels] * (before / channels)
