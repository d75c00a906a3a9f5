"""The interface of a task."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from trak_lightning.errors import SettingsError
from trak_lightning.run.meaning import NEGATIVE_LOSS, Meaning
from trak_lightning.tasks.state import to_json

LOSS_FUNCTIONS = ("logistic", "squared", "linear")

_SIZE: ContextVar[int | None] = ContextVar("batch_size", default=None)
_BEGIN: ContextVar[Callable[[], None] | None] = ContextVar("begin", default=None)


@contextmanager
def batch_of(size: int) -> Iterator[None]:
    """Tell the tasks called within how many samples their batch holds.

    The shapes of a batch do not always say: a graph has as many rows as nodes, a sequence-first batch (T, B) begins with
    its length. Whoever collated the samples knows.
    """
    begin, token = _BEGIN.get(), _SIZE.set(size)
    try:
        if begin is not None:
            begin()
        yield
    finally:
        _SIZE.reset(token)


@contextmanager
def before_each_pass(begin: Callable[[], None]) -> Iterator[None]:
    """Call `begin` whenever `batch_of` is entered: before each pass through the model."""
    token = _BEGIN.set(begin)
    try:
        yield
    finally:
        _BEGIN.reset(token)


def current_size() -> int | None:
    """The number of samples of the batch at hand, as told by `batch_of`; None if nobody told."""
    return _SIZE.get()


class ClassProblems(NamedTuple):
    """The classification problems that every sample poses: T at most, each with C classes."""

    logits: Tensor
    """(B, T, C)"""
    counted: Tensor
    """Whether a problem counts, (B, T)."""
    scale: Tensor
    """By which the sum of a sample's losses is multiplied, (B,)."""


class Answers(NamedTuple):
    """What a model says of the labels of samples that have several: T at most, each with C classes."""

    log_probabilities: Tensor
    """(B, T, C)"""
    labels: Tensor
    """(B, T) integers, −1 where there is none."""
    term: str | None
    """What is labeled, in one word, such as ``token``; None for T questions with names of their own, whose answers are no and yes."""


