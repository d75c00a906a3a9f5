"""Attribution of one recorded training run: the derivative of an output with respect to the weight of each training sample.

`Record` is a Lightning callback that makes a run replayable; `Replay` runs it again and differentiates through its steps.
"""

from trak_lightning_replay.record import Record
from trak_lightning_replay.replay import Replay
from trak_lightning_replay.smoothness import Smoothness

__all__ = ["Record", "Replay", "Smoothness"]
