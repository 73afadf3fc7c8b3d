"""What happens around a training step, by name, for configs."""

from lmtemplate.callbacks.board import Board, RunLogger
from lmtemplate.callbacks.checkpointing import Checkpoint
from lmtemplate.callbacks.early_stopping import EarlyStopping, RunEnd
from lmtemplate.callbacks.lr_monitor import LRMonitor
from lmtemplate.callbacks.non_finite import Guard
from lmtemplate.callbacks.preemption import SignalError, Signals
from lmtemplate.callbacks.progress import ProgressBar
from lmtemplate.callbacks.record import RecordLogger
from lmtemplate.callbacks.run_summary import Cards
from lmtemplate.callbacks.samples import Samples
from lmtemplate.callbacks.state import SafeCheckpointIO
from lmtemplate.callbacks.throughput import Throughput

__all__ = [
    "Board",
    "Cards",
    "Checkpoint",
    "EarlyStopping",
    "Guard",
    "LRMonitor",
    "ProgressBar",
    "RecordLogger",
    "RunEnd",
    "RunLogger",
    "SafeCheckpointIO",
    "Samples",
    "SignalError",
    "Signals",
    "Throughput",
]
