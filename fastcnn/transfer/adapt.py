"""Load weights into a network with another classifier, other input channels or other positions."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.parts import classifier_names
from fastcnn.models.vit import resize_positions

MAX_NAMED = 4
"""Parameters that a message names for each kind of mismatch."""


def load_weights(
    network: nn.Module, state: dict[str, Tensor], source: str = "weights", *, other_classes: bool = False
) -> list[str]:
    """Load a state dict into a network.

    A classifier for other classes and missing auxiliary classifiers keep their initialization. A first layer
    for another number of channels is adapted. Position embeddings of another length are interpolated.

    Args:
        source: the user's flag or file, as the prefix of error messages.
        other_classes: the weights are for other classes, even if their number is the same.

    Returns:
        Messages on everything that was not loaded as it is.

    Raises:
        UserError: any other mismatch.
    """
    own, state = network.state_dict(), dict(state)

    # Classifiers.
    auxiliaries = {name.partition(".")[0] for name in (*own, *state) if _is_auxiliary(name)}
    parts = (*classifier_names(network), *sorted(auxiliaries))
    messages = [_keep_fresh(part, own, state, other_classes=other_classes) for part in parts]

    # Input channels and positions.
    first = next((f"{n}.weight" for n, m in network.named_modules() if isinstance(m, nn.Conv2d)), "")
    if _other_length(first, own, state):
        before, after = state[first].shape[1], own[first].shape[1]
        state[first] = adapt_channels(state[first], after)
        messages.append(f"{first}: adapted from {before} channels to {after}")
    positions = "encoder.pos_embedding"
    if _other_length(positions, own, state):
        before, after = state[positions].shape[1], own[positions].shape[1]
        side = math.isqrt(after - 1)
        if math.isqrt(before - 1) ** 2 == before - 1:  # squares of patches, and a class token
            state[positions] = resize_positions(state[positions], (side, side))
            messages.append(f"{positions}: interpolated from {before} tokens to {after}")

    # Files from before torch 0.4.1 lack these counters, which are unused.
    for name in own.keys() - state.keys():
        if name.endswith(".num_batches_tracked"):
            state[name] = own[name]
    _check_fit(own, state, source)
    network.load_state_dict(state)
    return [message for message in messages if message]


def load_exactly(network: nn.Module, state: dict[str, Tensor], source: str = "weights") -> None:
    """Load a state dict into the network that it was saved from.

    Auxiliary classifiers that only training uses may be missing on either side.

    Args:
        source: the user's flag or file, as the prefix of error messages.

    Raises:
        UserError: it is of another network.
    """
    own = network.state_dict()
    state = {name: value for name, value in state.items() if name in own or not _is_auxiliary(name)}
    for name in own.keys() - state.keys():
        if name.endswith(".num_batches_tracked") or _is_auxiliary(name):
            state[name] = own[name]
    _check_fit(own, state, source)
    network.load_state_dict(state)


def _is_auxiliary(name: str) -> bool:
    return name.lower().startswith("aux")


def _keep_fresh(part: str, own: dict[str, Tensor], state: dict[str, Tensor], *, other_classes: bool) -> str:
    """Replace a part in `state` by the network's own if names, shapes or classes differ.

    Returns:
        A message, empty without a replacement.
    """
    own_part = {name: value for name, value in own.items() if name.startswith(f"{part}.")}
    given_part = {name: value for name, value in state.items() if name.startswith(f"{part}.")}
    same_shapes = {name: v.shape for name, v in own_part.items()} == {
        name: v.shape for name, v in given_part.items()
    }
    if same_shapes and not (other_classes and own_part):
        return ""
    for name in given_part:
        del state[name]
    state.update(own_part)
    if not own_part:
        return f"{part}: skipped, the network has none"
    if not given_part:
        return f"{part}: starts fresh, the weights have none"
    if same_shapes:
        return f"{part}: starts fresh, the weights are for other classes"
    classes = _classes(given_part)
    if classes == _classes(own_part):
        return f"{part}: starts fresh, the weights have another"
    return f"{part}: starts fresh, the weights are for {classes} classes"


def _classes(classifier: dict[str, Tensor]) -> int:
    """Return the number of outputs of a classifier's last layer; 0 without weights."""
    return [0, *(len(value) for name, value in sorted(classifier.items()) if value.ndim > 1)][-1]


def _other_length(name: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Return True if both have the tensor, with different second dimensions."""
    both = name in own and name in state and own[name].ndim == state[name].ndim
    return both and own[name].shape[1] != state[name].shape[1]


def _check_fit(own: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    problems = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)} for {list(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    mismatches = [f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names]
    if mismatches:
        raise UserError(f"{source}: made for another network: {', '.join(mismatches)}; use its --arch")


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weight [out, in, h, w] of a first convolution to another number of input channels.

    The output keeps its magnitude for images with equal channels, as with timm's `adapt_input_conv`.
    """
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-channels // before), 1, 1)[:, :channels] * (before / channels)
