"""Contrastive learning of two towers, as in CLIP: the sum of the margins of both retrieval problems."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from trak_lightning.errors import DataError, SettingsError
from trak_lightning.run.meaning import Meaning
from trak_lightning.runtime.tracebacks import warn
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.calling import Arguments
from trak_lightning.tasks.criterion import CriterionWarning
from trak_lightning.tasks.fields import Inputs, Key, describe, entry, named_entries, select_entries
from trak_lightning.tasks.margin import wide
from trak_lightning.tasks.memo import Memo
from trak_lightning.tasks.state import to_json
from trak_lightning.tasks.validation import number

EMBEDDINGS = ("image_embeds", "text_embeds")
"""Names of φ and ψ in the output of ``CLIPModel``."""

LARGEST_LOGARITHM = 5.0
"""A parameter `logit_scale` above this is hardly a logarithm; CLIP ends at log(100) = 4.6."""
_SAME_NUMBER = 1e-3
"""Relative difference of a number from a parameter that was copied by hand."""

_SAME = 1e-4
"""Cosine distance below which two embeddings belong to one input: 0.8 degrees, far above rounding errors, also in bfloat16, and
far below the distance of two different inputs."""


class Contrastive(Task):
    """The margin of a pair (x, y) among fixed other pairs B, image to text and text to image.

    ``f = −logsumexp_{(x',y')∈B} s·φ(x)·(ψ(y') − ψ(y)) − logsumexp_{(x',y')∈B} s·ψ(y)·(φ(x') − φ(x))``

    with unit-length embeddings φ of the image and ψ of the text. The loss weight q is 1 minus the mean of the two softmax
    probabilities of the true pair among itself and B, at the model's temperature; the curvature is the mean of both
    p(1 − p). Park et al. 2023, section 5 and appendix, on CLIP.

    B is not the rest of the batch, so that the output of a pair depends on that pair only. B consists of `negatives` pairs of
    the training set, drawn once. Their embeddings are computed once under each checkpoint and held fixed; no gradient
    flows into them. A pair of B whose two embeddings both coincide with the sample's own is the sample itself, and is left out.

    The model maps a batch of images and texts to their embeddings, (B, d) each, of any norm.

    Args:
        negatives: size of B; 300 in the paper.
        scale: s, the inverse temperature inside f: 1 as in the paper, any other number, or ``model`` for the model's own, with
            which the two summands are the log-odds of the two softmax probabilities.
        logit_scale: the inverse temperature of the training loss, 14.3 for a temperature of 0.07; None for exp of the model's parameter `logit_scale`.
        inputs: the entries of a batch that the model is called with: all by default, by their names or in order.
        outputs: the entries of the model's output that hold φ and ψ; by default `image_embeds` and `text_embeds`, as
            ``CLIPModel`` has them, or the first two of a tuple.
    """

    meaning = Meaning(
        "margin of the pair over other pairs",
        "bring image and text closer together",
        "push them apart",
        "loss_weight",
        "p(pair)",
    )

    def __init__(
        self,
        negatives: int = 300,
        scale: float | Literal["model"] = 1.0,
        logit_scale: float | None = None,
        inputs: Inputs = None,
        outputs: list[Key] | None = None,
    ) -> None:
        negatives, scale = int(negatives), scale if isinstance(scale, str) else number(scale, "scale")
        logit_scale = None if logit_scale is None else number(logit_scale, "logit_scale")
        if negatives < 1:
            raise SettingsError(f"negatives must be a positive number of pairs, got {negatives}")
        if scale != "model" and not (isinstance(scale, (int, float)) and scale > 0):
            raise SettingsError(f"scale must be a positive number or 'model', got {scale!r}")
        if logit_scale is not None and not logit_scale > 0:
            raise SettingsError(f"logit_scale must be positive (the inverse of the temperature), got {logit_scale}")
        self.negatives = negatives
        self.scale = scale
        self.logit_scale = logit_scale
        if outputs is not None and len(outputs) != 2:
            raise SettingsError(f"outputs must name two entries, of images and of texts, got {outputs!r}")
        self.inputs = to_json(inputs, "inputs")
        self.outputs = to_json(outputs, "outputs")
        self._bank: Mapping[str, Tensor] = {}
        self._memo = Memo[Tensor]()

    @property
    def fit_samples(self) -> int:  # type: ignore[override]
        return self.negatives

    def fit(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
        """Compute the embeddings of B, (negatives, d) each, and the model's inverse temperature."""
        images, texts = zip(*(self._embeddings(model, batch) for batch in batches), strict=True)
        bank = {"images": torch.cat(images), "texts": torch.cat(texts)}
        if len(bank["images"]) < 2:
            raise DataError("contrastive needs at least two training pairs to compare")
        return {**bank, "logit_scale": self._logit_scale(model).to(bank["images"].device)}

    def fitted(self, found: Mapping[str, Tensor]) -> Self:
        bound = copy.copy(self)
        bound._bank, bound._memo = dict(found), Memo[Tensor]()
        return bound

    def output(self, model: nn.Module, batch: Any) -> Tensor:
        output, gaps = self._output(model, batch)
        self._memo.keep(batch, output, gaps.detach())
        return output

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return 1 - self._probabilities(model, batch, output).mean(-1)

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        p = self._probabilities(model, batch, output)
        return (p * (1 - p)).mean(-1)

    def _probabilities(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        """Softmax probabilities of the true text for the image and of the true image for the text, (B, 2)."""
        gaps = self._memo.of(batch, output, lambda: self._output(model, batch)[1])
        return torch.sigmoid(-(self._bank["logit_scale"] * gaps).logsumexp(-1))

    def _output(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute f, (B,), and how much more similar each pair of B is than the true one, (B, 2, negatives)."""
        if not self._bank:
            raise DataError(
                "contrastive has no other pairs to compare with yet: TRAK draws them from the training set. To call the task "
                "yourself, use task.fitted(task.fit(model, batches))."
            )
        images, texts = self._embeddings(model, batch)
        with torch.autocast(images.device.type, enabled=False):
            gaps = self._gaps(images, texts)
            scale = self._bank["logit_scale"] if self.scale == "model" else self.scale
            return -(scale * gaps).logsumexp(-1).sum(-1), gaps

    def _gaps(self, images: Tensor, texts: Tensor) -> Tensor:
        bank_images, bank_texts = (self._bank[name].to(images.dtype) for name in ("images", "texts"))
        own = (images * texts).sum(-1, keepdim=True)
        gaps = torch.stack([images @ bank_texts.T - own, texts @ bank_images.T - own], dim=-2)
        with torch.no_grad():
            same = (images @ bank_images.T > 1 - _SAME) & (texts @ bank_texts.T > 1 - _SAME)
        return gaps.masked_fill(same.unsqueeze(-2), -torch.inf)

    def _embeddings(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Compute φ and ψ, (B, d) each, of unit length, in float32 or wider."""
        found = self._arguments(batch).call(model)
        pair = [entry(found, key, "outputs", "the model's output") for key in self.outputs or _default_outputs(found)]
        for name, embedding in zip(("image", "text"), pair, strict=True):
            if not isinstance(embedding, Tensor) or embedding.ndim != 2 or embedding.shape != pair[0].shape:
                shape = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
                raise DataError(f"the {name} embeddings must be (B, d), the same for both towers; got {shape}")
        images, texts = (nn.functional.normalize(wide(embedding), dim=-1) for embedding in pair)
        return images, texts

    def _arguments(self, batch: Any) -> Arguments:
        if self.inputs is not None:
            return select_entries(batch, self.inputs)
        if (named := named_entries(batch)) is not None:
            return Arguments(kwargs={name: value for name, value in named.items() if isinstance(value, Tensor)})
        if isinstance(batch, (tuple, list)):
            return Arguments(tuple(batch))
        raise DataError(f"contrastive expects batches of pairs, as tuples or with names; this one is {describe(batch)}")

    def _logit_scale(self, model: nn.Module) -> Tensor:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        found = [tensor for name, tensor in tensors if name.rpartition(".")[2] == "logit_scale" and tensor.numel() == 1]
        if self.logit_scale is not None:
            self._warn_of_logarithm(found)
            return torch.tensor(float(self.logit_scale))
        if len(found) != 1:
            raise SettingsError(
                f"the model has {len(found) or 'no'} parameters named logit_scale, whose exponential would be the inverse "
                "temperature of its loss. Give the inverse temperature, such as 14.3 for 0.07: --task.logit_scale 14.3, or in Python "
                "task={'name': 'contrastive', 'logit_scale': 14.3}."
            )
        return wide(found[0].detach()).exp().reshape(())

    def _warn_of_logarithm(self, found: Sequence[Tensor]) -> None:
        for tensor in found:
            value, given = float(tensor.detach()), float(self.logit_scale or 0)
            if abs(given - value) <= _SAME_NUMBER * value < _SAME_NUMBER * LARGEST_LOGARITHM:
                warn(
                    f"logit_scale is {given:.6g}, the value of the model's parameter of that name, which is the logarithm of the inverse "
                    f"temperature in CLIP. If it is that here, give its exponential, {math.exp(value):.4g}, or leave the option out.",
                    CriterionWarning,
                )


def _default_outputs(found: Any) -> Sequence[Key]:
    named = named_entries(found)
    return (0, 1) if named is None or EMBEDDINGS[0] not in named else EMBEDDINGS
