"""Whatever is written into an experiment's file: settings, or one line that names the file and the key."""

import json
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_lite.errors import UserError
from chameleon_study.config import Experiment, experiment_from, load_experiment
from chameleon_study.run import expected_names

GOOD = """
name: small
backbone: tiny
corpora: [made.jsonl]
regimes: [R0, R1, R4]
"""
BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 20)}]\n" for i in range(1, 30))
BAD = {
    "UTF-16": (GOOD.encode("utf-16"), "UTF-8"),
    "latin-1": (GOOD.encode() + "what: é".encode("latin-1"), "UTF-8"),
    "NUL": (GOOD.encode() + b"what: a\0b", "YAML"),
    "NUL by an escape": (GOOD + 'what: "a\\0b"', "what"),
    "lone surrogate": (GOOD + 'what: "\\ud800"', "what"),
    "a list": ("[1, 2]", "mapping"),
    "empty": ("", "mapping"),
    "only a BOM": (b"\xef\xbb\xbf", "mapping"),
    "a number as key": (GOOD + "1: 2", "key 1"),
    "true as key": (GOOD + "train: {true: 2}", "train: the key True"),
    "a date as key": (GOOD + "data: {2020-01-01: 2}", "data: the key"),
    "nothing as key": (GOOD + "tokens: {~: 2}", "tokens: the key None"),
    "profiles a list": (GOOD + "profiles: [smoke]", "profiles"),
    "profiles a text": (GOOD + "profiles: smoke", "profiles"),
    "profiles null": (GOOD + "profiles: ~", "profiles"),
    "profile null": (GOOD + "profiles: {smoke: ~}", "profiles"),
    "profile a list": (GOOD + "profiles: {smoke: [a]}", "profiles"),
    "profile of no name": (GOOD + "profiles: {'': {}}", "profile"),
    "unknown profile": (GOOD + "profiles: {smoek: {}}", "smoke"),
    "alias of itself": (GOOD + "train: &t {epochs: *t}", "train"),
    "list in itself": (GOOD + "probes: &p {corpora: [*p]}", "probes"),
    "merge of itself": (GOOD + "a: &a {<<: *a, b: [*a, *a]}", "a"),
    "aliases of aliases": (GOOD + "a0: &a0 [x]\n" + BOMB + "what: *a29", "a0"),
    "5,000 brackets": (GOOD + "what: " + "[" * 5_000 + "]" * 5_000, "YAML"),
    "9 mappings": (GOOD + "what: " + "{a: " * 9 + "1" + "}" * 9, "what"),
    "integer of 5,000 digits": (GOOD + "seeds: " + "9" * 5_000, "YAML"),
    "month 99": (GOOD + "what: 2020-99-01", "YAML"),
    "a class of Python": (GOOD + "what: !!python/object/apply:os.system [true]", "YAML"),
    "true as seeds": (GOOD + "seeds: true", "seeds"),
    "true as epochs": (GOOD + "train: {epochs: true}", "train.epochs"),
    "true as a rate": (GOOD + "learning_rates: {R1: true}", "learning_rates"),
    "true in the grid": (GOOD + "sweep: {grid: [true]}", "sweep.grid"),
    "no as a regime": (GOOD.replace("R0", "no"), "regimes"),
    "rate nan": (GOOD + "learning_rates: {R1: .nan}", "learning_rates.R1"),
    "rate inf": (GOOD + "learning_rates: {R1: .inf}", "learning_rates.R1"),
    "rate inf as text": (GOOD + "learning_rates: {R1: 'inf'}", "learning_rates.R1"),
    "rate negative": (GOOD + "learning_rates: {R1: -1}", "learning_rates.R1"),
    "rate 0": (GOOD + "learning_rates: {R1: 0}", "learning_rates.R1"),
    "grid nan": (GOOD + "sweep: {grid: [1.0e-3, .nan]}", "sweep.grid"),
    "grid negative": (GOOD + "sweep: {grid: [-1.0e-3]}", "sweep.grid"),
    "grid empty": (GOOD + "sweep: {grid: []}", "sweep.grid"),
    "decay inf": (GOOD + "train: {weight_decay: .inf}", "train.weight_decay"),
    "decay -inf": (GOOD + "train: {weight_decay: -.inf}", "train.weight_decay"),
    "share 5": (GOOD + "probes: {foreign_shares: [0.5, 5]}", "probes.foreign_shares"),
    "share -0.1": (GOOD + "probes: {foreign_shares: [-0.1]}", "probes.foreign_shares"),
    "held out 1.5": (GOOD + "protocol: {held_out: 1.5}", "protocol.held_out"),
    "seeds 0": (GOOD + "seeds: 0", "seeds"),
    "seeds as many as the sweep's numbers": (GOOD + "seeds: 1001", "seeds"),
    "seeds 1.5": (GOOD + "seeds: 1.5", "seeds"),
    "subset seed -1": (GOOD + "data: {subset_seed: -1}", "data.subset_seed"),
    "subset seed 2**32": (GOOD + "data: {subset_seed: 4294967296}", "data.subset_seed"),
    "no corpus": (GOOD.replace("[made.jsonl]", "[]"), "corpora"),
    "a corpus twice": (GOOD.replace("[made.jsonl]", "[a, b, a]"), "'a' twice"),
    "a regime twice": (GOOD.replace("R4", "R1"), "'R1' twice"),
    "a rate twice": (GOOD + "sweep: {grid: [1.0e-3, 1.0000001e-3]}\n", "sweep.grid names '0.001' twice"),
    "an unknown regime": (GOOD.replace("R4", "R44"), "did you mean 'R4'"),
    "an unknown regime of a probe": (GOOD + "probes: {foreign_regimes: [R99]}", "R99"),
    "a long name": (GOOD.replace("small", "s" * 300), "name"),
    "a name with a path": (GOOD.replace("small", "../small"), "name"),
    "an unknown switch": (GOOD + "protocol: {preset: as_released, switches: {objektive: last}}", "objektive"),
    "an unknown stop": (GOOD + "protocol: {preset: as_released, mend: [batchez]}", "batchez"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named_with_its_file_and_key(name, tmp_path):
    content, key = BAD[name]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        expected_names(load_experiment(path))
    line = str(caught.value)
    assert key in line and "\n" not in line and caught.value.exit_code == 2
    assert "switch" in name or "stop" in name or "bad.yaml" in line


def test_aliases_and_a_byte_order_mark_are_no_fault(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_bytes(
        b"\xef\xbb\xbf" + (GOOD + "tokens: &t {max_length: 64}\nprofiles: {paper: {tokens: *t}}").encode()
    )
    assert load_experiment(path, "paper").tokens.max_length == 64


def test_the_command_line_says_one_line(tmp_path, monkeypatch, capsys):
    from chameleon_lite.app import cli

    (tmp_path / "bad.yaml").write_text(GOOD + "seeds: .nan")
    monkeypatch.setattr(sys, "argv", ["chameleon-lite", "run", str(tmp_path / "bad.yaml")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "bad.yaml: experiment small: seeds: " in said and "Traceback" not in said


KEYS = [
    *Experiment.model_fields,
    "profiles",
    "epochs",
    "grid",
    "generate",
    "R1",
    "smoke",
    "switches",
    "rows",
    "x",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(
        ["R0", "R1", "R4", "smoke", "as_released", "tiny", "auto", "inf", "1e999", "9" * 400, "\ud800"]
    ),
    st.text(max_size=5),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
)
FIELDS = {
    name: {key: VALUES for key in field.annotation.model_fields}
    if hasattr(field.annotation, "model_fields")
    else None
    for name, field in Experiment.model_fields.items()
}
OVER = st.fixed_dictionaries(
    {},
    optional={k: st.fixed_dictionaries({}, optional=v) | VALUES if v else VALUES for k, v in FIELDS.items()}
    | {"profiles": VALUES, "x": VALUES},
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(OVER, st.sampled_from(["smoke", "colab", "paper", "else"]))
def test_any_settings_are_an_experiment_with_runs_or_refused(over, profile):
    try:
        made = experiment_from(yaml.safe_load(GOOD) | over, profile)
        names = expected_names(made)
    except UserError as error:
        assert str(error).strip()
        return
    assert (
        names and len(set(names)) == len(names) and json.dumps(made.model_dump(mode="json"), allow_nan=False)
    )
    assert all(len(name.encode()) < 240 and "/" not in name and name.isprintable() for name in names)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*a!|>'\" \n~1.#%@`?", max_size=60).map(str.encode))
def test_any_bytes_are_settings_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(GOOD.encode() + text)
    try:
        assert expected_names(load_experiment(path, "paper"))
    except UserError as error:
        assert str(error).strip()
