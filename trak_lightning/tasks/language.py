"""Language models: a sequence is a series of multiclass problems, one a token to be predicted."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError, SettingsError
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.margin import margin
from trak_lightning.tasks.recall import Recall

Reduction = Literal["sum", "mean"]
Level = Literal["sequence", "token"]

IGNORED = -100
"""The label of a token that is not to be predicted, as in torch.nn.functional.cross_entropy."""

TARGET_MASK = "target_mask"
"""Where a batch may say which of its labels count, (B, T), without taking the others from the decoder's input."""


class LanguageModel(Task):
    """f of a sequence whose token t is predicted with probability p_t.

    * ``level="sequence"``: ``f = Σ_t log(p_t / (1 − p_t))``, the multiclass margins added up, with one loss weight for the
      sequence, q = mean_t (1 − p_t), and r = mean_t p_t(1 − p_t). Park et al. 2023, section 5.3 and appendix.
    * ``level="token"``: every token keeps its own q_t = 1 − p_t. Since q_t ∇log(p_t/(1 − p_t)) = ∇log p_t, this is
      ``f = Σ_t log p_t`` with q = 1 and r = 1: the exact gradient of the training loss.

    Tokens labelled −100 do not count, nor do those where a batch has ``target_mask`` and it is 0 (see
    `trak_lightning.tasks.targets`). Batches are mappings as tokenizers and collators of `transformers` make them; all but
    labels and ``target_mask`` is passed to the model as it is, attention masks and position ids included. The model returns
    logits (B, T, V), alone or as the field `logits`.

    Args:
        reduction: ``sum`` over the tokens, or ``mean``, with which long sequences weigh no more than short ones.
        level: of the loss weights, see above.
        label_key: where a batch holds the labels.
    """

    def __init__(self, reduction: Reduction = "sum", level: Level = "sequence", label_key: str = "labels") -> None:
        for name, value, known in (("reduction", reduction, get_args(Reduction)), ("level", level, get_args(Level))):
            if value not in known:
                raise SettingsError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.reduction = reduction
        self.level = level
        self.label_key = label_key
        self._recall = Recall()

    @abstractmethod
    def predictions(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V), and the label of the token that each of them predicts, (B, T), −100 for none."""

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        output, margins = self._output(model, batch)
        self._recall.keep(batch, output, margins)
        return output

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        if self.level == "token":
            return torch.ones_like(output)
        return self._margins(model, batch, output).neg().sigmoid().nanmean(-1)

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        if self.level == "token":
            return torch.ones_like(output)
        margins = self._margins(model, batch, output)
        return (margins.sigmoid() * margins.neg().sigmoid()).nanmean(-1)

    def _margins(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return self._recall.values(batch, output, lambda: self._output(model, batch)[1])

    def _output(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """f (B,), and the margin of every token, (B, T), NaN for one that is not to be predicted."""
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            keys = f" with keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else ""
            raise DataError(
                f"a language model's batch must be a mapping with 'input_ids', as tokenizers make it; got "
                f"{type(batch).__name__}{keys}. Return dicts from the dataset, or write a Task with an `output` of your own."
            )
        logits, labels = self.predictions(model, {key: value for key, value in batch.items() if key != TARGET_MASK})
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            raise DataError(
                f"logits (B, T, V) and labels (B, T) do not fit: {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        counted = labels != IGNORED
        if TARGET_MASK in batch:
            counted = counted & self._aligned(batch[TARGET_MASK]).bool()
        _check(labels, counted, logits.shape[-1])
        margins = margin(logits, labels.masked_fill(~counted, 0))
        values = nn.functional.logsigmoid(margins) if self.level == "token" else margins
        total = values.masked_fill(~counted, 0).sum(-1)
        output = total if self.reduction == "sum" else total / counted.sum(-1)
        return output, margins.masked_fill(~counted, torch.nan)

    def _aligned(self, mask: Tensor) -> Tensor:
        """A mask of labels, as a mask of the predictions of these."""
        return mask


class CausalLM(LanguageModel):
    """Next tokens of a decoder, as in GPT and Llama; see `LanguageModel` for f, q and the settings.

    Labels are those of the tokens themselves, as `transformers` has them: the prediction at position t is held against the
    label at t + 1. A batch without labels is its own label where its attention mask is 1.

    Rows may be packed: several documents, told apart by `position_ids` that begin again at 0, without an attention mask. The
    first token of a document is then not predicted from the document before it (with labels, set −100 there, as
    ``DataCollatorWithFlattening`` does), and the model is called with ``use_cache=False``, without which `transformers`
    lets documents see each other outside of training. A sample is a row: unpack what is to be attributed apart.
    """

    def predictions(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        inputs = {key: value for key, value in batch.items() if key != self.label_key}
        labels = batch[self.label_key] if self.label_key in batch else _own_labels(inputs)
        if "position_ids" in inputs and inputs.get("attention_mask") is None:
            inputs["use_cache"] = False
        return logits_of(model(**inputs)), self._aligned_labels(labels)

    def _aligned_labels(self, labels: Tensor) -> Tensor:
        return torch.cat([labels[:, 1:], labels.new_full((labels.shape[0], 1), IGNORED)], dim=1)

    def _aligned(self, mask: Tensor) -> Tensor:
        return torch.cat([mask[:, 1:], mask.new_zeros(mask.shape[0], 1)], dim=1)


class Seq2SeqLM(LanguageModel):
    """The decoder's tokens of an encoder-decoder, as in T5 and mT5; see `LanguageModel` for f, q and the settings.

    Labels are passed to the model as well, which makes the decoder's input of them in its own way, unless the batch has
    `decoder_input_ids`.
    """

    def predictions(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if self.label_key not in batch:
            raise DataError(
                f"a batch for seq2seq_lm needs {self.label_key!r}; its keys are {sorted(map(str, batch))}. Name the right one: "
                "task={'name': 'seq2seq_lm', 'label_key': …}."
            )
        labels = batch[self.label_key]
        inputs = {key: value for key, value in batch.items() if key != self.label_key}
        if "decoder_input_ids" not in inputs:
            inputs["labels"] = labels
        return logits_of(model(**inputs)), labels


def logits_of(found: Any) -> Tensor:
    """The logits that a model returned, alone or as the field `logits`."""
    logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
    if not isinstance(logits, Tensor):
        raise DataError(f"the model must return logits, alone or as a field of that name; got {type(found).__name__}")
    return logits


def _own_labels(inputs: Mapping[str, Any]) -> Tensor:
    labels: Tensor = inputs["input_ids"]
    if (mask := inputs.get("attention_mask")) is not None and mask.shape == labels.shape:
        labels = labels.masked_fill(mask == 0, IGNORED)
    if (positions := inputs.get("position_ids")) is not None:
        labels = labels.masked_fill(positions == 0, IGNORED)
    return labels


def _check(labels: Tensor, counted: Tensor, vocabulary: int) -> None:
    if torch._C._functorch.is_functorch_wrapped_tensor(labels):
        return  # under vmap values cannot be looked at; a wrong label gives NaN, and that is refused
    empty = ~counted.any(-1)
    if empty.any():
        raise DataError(
            f"sequence {int(empty.nonzero()[0])} of the batch has no token to predict: every label is {IGNORED} or masked. "
            "Leave such sequences out of the dataset."
        )
    outside = counted & ((labels < 0) | (labels >= vocabulary))
    if outside.any():
        raise DataError(
            f"label {int(labels[outside][0])} is out of range: the model has {vocabulary} tokens, so labels must lie in 0 … "
            f"{vocabulary - 1}, or be {IGNORED} for what is not to be predicted."
        )
