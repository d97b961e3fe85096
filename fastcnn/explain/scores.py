"""The score of a class for an image, of which Grad-CAM is the gradient."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

from fastcnn.errors import UserError
from fastcnn.inference.trained import Trained
from fastcnn.models.base import logits_of
from fastcnn.models.yolo import AnchorOutputs, GridOutputs
from fastcnn.tasks.detection import anchor_loss, grid_loss


def class_score(outputs: object, num_classes: int, class_id: int | None) -> tuple[Tensor, int]:
    """Return the score of a class for one image, a scalar, and the class.

    Classification: its logit. Segmentation: the mean logit over the pixels that it wins, or all pixels if it
    wins none. Detection: the score of its best box.

    Args:
        class_id: None: the predicted class; in a segmentation the largest one that is not the background.
    """
    if isinstance(outputs, AnchorOutputs | GridOutputs):
        decoded = (
            grid_loss.decode(outputs, num_classes)
            if isinstance(outputs, GridOutputs)
            else anchor_loss.decode(outputs)
        )
        best = decoded[1][0].amax(0)
        class_id = int(best.argmax()) if class_id is None else class_id
        return best[class_id], class_id
    logits = logits_of(outputs)[0]
    if logits.ndim == 1:
        class_id = int(logits.argmax()) if class_id is None else class_id
        return logits[class_id], class_id
    winners = logits.argmax(0)
    if class_id is None:
        counts = torch.bincount(winners.flatten(), minlength=num_classes)
        counts[0] = 0
        class_id = int(counts.argmax())
    won = winners == class_id
    return (logits[class_id][won] if bool(won.any()) else logits[class_id]).mean(), class_id


def class_number(trained: Trained, name: str | int | None) -> int | None:
    """Return the number of a class, given by name or number.

    Raises:
        UserError: no such class; the message lists similar names.
    """
    names = trained.class_names
    if name is None:
        return None
    if name in names:
        return names.index(str(name))
    if str(name).isdecimal() and int(name) < len(names):
        return int(name)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.3) or names[:3]
    raise UserError(
        f"--class {name}: no such class; use one such as {', '.join(near)}, or a number below {len(names)}"
    )
