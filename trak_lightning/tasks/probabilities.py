"""Recognize outputs that are probabilities where logits were expected, and convert them if the user says so.

Log-probabilities are fine as logits of several classes: a softmax leaves them as they are. Probabilities are not, and
nothing shows it afterwards: every output is finite, and only the loss weights are wrong.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trak_lightning.errors import DataError, require_option
from trak_lightning.tasks.margin import is_wrapped, wide

OutputsAre: TypeAlias = Literal["logits", "probabilities"] | None
"""What the model returns, as the user says; None to expect logits and refuse what is recognized as probabilities."""

_DECISIVE = 14.0
"""Log of the likelihood ratio that decides. If labels follow the logits, it is exceeded with probability exp(−14) at most."""

_ACTIVATIONS = {
    "SigmoidBackward0": "a sigmoid",
    "SoftmaxBackward0": "a softmax",
    "LogSigmoidBackward0": "a log-sigmoid",
    "LogSoftmaxBackward0": "a log-softmax",
}
_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Alias", "Clone", "ToCopy",
          "Transpose", "T", "Permute", "Expand", "Clamp", "Index", "Split", "Unbind")  # fmt: skip


def require_choice(outputs_are: OutputsAre) -> None:
    """Raises: SettingsError: neither logits nor probabilities."""
    require_option("outputs_are", outputs_are, (None, "logits", "probabilities"))


def class_logits(outputs: Tensor, outputs_are: OutputsAre) -> Tensor:
    """Logits of several classes (…, C) from what the model returned: log p of probabilities.

    Raises:
        DataError: the outputs are probabilities, and nobody said so.
    """
    if outputs_are == "probabilities":
        values = wide(outputs)
        return values.clamp(min=torch.finfo(values.dtype).tiny).log()
    if outputs_are is None:
        last = _last_activation(outputs)
        if last in ("a sigmoid", "a softmax") or (not is_wrapped(outputs) and _sum_to_one(outputs)):
            raise _refusal(last, "the last Softmax or Sigmoid", "NLLLoss of their logarithm", "CrossEntropyLoss")
    return outputs


def binary_logits(outputs: Tensor, labels: Tensor, outputs_are: OutputsAre) -> Tensor:
    """Logits of label 1 from what the model returned, with labels of the same shape: log p/(1 − p) of probabilities.

    Raises:
        DataError: the outputs are probabilities, and nobody said so.
    """
    if outputs_are == "probabilities":
        values = wide(outputs)
        return torch.logit(values, torch.finfo(values.dtype).eps)
    if outputs_are is None:
        last, hidden = _last_activation(outputs), is_wrapped(outputs) or is_wrapped(labels)
        if last is not None or (not hidden and _explain_labels_better(outputs, labels)):
            raise _refusal(last, "the last Sigmoid", "BCELoss", "BCEWithLogitsLoss")
    return outputs


def _refusal(last: str | None, layer: str, proper: str, loss: str) -> DataError:
    return DataError(
        f"the model's outputs are {'logarithms of ' if last and 'log' in last else ''}probabilities"
        f"{f' ({last} computes them)' if last else ', as their values show'}, and logits were expected. Attribute the model "
        f"without {layer}; or, if it was trained with {proper}, say so: task: {{name: …, outputs_are: probabilities}}. If it was "
        f"trained with {loss} of these very outputs, which applies another one: outputs_are: logits."
    )


def _last_activation(outputs: Tensor) -> str | None:
    """The activation that computed `outputs`, by the graph of autograd; views, casts and clamps may have come after it."""
    node = outputs.grad_fn
    while node is not None:
        name = node.name()
        if name in _ACTIVATIONS:
            return _ACTIVATIONS[name]
        if name.partition("Backward")[0] not in _VIEWS or not node.next_functions:
            return None
        node = node.next_functions[0][0]
    return None


def _sum_to_one(outputs: Tensor) -> bool:
    """Whether every row is a distribution, to rounding. A few rows are looked at; of one alone, nothing is concluded."""
    if outputs.shape[-1] < 2:
        return False
    narrow = outputs.dtype in (torch.float16, torch.bfloat16)
    rows = outputs.detach().reshape(-1, outputs.shape[-1])[:64]
    if len(rows) < (8 if narrow else 2):
        return False
    off = (wide(rows).sum(-1) - 1).abs()
    tolerance = torch.finfo(outputs.dtype).eps if narrow else 2e-6
    return bool(((rows >= 0).all(-1) & (off <= tolerance)).all())


def _explain_labels_better(outputs: Tensor, labels: Tensor) -> bool:
    """Whether all outputs lie in 0 … 1 and the labels are far more likely with them as probabilities than as logits."""
    values = outputs.detach().double()
    if not bool(((values >= 0) & (values <= 1)).all()):
        return False
    known, positive = (labels == 0) | (labels == 1), labels == 1
    as_probabilities = torch.where(positive, values, 1 - values).clamp(min=1e-6).log()
    as_logits = logsigmoid(torch.where(positive, values, -values))
    return bool(torch.where(known, as_probabilities - as_logits, 0).sum() > _DECISIVE)
