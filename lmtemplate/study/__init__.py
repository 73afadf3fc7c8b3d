"""Runs -> verdicts, pictures, pages, plans. The core reads three names here, through plug.py."""

_HERE = "lmtemplate.study"

# Verb -> module, function, what it does, whether it parses configs as `fit` does.
VERBS = {
    # the core's own, with --seeds
    "fit": (
        f"{_HERE}.experiments.seeds",
        "fit_seeds",
        "train: shards -> checkpoints, curves",
        True,
    ),
    "plan": (f"{_HERE}.plan.plan", "plan", "a budget -> model, tokens, batch, rate, a config"),
    "schema": (f"{_HERE}.plan.schema", "schema", "JSON Schema of configs, for editors"),
    "schedule": (f"{_HERE}.show.schedule", "schedule", "draw a config's learning rate", True),
    "diagnose": (f"{_HERE}.diagnose.diagnose", "diagnose", "RUN: healthy, or what is wrong, why"),
    "summary": (f"{_HERE}.show.summary", "summary", "RUN: its losses and rates in figures"),
    "plot": (f"{_HERE}.show.plots", "plot", "RUN: draw its curves as PNG files"),
    "report": (f"{_HERE}.show.report", "report", "RUN: everything about it in one HTML file"),
    "compare": (
        f"{_HERE}.show.compare",
        "compare",
        "ARM ARM ...: is one better? a table, one plot",
    ),
    "compare-optimizers": (
        f"{_HERE}.experiments.optimizers",
        "compare_optimizers",
        "a config with SGD, momentum, Adam, AdamW, Muon: a table, one plot",
        True,
    ),
    "experiment": (
        f"{_HERE}.experiments.experiment",
        "experiment",
        "a config and a change, with seeds: keep it, or not, and why",
        True,
    ),
    "ledger": (f"{_HERE}.experiments.ledger", "ledger", "FOLDER: its runs, what each changed"),
    "scaling": (f"{_HERE}.experiments.scaling", "scaling", "loss by net and data: a law", True),
    "find-lr": (f"{_HERE}.experiments.find_lr", "find_lr", "a config -> its learning rate", True),
    "find-batch": (
        f"{_HERE}.experiments.find_batch",
        "find_batch",
        "a config -> the largest micro-batch that fits, tokens/s",
        True,
    ),
    "sweep": (f"{_HERE}.experiments.sweep", "sweep", "many runs over settings: the best", True),
    "reproduce": (f"{_HERE}.check.reproduce", "reproduce", "RUN: repeat it, compare bit for bit"),
    "verify": (f"{_HERE}.check.verify", "verify", "PATH: every checksum of a corpus or a run"),
    "doctor": (f"{_HERE}.check.doctor", "doctor", "check machine, corpus, run and a config's net"),
    "landscape": (
        f"{_HERE}.understand.landscape",
        "landscape",
        "[RUN]: a page: optimizers at work, the loss around a run's weights",
    ),
    "explain": (f"{_HERE}.understand.explain", "explain_training", "RUN: one step, in numbers"),
    "temperature": (
        f"{_HERE}.understand.temperature",
        "temperature",
        "RUN: the next token, hot and cold",
    ),
    "probe": (
        f"{_HERE}.understand.probe",
        "probe_model",
        "RUN: inside of the model, layer by layer",
    ),
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
