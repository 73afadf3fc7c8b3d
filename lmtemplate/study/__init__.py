"""Runs -> verdicts, pictures, pages, plans. The core reads three names here, through plug.py."""

from typing import Any

_HERE = "lmtemplate.study"

# Verb -> its function below here, what it does, whether it parses configs as `fit` does. `fit` is
# the core's own, with --seeds.
_VERBS: dict[str, tuple[Any, ...]] = {
    "fit": ("experiments.seeds.fit_seeds", "train: shards -> checkpoints, curves", True),
    "plan": ("plan.plan.plan", "a budget -> model, tokens, batch, rate, a config"),
    "schema": ("plan.schema.schema", "JSON Schema of configs, for editors"),
    "schedule": ("show.schedule.schedule", "draw a config's learning rate", True),
    "diagnose": ("diagnose.diagnose.diagnose", "RUN: healthy, or what is wrong, why"),
    "summary": ("show.summary.summary", "RUN: its losses and rates in figures"),
    "plot": ("show.plots.plot", "RUN: draw its curves as PNG files"),
    "report": ("show.report.report", "RUN: everything about it in one HTML file"),
    "compare": ("show.compare.compare", "ARM ARM ...: is one better? a table, one plot"),
    "compare-optimizers": (
        "experiments.optimizers.compare_optimizers",
        "a config with SGD, momentum, Adam, AdamW, Muon: a table, one plot",
        True,
    ),
    "experiment": ("experiments.experiment.experiment", "a change, with seeds: keep it?", True),
    "ledger": ("experiments.ledger.ledger", "FOLDER: its runs, what each changed"),
    "scaling": ("experiments.scaling.scaling", "loss by net and data: a law", True),
    "find-lr": ("experiments.find_lr.find_lr", "a config -> its learning rate", True),
    "find-batch": ("experiments.find_batch.find_batch", "the largest micro-batch that fits", True),
    "sweep": ("experiments.sweep.sweep", "many runs over settings: the best", True),
    "reproduce": ("check.reproduce.reproduce", "RUN: repeat it, compare bit for bit"),
    "verify": ("check.verify.verify", "PATH: every checksum of a corpus or a run"),
    "doctor": ("check.doctor.doctor", "check machine, corpus, run and a config's net"),
    "landscape": ("understand.landscape.landscape", "[RUN]: optimizers on a loss landscape"),
    "explain": ("understand.explain.explain_training", "RUN: one step, in numbers"),
    "temperature": ("understand.temperature.temperature", "RUN: the next token, hot and cold"),
    "probe": ("understand.probe.probe_model", "RUN: inside of the model, layer by layer"),
}
# Verb -> module, function, and the rest of its row.
VERBS = {
    verb: (f"{_HERE}.{path.rpartition('.')[0]}", path.rpartition(".")[2], *rest)
    for verb, (path, *rest) in _VERBS.items()
}

# Key of a config -> class of the callback that it configures.
CALLBACKS = {
    "watch": f"{_HERE}.diagnose.early_warning.Watch",
    "early_validation": f"{_HERE}.show.early_validation.EarlyValidation",
    "pictures": f"{_HERE}.show.pictures.Pictures",
    "dynamics": f"{_HERE}.understand.dynamics.Dynamics",  # off: it cannot do without a setting
    "planned": f"{_HERE}.plan.planned.Planned",  # off without what `plan` has predicted
    "uncommitted": f"{_HERE}.experiments.uncommitted.Uncommitted",
}

# Called with the run directory, the allowed packages and `report` when a run has ended.
CLOSING = f"{_HERE}.experiments.ledger.close_run"
