"""Let every call of a DataModule's ``setup`` draw the same random numbers.

Lightning calls it again for every ``fit`` and every stage, and each command of a run is a process of its own: a split by
``random_split`` without a generator would be another one every time.
"""

import random
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn


def repeat_setup(datamodule: L.LightningDataModule) -> None:
    """Begin every call of ``setup`` with the random numbers that would be drawn now, and leave the generators as they were. Each
    call returns whether it has drawn any.

    A call by Trainer.predict does nothing: it is given loaders of data that was set up, one for each checkpoint, and a setup may take long.
    """
    datamodule.setup = partial(_set_up, datamodule, _random_state())  # type: ignore[method-assign,assignment]


def _set_up(datamodule: L.LightningDataModule, state: tuple[Any, Any, Any], stage: Any = None) -> bool:
    if stage is TrainerFn.PREDICTING:
        return False
    before = _random_state()
    _restore(state)
    try:
        type(datamodule).setup(datamodule, stage)
        return _values(_random_state()) != _values(state)
    finally:
        _restore(before)


def _random_state() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  DataModules draw from it


def _values(state: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    python, (_, keys, *rest), generator = state
    return python, np.asarray(keys).tobytes(), rest, generator.numpy().tobytes()


def _restore(state: tuple[Any, Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])
