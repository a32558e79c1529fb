"""`kdcluster schema`: every field is documented once, and the JSON Schema says what the validation says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster.cli import main
from kdcluster.experiment.config import Experiment
from kdcluster.experiment.schema import FieldDoc, fields
from kdcluster.wording import block_of
from tests.fields import hashed, leaves

DOCS = {doc.key: doc for doc in fields()}
DOCUMENT: dict[str, Any] = json.loads(CliRunner().invoke(main, ["schema", "--json"]).stdout)


def block(reference: dict[str, Any]) -> dict[str, Any]:
    found = DOCUMENT["$defs"][reference["$ref"].removeprefix("#/$defs/")]
    assert isinstance(found, dict)
    return found


def test_every_field_is_documented() -> None:
    keys = {key: info for key, info in leaves() if not key.startswith("teacher.train.")}
    assert {key for key, doc in DOCS.items() if doc.type != "block"} == set(keys)
    for key, info in keys.items():
        assert DOCS[key].meaning.endswith("."), key
        assert DOCS[key].hashed == hashed(info), key
        assert (DOCS[key].default == "required") == info.is_required(), key


@pytest.mark.parametrize(
    "doc",
    [
        FieldDoc("train.lr", "float", "", "0.0003", True, "Peak learning rate."),
        FieldDoc(
            "resources.gpus", "int | null", "", "null", False, "GPUs of each training run, one process each; null: 1."
        ),
        FieldDoc("seeds", "list of int", "", "[0]", True, "One baseline and one distilled run for each."),
    ],
    ids=lambda doc: doc.key,
)
def test_what_is_said_of_a_field(doc: FieldDoc) -> None:
    assert DOCS[doc.key] == doc


def test_types_are_in_the_files_words() -> None:
    assert DOCS["data.name"].type == "cifar100 | cifar10 | mnist5k | image_folder"
    assert DOCS["teacher.pretrained"].type == "bool | text"
    assert DOCS["student.model_args"].type == "mapping"
    assert DOCS["teacher.min_top1"].type == "float | null"
    assert DOCS["teacher.train"].type == "block"
    assert (DOCS["train.compile"].type, DOCS["train.compile"].default) == ("auto | true | false", "auto")
    assert DOCS["variant"].default == "''"
    assert DOCS["train.batch_size"].unit == "images"
    assert DOCS["distill"].default == ""
    assert DOCS["data"].default == "required"


def test_the_page_has_every_key_once() -> None:
    page = CliRunner().invoke(main, ["schema"]).stdout
    heads = [line for line in page.splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in heads] == list(DOCS)
    assert "train.lr: float, default 0.0003" in heads
    assert "teacher.min_top1: float | null [percent], default null  (not in the id)" in heads
    assert "teacher.model: text, required" in heads
    assert max(map(len, page.splitlines())) <= 120


def test_the_json_schema_knows_the_same_fields() -> None:
    assert DOCUMENT["$schema"].startswith("https://json-schema.org/")
    assert set(DOCUMENT["properties"]) == set(Experiment.model_fields)
    assert sorted(DOCUMENT["required"]) == ["data", "student", "teacher"]
    for name, definition in {"Experiment": DOCUMENT, **DOCUMENT["$defs"]}.items():
        assert definition["additionalProperties"] is False, name
        for key, value in definition["properties"].items():
            assert value["description"], f"{name}.{key}"
            assert "hashed" in value, f"{name}.{key}"


def test_the_json_schema_has_limits_choices_and_the_word_none() -> None:
    train = block(DOCUMENT["properties"]["train"])
    assert train["properties"]["lr"]["exclusiveMinimum"] == 0
    assert train["properties"]["amp"]["enum"] == ["auto", "bf16", "none"]
    assert train["properties"]["warmup_epochs"]["unit"] == "epochs"
    teacher = block(DOCUMENT["properties"]["teacher"])
    assert teacher["properties"]["train"]["anyOf"] == [{"$ref": "#/$defs/Train"}, {"const": "none"}]
    assert DOCUMENT["properties"]["seeds"]["minItems"] == 1


def test_the_block_inside_an_annotation() -> None:
    fields_ = Experiment.model_fields
    assert block_of(fields_["train"].annotation) is type(Experiment.model_fields["train"].default)
    assert block_of(fields_["seeds"].annotation) is None