class Task(ABC):
    """A model output function f(z; θ), one scalar per sample, and how the training loss depends on it.

    TRAK linearizes f in θ and treats training as a convex problem in f: loss ℓ(f), its slope and its curvature
    (Park et al. 2023, section 3). A task of your own needs one method, `output`:

    >>> class Margin(Task):
    ...     loss_function = "logistic"
    ...
    ...     def output(self, model, batch):
    ...         x, y = batch
    ...         return model(x)[:, 0] * y

    The other methods default to the logistic loss ℓ(f) = log(1 + exp(−f)), which is the cross-entropy of every
    classifier whose f is the log-odds log(p/(1−p)) of the correct answer. If ℓ has one of the other forms of `loss_function`, set
    that; for any other loss, override `loss_weight` and `curvature`, and `meaning`.

    An output must depend on its own sample only, and must not depend on chance; both are checked on the first batch.
    """

    loss_function: ClassVar[str] = "logistic"
    """The form of ℓ, from which the defaults of q, r and `meaning` follow; scores are made from q and r.

    ``logistic``: ℓ = a·log(1+exp(−f)) + b·log(1+exp(f)), with a = 1 and b = 0 unless classes are weighted or labels are smoothed.
    ``squared``: f predicts a number y, q = y − f and ℓ = q²/2. ``linear``: f is minus the loss, ℓ = −f, q = 1 and r = 0. A loss of
    another form (Poisson: f = log of the rate μ, q = y − μ, r = μ) keeps the default ``logistic`` and says what f means in `meaning`."""

    fit_samples: int = 0
    """The number of training samples that `fit` sees under each checkpoint, before any output; 0 for a task that needs none."""

    @abstractmethod
    def output(self, model: nn.Module, batch: Any) -> Tensor:
        """Compute f(z; θ) of every sample in `batch`, (B,), differentiable in the parameters of `model`.

        `model` is called like a function. It may be a stand-in with replaced parameters (the ``functional`` extractor passes
        one), so do not rely on its attributes.

        Raises:
            OneSampleAtATime: there is no output per sample for a batch of more than one; for one sample there is, (1,).
        """

    def loss_weight(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        """Compute q = −∂ℓ/∂f of every sample, (B,): 1 − p for the logistic loss, 1 for the linear one. `output` is what `output`
        returned.

        Raises:
            SettingsError: the loss is squared, and the numbers y of q = y − f are not known here.
        """
        if self.loss_function == "squared":
            raise SettingsError(
                f"{type(self).__name__} has loss_function 'squared' and no method loss_weight: override it to return y − output, (B,), "
                "with the numbers y of the batch."
            )
        return torch.ones_like(output) if self.loss_function == "linear" else torch.sigmoid(-output)

    def curvature(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        """Compute r = ∂²ℓ/∂f² of every sample, (B,): p(1 − p) for the logistic loss, 1 for the squared, 0 for the linear one."""
        if self.loss_function == "logistic":
            return torch.sigmoid(output) * torch.sigmoid(-output)
        return torch.ones_like(output) if self.loss_function == "squared" else torch.zeros_like(output)

    def probabilities(self, model: nn.Module, batch: Any) -> Tensor | None:
        """Compute class probabilities (B, C) to show to people; None if the task has no classes."""
        return None

    def class_labels(self, batch: Any) -> Tensor | None:
        """Find the class of each sample's label, (B,) integers into `probabilities`; None if the task has no classes."""
        return None

    def answers(self, model: nn.Module, batch: Any) -> Answers | None:
        """Compute what the model says of each of a sample's labels, to find those that are wrong; None if it has one label or none."""
        return None

    def class_problems(self, model: nn.Module, batch: Any) -> "ClassProblems":
        """Compute what the model predicts of labels, so that labels can be drawn from it. Override it, with
        `require_class_problems`, if the loss is a sum of cross-entropies of softmax outputs."""
        raise NotImplementedError

    def require_class_problems(self) -> None:
        """Raises: SettingsError: the task does not say what the model predicts of labels."""
        raise SettingsError(
            f"{type(self).__name__} does not say how labels are drawn from the model, which curvature_draws needs; image_classification, "
            "text_classification, token_classification, causal_lm and seq2seq_lm do, without class weights. Use curvature_draws=0."
        )

    def loss_weight_and_curvature(self, model: nn.Module, batch: Any, output: Tensor) -> tuple[Tensor, Tensor]:
        """Compute q and r of every sample, (B,) each. Called once per batch, after its gradients. Override it where one more
        forward pass gives both."""
        return self.loss_weight(model, batch, output.clone()), self.curvature(model, batch, output)

    def require_agreement(self, whole: Any, outputs: Tensor) -> None:  # noqa: B027 (most tasks have nothing to compare)
        """Compare what `output` found for a batch as a whole with the outputs of its samples, given one at a time.

        Args:
            whole: `OneSampleAtATime.whole`, as raised for the batch.
            outputs: of every sample of that batch, (B,).

        Raises:
            DataError: the batch as a whole says something else, so the samples alone are not what the model was trained on.
        """

    def fit(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
        """Learn from training samples what outputs need, for tasks with `fit_samples`.

        Called once per checkpoint, without gradients, with `fit_samples` training samples (all, if there are fewer). They
        depend on the training set alone, not on the checkpoint, the split or the number of ranks. The result is kept in the
        run directory, for every process and for a resumed run.
        """
        return {}

    def fitted(self, found: Mapping[str, Tensor]) -> Self:
        """Return a copy of this task that uses what `fit` returned, on the device of the model. `state` must not change."""
        return self

    @property
    def meaning(self) -> Meaning:
        """Say what f means, for people who read scores. Override it, also as a class attribute, where the default is not true:

        log-odds of the right answer, for the logistic loss with the default q; a prediction of a number, for the squared loss;
        the negative loss, for the linear one.
        """
        if self.loss_function == "squared":
            return Meaning("prediction", "raise the prediction", "lower the prediction", number=True)
        if self.loss_function == "linear":
            return Meaning(NEGATIVE_LOSS, "lower the loss", "raise the loss")
        if type(self).loss_weight is not Task.loss_weight:
            return Meaning()
        return Meaning(
            "log-odds of the right answer", "push towards the right answer", "push away from it", "output", "p(answer)"
        )

    @property
    def state(self) -> dict[str, Any]:
        """Describe the settings that determine the output, as JSON, for the run directory: all public attributes.

        Raises:
            SettingsError: an attribute cannot be recorded, or hides a method of the task; a method takes other arguments; or
                `loss_function` is no known form.
        """
        own = f"{type(self).__module__}.{type(self).__qualname__}"
        if self.loss_function not in LOSS_FUNCTIONS:
            raise SettingsError(
                f"loss_function of {own} must be one of {', '.join(LOSS_FUNCTIONS)}, got {self.loss_function!r}. For a loss of another "
                "form, leave it out, and override loss_weight, curvature and meaning."
            )
        if callable(getattr(type(self), "weights", None)):
            raise SettingsError(
                f"{own} has a method `weights`, which is now called `loss_weight_and_curvature`. Rename it."
            )
        found = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        for name in found:
            if inspect.isfunction(getattr(Task, name, None)) and not callable(found[name]):
                raise SettingsError(
                    f"{own} has an attribute {name!r}, which hides its method of that name. Choose another name for it."
                )
        for name in ("output", "loss_weight", "curvature", "loss_weight_and_curvature"):
            expected = list(inspect.signature(getattr(Task, name)).parameters)[1:]
            try:
                inspect.signature(getattr(self, name)).bind(*expected)
            except TypeError as error:
                raise SettingsError(
                    f"{own}.{name}{inspect.signature(getattr(type(self), name))} cannot be called as {name}({', '.join(expected)}): {error}. "
                    f"Define it as {name}(self, {', '.join(expected)})."
                ) from error
        return {"class": own} | {name: to_json(value, f"{own}.{name}") for name, value in found.items()}


def unstated_loss(task: Task) -> str | None:
    """Say that a task takes q of the logistic loss because its class says nothing of a loss; None if it does."""
    classes = type(task).__mro__[: type(task).__mro__.index(Task)]
    stated = {"loss_function", "loss_weight", "loss_weight_and_curvature"}
    if any(stated & vars(each).keys() for each in (*classes, task)):
        return None
    return (
        f"{type(task).__name__} does not say what its loss is: loss weights are those of the logistic loss, q = 1 − sigmoid(f), "
        'which is right if the output f is log-odds. Set loss_function = "logistic" in the class to confirm this, "linear" if f is '
        "minus the loss, or define loss_weight(self, model, batch, output)"
    )
