"""What happens around a training step: config key -> class, in the order in which they act."""

CALLBACKS: dict[str, str] = {
    "signals": "lmtemplate.callbacks.preemption.Preemption",
    "early_stopping": "lmtemplate.callbacks.early_stopping.EarlyStopping",
    "lr_monitor": "lmtemplate.callbacks.lr_monitor.LRMonitor",
    "throughput": "lmtemplate.callbacks.throughput.Throughput",
    "guard": "lmtemplate.callbacks.non_finite.NonFiniteGuard",
    "weight_averaging": "lmtemplate.callbacks.weight_averaging.WeightAveraging",
    "samples": "lmtemplate.callbacks.samples.Samples",
    "checkpoint": "lmtemplate.callbacks.checkpointing.Checkpoint",
}

OFF = ("weight_averaging",)  # unless a config sets something in it
