"""Language models: a sequence is a series of multiclass problems, one per token to predict."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trak_lightning.errors import DataError
from trak_lightning.model.adapters import virtual_tokens
from trak_lightning.tasks.calling import Arguments, exact
from trak_lightning.tasks.fields import LABEL_NAMES, named_entries, split_batch
from trak_lightning.tasks.margin import is_wrapped
from trak_lightning.tasks.supervised import prediction
from trak_lightning.tasks.tokens import TokenMargins

TARGET_MASK = "target_mask"
"""Entry of a batch, (B, T), that says which labels count, without removing the others from the input of the decoder."""


class CausalLM(TokenMargins):
    """Next tokens of a decoder, as in GPT and Llama: ``f = Σ_t log(p_t / (1 − p_t))``. Park et al. 2023, section 5 and appendix.

    Labels are not shifted, as in `transformers`: the prediction at position t is compared with the label at t + 1. A batch without labels is its own label where its attention mask is 1. Labels do not
    count where they are `ignore_index`, where a ``target_mask`` in the batch is 0 (`trak_lightning.tasks.token_targets`
    makes such targets), or right after padding on the left, where the attention mask is 0. All other tensors are passed to the model, attention masks and position ids included.

    A row may hold several packed documents, separated by `position_ids` that begin again at 0, without an attention mask. The
    first token of a document is then not predicted from the document before it (with labels, set `ignore_index` there, as
    ``DataCollatorWithFlattening`` does), and the model is called with ``use_cache=False``, without which `transformers`
    lets documents see each other outside of training. A sample is a row: unpack documents that should be
    attributed separately.

    The other options are those of `TokenMargins`.

    Args:
        reduction: ``sum`` of the margins of a sequence, or their ``mean``, so that long sequences weigh no more than short ones.
        class_weight: one weight per token of the vocabulary, as in the loss that the model was trained with.
    """

    shift = 1
    whose = "the target's"

    def tokens(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        batch, mask = _without_mask(batch)
        if self.labels is None and _has_no_labels(batch):
            own = self._own_labels(batch)
            batch = {**(named_entries(batch) or {}), LABEL_NAMES[0]: own}
        call, labels = split_batch(batch, self.inputs, self.labels)
        _require_sequences(labels)
        arguments = exact(call)
        kwargs = arguments.kwargs or {}
        if "position_ids" in kwargs and kwargs.get("attention_mask") is None:
            if virtual_tokens(model):
                raise DataError(
                    "the batch has position_ids without an attention_mask, as packed documents have, and PEFT ignores them under "
                    "prompt tuning, so that documents would see each other. Give one document a row."
                )
            arguments = replace(arguments, kwargs={**kwargs, "use_cache": False})
        next_labels = labels.new_full(labels.shape, self.ignore_index)
        next_labels = torch.cat([labels[:, 1:], next_labels[:, :1]], dim=1)
        if mask is not None:
            mask = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        attention = (named_entries(batch) or {}).get("attention_mask")
        if isinstance(attention, Tensor) and attention.shape == labels.shape:
            # Padding on the left predicts nothing. What is masked elsewhere does, as in the loss of `transformers`.
            next_labels = next_labels.masked_fill(attention.cumsum(1) == 0, self.ignore_index)
        logits = prediction(arguments.call(model), self.outputs)
        if logits.ndim == 3 and logits.shape[1] != labels.shape[1]:
            logits = logits[:, virtual_tokens(model) :]
        return logits, _counted(next_labels, mask, self.ignore_index)

    def _own_labels(self, batch: Any) -> Tensor:
        named = named_entries(batch)
        if named is None or "input_ids" not in named:
            raise DataError(
                f"causal_lm expects batches with input_ids, as tokenizers make them; this one is a {type(batch).__name__}"
                + (f" with {', '.join(map(str, named))}" if named else "")
                + ". Name labels and inputs: task: {name: causal_lm, inputs: …, labels: …}."
            )
        labels: Tensor = named["input_ids"]
        if (attention := named.get("attention_mask")) is not None and attention.shape == labels.shape:
            labels = labels.masked_fill(attention == 0, self.ignore_index)
        if (positions := named.get("position_ids")) is not None:
            labels = labels.masked_fill(positions == 0, self.ignore_index)
        return labels


class Seq2SeqLM(TokenMargins):
    """Tokens of the decoder of an encoder-decoder, as in T5: ``f = Σ_t log(p_t / (1 − p_t))``. Park et al. 2023, section 5 and
    appendix.

    Labels are also passed to the model, which makes the input of its decoder from them, unless the batch has
    `decoder_input_ids`. They do not count where they are `ignore_index`, or where a ``target_mask`` in the batch is 0.

    The other options are those of `TokenMargins`.

    Args:
        class_weight: one weight per token of the vocabulary, as in the loss that the model was trained with.
    """

    whose = "the target's"

    def tokens(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        batch, mask = _without_mask(batch)
        call, labels = split_batch(batch, self.inputs, self.labels)
        _require_sequences(labels)
        arguments = exact(call)
        if "decoder_input_ids" not in (arguments.kwargs or {}):
            arguments = Arguments(arguments.args, {**(arguments.kwargs or {}), "labels": labels})
        return prediction(arguments.call(model), self.outputs), _counted(labels, mask, self.ignore_index)


def _without_mask(batch: Any) -> tuple[Any, Tensor | None]:
    named = named_entries(batch)
    if named is None or TARGET_MASK not in named:
        return batch, None
    return {name: value for name, value in named.items() if name != TARGET_MASK}, named[TARGET_MASK]


def _has_no_labels(batch: Any) -> bool:
    named = named_entries(batch)
    return not any(name in named for name in LABEL_NAMES) if named is not None else not isinstance(batch, (tuple, list))


def _require_sequences(labels: Any) -> None:
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        found = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise DataError(
            f"labels must be tokens, a tensor of shape (B, T), got {found}. For one label per sequence, use task text_classification."
        )


def _counted(labels: Tensor, mask: Tensor | None, ignore_index: int) -> Tensor:
    """Set labels to `ignore_index` where the mask is 0."""
    if mask is not None:
        labels = labels.masked_fill(mask == 0, ignore_index)
    if not is_wrapped(labels) and (empty := (labels == ignore_index).all(1)).any():
        raise DataError(
            f"sequence {int(empty.nonzero()[0])} of the batch has no token to predict: every label is {ignore_index} or masked. "
            "Leave such sequences out of the dataset."
        )
    return labels
