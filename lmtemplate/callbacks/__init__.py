"""What happens around a training step: the one list of the callbacks that a config has keys for."""

# Key of a config -> class, in the order in which they act. `fit` attaches each of them.
CALLBACKS: dict[str, str] = {
    "signals": "lmtemplate.callbacks.preemption.Preemption",
    "early_stopping": "lmtemplate.callbacks.early_stopping.EarlyStopping",
    "lr_monitor": "lmtemplate.callbacks.lr_monitor.LRMonitor",
    "throughput": "lmtemplate.callbacks.throughput.Throughput",
    "guard": "lmtemplate.callbacks.non_finite.NonFiniteGuard",
    "samples": "lmtemplate.callbacks.samples.Samples",
    "checkpoint": "lmtemplate.callbacks.checkpointing.Checkpoint",
}
