"""Configs and recipes: every complaint names the source, the key, the value and what is allowed."""

from typing import Literal

import pytest
from pydantic import PositiveInt, ValidationError

from gen_core.harness import config as configs
from gen_core.harness import recipes
from gen_core.harness.errors import UsageError, nearest
from toydomain.registry import DOMAIN


class Config(configs.Config):
    hidden: PositiveInt = 3
    """width, units"""
    kind: Literal["a", "b"] = "a"
    """kind"""


def test_defaults_are_frozen_and_documented():
    config = Config()
    with pytest.raises(ValidationError):
        config.hidden = 4
    assert Config.model_fields["hidden"].description == "width, units"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden": 3}, "here: unknown key 'hiden'; nearest: hidden; known: hidden, kind"),
        ({"hidden": "x"}, "here: hidden = 'x': Input should be a valid integer"),
        ({"hidden": -1}, "here: hidden = -1: Input should be greater than 0"),
        ({"kind": "c"}, "here: kind = 'c': Input should be 'a' or 'b'"),
        ({"hidden": float("nan")}, "here: hidden = nan"),
    ],
)
def test_parse_names_source_key_value_and_allowed(values, message):
    with pytest.raises(UsageError) as caught:
        configs.parse(Config, values, "here")
    assert message in str(caught.value)


def test_toml_round_trip_leaves_none_out(tmp_path):
    path = tmp_path / "c.toml"
    configs.write_toml(path, {"a": 1, "b": None, "t": {"x": [1.5, 2.0], "y": "z", "n": None}})
    assert configs.read_toml(path) == {"a": 1, "t": {"x": [1.5, 2.0], "y": "z"}}


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "[x"])
def test_bad_toml_names_the_file(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.toml: not valid TOML"):
        configs.read_toml(path)


def test_nearest_without_any_near_name():
    assert nearest("zzz", ["dgi"], "method") == "unknown method 'zzz'; known: dgi"


GOOD = {
    "scale": "cpu",
    "data": "rows",
    "protocol": "separation",
    "metric": "separation",
    "unit": "sigma",
    "seeds": [0],
    "claim_against": "raw",
    "config": {"epochs": 2},
    "baselines": {"raw": {"method": "raw"}, "wide": {"config": {"hidden": 7}}, "untrained": {"train": False}},
}


@pytest.fixture
def table(monkeypatch):
    """Replace the toy's recipe file by one table."""

    def put(**changes):
        values = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
        monkeypatch.setattr(recipes, "tables", lambda _, method: {"t": values} if method == "auto" else {})

    return put


def test_a_good_recipe_has_no_complaints(table):
    table()
    assert recipes.check(DOMAIN) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed'; nearest: seeds"),
        ({"seeds": []}, "seeds = []"),
        ({"seeds": None}, "seeds is missing"),
        ({"scale": "huge"}, "scale = 'huge'"),
        ({"data": "row"}, "unknown data set 'row'; nearest: rows"),
        ({"protocol": "separate"}, "unknown gen-toy protocol 'separate'; nearest: separation"),
        ({"claim_against": "pixels"}, "unknown baseline in claim_against 'pixels'"),
        ({"config": {"hiden": 2}}, "unknown key 'hiden'; nearest: hidden"),
        ({"config": {"hidden": 0}}, "hidden = 0"),
        ({"baselines": {"raw": {"method": "rw"}}}, "unknown gen-toy method 'rw'; nearest: raw"),
        ({"baselines": {"raw": {"method": "raw", "lr": 1}}}, "baselines.raw.lr"),
        ({"baselines": {"auto": {}}, "claim_against": None}, "may not carry the method's own name"),
        ({"paper": {"value": 1.0}}, "paper.source is missing"),
    ],
)
def test_a_bad_recipe_is_named(table, changes, message):
    table(**changes)
    problems = recipes.check(DOMAIN)
    assert problems
    assert any(message in line and line.startswith("auto/t: ") for line in problems), problems


def test_arms_lay_a_baseline_of_the_same_method_over_the_recipe_and_let_others_stand_alone(table):
    table()
    _, recipe = recipes.load(DOMAIN, "auto/t")
    arms = recipes.arms(DOMAIN, recipe, {"batch_size": 8})
    assert list(arms) == ["auto", "raw", "wide", "untrained"]
    assert arms["wide"].config == {"epochs": 2, "batch_size": 8, "hidden": 7}
    assert arms["raw"].config == {}
    assert (arms["untrained"].method, arms["untrained"].train) == ("auto", False)


@pytest.mark.parametrize(
    ("target", "message"), [("aut", "nearest: auto"), ("auto/x", "recipe of auto"), ("raw", "no recipes")]
)
def test_unknown_targets(target, message):
    with pytest.raises(UsageError, match=message):
        recipes.load(DOMAIN, target)
