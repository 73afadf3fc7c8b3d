"""Run directory -> what its plain files say, each key that is read checked for its type."""

from pathlib import Path
from typing import Any

from lmtemplate.checkpoint.compatibility import flatten
from lmtemplate.run_dir import check_kinds, read_checked

SUMMARY = {
    **dict.fromkeys(("stop_reason", "stop_message"), str),
    **dict.fromkeys(("step", "max_steps", "tokens", "parameters", "devices"), int),
    **dict.fromkeys(("flops", "flops_6nd", "passes", "seconds", "tokens_per_second", "mfu"), float),
}
MANIFEST = {
    "command": [str],
    "git": {"commit": str, "dirty": bool},
    **dict.fromkeys(("python", "platform"), str),
    "versions": dict,
    "hardware": {"device": str, "name": str, "devices": int, "precision": str, "threads": int},
    "settings": {"data": {"path": str}, "trainer": dict},
    "data": {"path": str, "fingerprint": str, "tokenizer_sha256": str},
    "resumed": [{"step": int, "changed": dict, "environment": dict}],
}
SETTINGS = {
    "data.path": str,
    **dict.fromkeys(("data.block_size", "data.max_val_blocks", "trainer.max_steps"), int),
    "model.optimizer.class_path": str,
    "model.schedule.init_args.warmup_steps": float,
}


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json; {} where there is none. Raises CheckpointError where it is damaged."""
    return read_checked(run / "summary.json", SUMMARY)


def read_manifest(run: Path) -> dict[str, Any]:
    """manifest.json; {} where there is none. Raises CheckpointError where it is damaged."""
    return read_checked(run / "manifest.json", MANIFEST)


def read_settings(run: Path) -> dict[str, Any]:
    """config.yaml as "data.path" -> value; {} where there is none. Raises CheckpointError."""
    path = run / "config.yaml"
    settings = flatten(read_checked(path, {}))
    check_kinds(settings, SETTINGS, path)
    return settings
