"""The JSON Schema of configs: it holds what the parser takes, and the shipped configs hold to it."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonargparse._typehints import ActionTypeHint

from lmtemplate.cli import make_parser
from lmtemplate.cli_classes import OPEN, load_yaml
from lmtemplate.study.plan.schema import Schema, config_schema
from tests.conftest import Command

ROOT = Path(__file__).parents[3]
FILE = ROOT / "configs" / "schema.json"
CONFIGS = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("examples/*.yaml")])
TYPES = {
    "null": type(None),
    "boolean": bool,
    "string": str,
    "array": list,
    "object": dict,
    "integer": int,
    "number": (int, float),
}


def holds(schema: Schema, value: Any) -> bool:
    """Whether a value is valid, by the words of JSON Schema that ours has (draft 7)."""
    unknown = schema.keys() - {"$schema", "title", "description", "default"}
    checks = {
        "type": lambda kind: (
            isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        ),
        "enum": lambda listed: value in listed,
        "anyOf": lambda choices: any(holds(one, value) for one in choices),
        "not": lambda other: not holds(other, value),
        "pattern": lambda pattern: not isinstance(value, str) or bool(re.search(pattern, value)),
        "items": lambda of: not isinstance(value, list) or all(holds(of, one) for one in value),
        "required": lambda keys: not isinstance(value, dict) or set(keys) <= value.keys(),
        "properties": lambda of: (
            not isinstance(value, dict)
            or all(holds(of[key], one) for key, one in value.items() if key in of)
        ),
        "additionalProperties": lambda allowed: (
            allowed or not isinstance(value, dict) or value.keys() <= schema["properties"].keys()
        ),
    }
    assert unknown <= checks.keys()
    return all(checks[word](schema[word]) for word in unknown)


@pytest.fixture(scope="module")
def stored() -> Schema:
    schema: Schema = json.loads(FILE.read_text(encoding="utf-8"))
    return schema


def test_the_file_is_what_the_constructors_say_now(stored: Schema) -> None:
    now = json.loads(json.dumps(config_schema()))
    if set(re.findall(r'"lmtemplate[\w.]+"', json.dumps(stored))) > set(
        re.findall(r'"lmtemplate[\w.]+"', json.dumps(now))
    ):
        pytest.skip("a class was deleted: lmtemplate schema --output configs/schema.json")
    assert stored == now, "write it anew: lmtemplate schema --output configs/schema.json"


def test_it_has_the_keys_of_the_parser_and_no_others(stored: Schema) -> None:
    classes = {group: kind for group, (_, kind) in OPEN.items()}
    parsed = make_parser("lmtemplate fit", classes).get_defaults().as_dict()
    groups = {name: parsed[name] for name in ("trainer", "model", "data")}
    own = stored["properties"]
    assert own.keys() == parsed.keys() - {"config"}
    for name, taken in groups.items():
        schema = own[name] if name == "trainer" else own[name]["anyOf"][0]
        listed = {key for key in schema["properties"] if not key.endswith("+")}
        assert listed == taken.keys() - {"seed"}, name  # of data: linked to seed_everything
        defaults = {k: of["default"] for k, of in schema["properties"].items() if "default" in of}
        assert all(taken[key] == default for key, default in defaults.items() if key in taken)


def test_what_the_parser_can_append_to_has_a_plus(stored: Schema) -> None:
    parser = make_parser("lmtemplate fit", {group: kind for group, (_, kind) in OPEN.items()})
    for name in ("trainer", "model", "data"):
        schema = stored["properties"][name]
        listed = (schema if name == "trainer" else schema["anyOf"][0])["properties"]
        for action in parser._actions:
            group, _, key = action.dest.partition(".")
            if group == name and key in listed:
                appends = isinstance(action, ActionTypeHint) and action.supports_append(action)
                assert (f"{key}+" in listed) == bool(appends), action.dest


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_config_of_the_repository_is_valid(path: Path, stored: Schema) -> None:
    assert holds(stored, load_yaml(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", (ROOT / "configs").glob("*.yaml"), ids=lambda path: path.name)
def test_each_shipped_config_tells_editors_of_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={FILE.name}"


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "modle", 1),
        (("model", "net", "init_args"), "n_layr", 4),
        (("model", "net"), "class_path", "lmtemplate.models.GTP"),
        (("model", "optimizer", "init_args"), "momentun", 0.9),
        (("trainer",), "max_steps", "many"),
        (("trainer",), "max_epochs", 2),  # owned by us
        (("data",), "blok_size", 64),
        (("samples",), "promts", []),
    ],
)
def test_a_mistake_is_not(place: tuple[str, ...], key: str, value: Any, stored: Schema) -> None:
    config = load_yaml((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    changed = deepcopy(config)
    inner = changed
    for name in place:
        inner = inner[name]
    inner[key] = value
    assert holds(stored, config)
    assert not holds(stored, changed)


def test_other_packages_classes_are_taken_with_any_settings(stored: Schema) -> None:
    optimizer = {"class_path": "torch.optim.RMSprop", "init_args": {"alpha": 0.9}}
    assert holds(stored, {"model": {"optimizer": optimizer}})


def test_a_planned_config_is_valid(stored: Schema, command: Command) -> None:
    assert holds(stored, load_yaml(command("plan", "--parameters", "1e8", "--gpu", "h100").out))


def test_the_verb_prints_it(command: Command, stored: Schema) -> None:
    assert json.loads(command("schema").out).keys() == stored.keys()
