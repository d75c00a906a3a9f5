"""What can be seen to be missing before a model is trained."""

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.model_helpers import is_overridden

from trak_lightning.errors import SettingsError, UnsupportedModelError

_OR_NOT = "Or train nothing: name your own files under checkpoints, and ask for no evaluation that retrains models (--evaluation.models 0)."


def require_trainable(model: L.LightningModule, trainer: L.Trainer, max_epochs: int | None) -> None:
    """Refuse a model without the methods that Lightning trains with, and 1000 epochs that nobody asked for.

    Args:
        model: the user's.
        trainer: the one that would train it.
        max_epochs: as given to the Trainer, which replaces None by 1000 where nothing else ends the training.

    Raises:
        UnsupportedModelError: the model has no ``training_step`` or no ``configure_optimizers``.
        SettingsError: nothing ends the training.
    """
    methods = [name for name in ("training_step", "configure_optimizers") if not is_overridden(name, model)]
    if methods:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no {' and no '.join(methods)}, so Lightning cannot train it. Add what your training does. {_OR_NOT}"
        )
    ends = any(isinstance(each, EarlyStopping | Timer) for each in trainer.callbacks)  # type: ignore[attr-defined]
    if max_epochs is None and trainer.max_steps == -1 and not ends:
        raise SettingsError(
            "none of trainer.max_epochs, trainer.max_steps and trainer.max_time is set, and Lightning would train every model for 1000 epochs. "
            f"Set what your own training has, such as --trainer.max_epochs 20. {_OR_NOT}"
        )
