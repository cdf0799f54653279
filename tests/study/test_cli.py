"""What a user sees: every command explains itself, and a mistake is one line, the right exit code, no traceback."""

import time

import pytest
import yaml

COMMANDS = [
    "doctor",
    "fetch",
    "corpus",
    "params",
    "run",
    "prove",
    "tables",
    "claims",
    "fit",
    "adapt",
    "bench",
]
WORDS = "sea salt tide boat gull wave net rope".split()


@pytest.fixture
def experiment(tmp_path, made_up):
    """experiment(**settings): path of a small experiment file on made-up text and the tiny backbone."""

    def make(**settings):
        raw = {
            "name": "small",
            "backbone": "tiny",
            "corpora": [made_up],
            "regimes": ["R0", "R1"],
            "seeds": 1,
            "learning_rates": {"R1": 1e-2},
            "tokens": {"max_length": 64, "prefix_tokens": 8, "min_scored": 4},
            "clusters": {"batch_rows": 8},
            "train": {"epochs": 1},
        } | settings
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in raw.items() if v is not None}))
        return path

    return make


def refused(found, *parts, code=2):
    """The call ended with `code` and one line on stderr that holds all parts."""
    lines = [line for line in found[2].splitlines() if line.startswith("chameleon-lite:")]
    assert found[0] == code and len(lines) == 1 and "Traceback" not in found[2], found
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0 and f"chameleon-lite {name}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("backbone", "numbers"),
    [
        ("random-gpt2", ["124,439,808", "204,100", "6,786,596", "793,924", "133"]),
        ("smollm2", ["134,515,008", "198,912", "6,603,104", "133"]),
    ],
)
def test_params_derives_the_parameter_column(command, backbone, numbers):
    code, out, _ = command("params", "--backbone", backbone)
    assert code == 0
    for number in numbers:
        assert number in out.split() or number in out


def test_doctor_says_what_is_missing_and_what_to_do(command):
    code, out, _ = command("doctor")
    assert code == 0 and "chameleon-lite fetch smollm2" in out and "HF_HUB_OFFLINE" in out


def test_a_run_prints_its_table_and_a_second_one_reuses_it(command, experiment, tmp_path):
    words = (
        "run",
        experiment(),
        "--profile",
        "paper",
        "--backbone",
        "tiny",
        "--seeds",
        1,
        "--out",
        tmp_path / "r",
    )
    code, out, said = command(*words)
    assert code == 0 and "R1" in out and "seed 0" in said
    again = command(*words)
    assert again[1] == out and "seed 0" not in again[2]


def test_results_refuse_random_weights_and_smoke_runs(command, experiment, tmp_path):
    words = (
        "run",
        experiment(),
        "--backbone",
        "tiny",
        "--seeds",
        1,
        "--out",
        tmp_path / "r",
        "--results",
        tmp_path / "k",
    )
    refused(command(*words, "--profile", "paper"), "random")
    refused(command(*words, "--profile", "smoke"), "smoke")
    assert not list(tmp_path.glob("k/*"))


@pytest.mark.parametrize(
    ("settings", "words", "parts"),
    [
        ({}, ["--profile", "smok"], ["smok", "smoke"]),
        ({"regimes": ["R0", "R21"], "learning_rates": None}, [], ["R21"]),
        ({"trian": {"epochs": 1}}, [], ["trian", "train"]),
        ({"train": {"epoch": 1}}, [], ["train.epoch", "train.epochs"]),
        ({"train": {"epochs": 0}}, [], ["epochs"]),
        (
            {"tokens": {"prefix_tokens": 60, "max_length": 64, "min_scored": 8}},
            [],
            ["nothing could be scored"],
        ),
        ({}, ["--corpus", "docstring"], ["docstring", "docstrings"]),
        ({}, ["--backbone", "smolm2"], ["smolm2", "smollm2"]),
        ({"tokens": {"prefix_tokens": 600, "max_length": 900}}, [], ["prefix"]),
        ({"clusters": {"batch_rows": 5000}}, [], ["fewer than one batch"]),
    ],
)
def test_wrong_use_is_one_line_that_helps(command, experiment, tmp_path, settings, words, parts):
    use = ["--backbone", "tiny"] if "--backbone" not in words else []
    refused(command("run", experiment(**settings), "--out", tmp_path / "r", *use, *words), *parts)


def test_missing_and_malformed_files(command, tmp_path):
    refused(command("run", tmp_path / "none.yaml"), "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    refused(command("run", tmp_path / "bad.yaml"), "not valid YAML")
    refused(command("tables", "--results", tmp_path), "no records")
    refused(command("fetch", "smollm3"), "smollm2")
    (tmp_path / "rows.csv").write_text("txt,group\nhello,a\n")
    refused(command("corpus", tmp_path / "rows.csv"), "txt", "text")
    (tmp_path / "empty.jsonl").write_text("")
    assert command("corpus", tmp_path / "empty.jsonl")[0] == 2


def test_without_a_network_the_hub_is_given_up_at_once(command, experiment, tmp_path):
    for words in (
        ["--backbone", "owner/model"],
        ["--backbone", "tiny", "--corpus", "hub:owner/set"],
        ["--backbone", "tiny", "--corpus", "wikitext-2"],
    ):
        command("doctor")  # what is imported once is not waited for below
        started = time.perf_counter()
        found = command("run", experiment(), "--out", tmp_path / "r", *words)
        refused(found, code=1)
        assert time.perf_counter() - started < 20  # the hub's own retries alone take longer than this


def test_a_loss_that_is_not_finite_is_said_and_records_are_kept(command, experiment, tmp_path):
    # a rate of 100 with such a decay turns a weight w into -99 w, every step
    wild = {"epochs": 4, "weight_decay": 1.0, "rows_per_step": 8}
    path = experiment(regimes=["R0"], learning_rates={}, train=wild)
    assert command("run", path, "--backbone", "tiny", "--seeds", 1, "--out", tmp_path / "r")[0] == 0
    before = {p.name for p in (tmp_path / "r").iterdir() if p.name.startswith("R")}
    broken = experiment(regimes=["R0", "R1"], learning_rates={"R1": 100}, train=wild)
    refused(
        command("run", broken, "--backbone", "tiny", "--seeds", 1, "--out", tmp_path / "r"),
        "diverged",
        code=1,
    )
    assert before == {p.name for p in (tmp_path / "r").iterdir() if p.name.startswith("R")}
    mixed = experiment(regimes=["R0", "R1", "R3"], learning_rates={"R1": 100, "R3": 1e-2}, train=wild)
    code, out, said = command("run", mixed, "--backbone", "tiny", "--seeds", 1, "--out", tmp_path / "r")
    assert code == 0 and "R1, seed 0: the loss was not finite at epoch" in said and "diverged" in out


def test_an_interrupted_run_says_how_to_go_on(command, experiment, tmp_path, monkeypatch):
    from chameleon_study import run as line

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(line, "write_run", interrupted)
    found = command("run", experiment(), "--backbone", "tiny", "--seeds", 1, "--out", tmp_path / "r")
    refused(found, "--resume", code=130)
    assert not list((tmp_path / "r").glob("R*"))
