"""What happens around a training step, by name, for configs."""

from lmtemplate.callbacks.board import Board, RunLogger
from lmtemplate.callbacks.cards import Cards
from lmtemplate.callbacks.checkpointing import Checkpoint
from lmtemplate.callbacks.guard import Guard
from lmtemplate.callbacks.lr_monitor import LRMonitor
from lmtemplate.callbacks.progress import ProgressBar
from lmtemplate.callbacks.record import Pictures, RecordLogger
from lmtemplate.callbacks.samples import Samples
from lmtemplate.callbacks.signals import SignalError, Signals
from lmtemplate.callbacks.state import SafeCheckpointIO
from lmtemplate.callbacks.stopping import EarlyStopping, RunEnd
from lmtemplate.callbacks.throughput import Throughput
from lmtemplate.callbacks.watch import Watch

__all__ = [
    "Board",
    "Cards",
    "Checkpoint",
    "EarlyStopping",
    "Guard",
    "LRMonitor",
    "Pictures",
    "ProgressBar",
    "RecordLogger",
    "RunEnd",
    "RunLogger",
    "SafeCheckpointIO",
    "Samples",
    "SignalError",
    "Signals",
    "Throughput",
    "Watch",
]
