"""A callback for the Trainer of `transformers`, and for TRL, which is one."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trak_lightning.chat.order import RecordedOrder


class AttributionCallback(TrainerCallback):
    """Save checkpoints at chosen steps, each with the samples that it was trained on.

    ``output_dir`` then holds ``checkpoint-100`` and ``checkpoint-100.subset.npy``, which `trak` reads with it, and at the end
    ``order.npy``, the positions of the training samples in the order in which they were drawn. The dataset must be the one that
    is attributed to, in the same order: not packed, filtered or shuffled on its way.

    Args:
        steps: the steps after which to save, in addition to those of the Trainer; the last is always saved.
    """

    def __init__(self, steps: Collection[int] = ()) -> None:
        self.steps = frozenset(steps)
        self._order: RecordedOrder | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._loader = kwargs["train_dataloader"]
        self._order = RecordedOrder(self._loader)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps or state.global_step == state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._order is not None and state.is_world_process_zero:
            steps_per_epoch = -(-len(self._loader) // args.gradient_accumulation_steps)
            epochs, steps = divmod(state.global_step, steps_per_epoch)
            drawn = steps * args.gradient_accumulation_steps * args.per_device_train_batch_size * args.world_size
            # After an epoch every sample was seen.
            self._order.save(Path(args.output_dir) / f"checkpoint-{state.global_step}", None if epochs else drawn)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._order is not None and state.is_world_process_zero:
            self._order.save_all(Path(args.output_dir))
