"""What happens around a training step, by name, for configs."""

from lmtemplate.callbacks.board import Board, RunLogger
from lmtemplate.callbacks.cards import Cards
from lmtemplate.callbacks.checkpointing import Checkpoint, SafeCheckpointIO
from lmtemplate.callbacks.lr_monitor import LRMonitor
from lmtemplate.callbacks.progress import ProgressBar
from lmtemplate.callbacks.samples import Samples
from lmtemplate.callbacks.stopping import EarlyStopping, RunEnd
from lmtemplate.callbacks.throughput import Throughput

__all__ = [
    "Board",
    "Cards",
    "Checkpoint",
    "EarlyStopping",
    "LRMonitor",
    "ProgressBar",
    "RunEnd",
    "RunLogger",
    "SafeCheckpointIO",
    "Samples",
    "Throughput",
]
