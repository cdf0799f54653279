"""Files of runs and sweeps that are not what was written, and runs of other texts or another backbone."""

import json
import shutil
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_lite.app.own_texts import read_jsonl, write_jsonl
from chameleon_lite.backbone import load_backbone
from chameleon_lite.errors import DamagedFile, UserError
from chameleon_study.corpora import docstrings, load_corpus
from chameleon_study.provenance import placeless
from chameleon_study.records import file_part, pack, read_run
from chameleon_study.run import run_experiment

# what equal settings and seed must reproduce bit for bit
measured = attrgetter("metrics", "curve", "learning_rate")

SWEEP = {"learning_rates": {}, "sweep": {"grid": [1e-3, 1e-2], "seeds": 1, "extend": 0}}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "a page of zeros": lambda content: content[:100] + bytes(200) + content[300:],
    "one bit": flipped,
    "longer": lambda content: content + b"{}",
    "other JSON": lambda content: b'{"name": "R0"}',
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, made_up, swept):
    """A folder of runs and their records."""
    from chameleon_study.config import experiment_from

    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAMELEON_LITE_HOME", str(folder / "home"))
        made = experiment_from(swept | {"corpora": [made_up]}, "paper")
        return made, folder / "runs", run_experiment(made, runs=folder / "runs")


@pytest.fixture
def copied(whole, tmp_path, monkeypatch):
    """A copy of the folder, the records, and again(): runs the experiment and returns what it said."""
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(whole[1].parent / "home"))
    made, folder, records = whole
    runs = shutil.copytree(folder, tmp_path / "runs")

    def again():
        said = []
        found = run_experiment(made, runs=runs, say=said.append)
        assert [measured(r) for r in found] == [measured(r) for r in records]
        assert [r.learning_rate_trials for r in found] == [r.learning_rate_trials for r in records]
        return "\n".join(said)

    return runs, records, again


def test_what_is_whole_is_used(copied):
    assert copied[2]() == ""


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["record.json", "documents.parquet"])
def test_a_damaged_run_is_named_and_made_again(copied, file, damage):
    runs, records, again = copied
    path = runs / records[1].name / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DamagedFile, match="damaged"):
        pack("small", [r.name for r in records], runs, runs / "results")
    said = again()
    assert f"{records[1].name} is damaged or incomplete: it is made again" in said
    assert records[0].name not in said and again() == ""


def test_a_run_that_is_a_file_or_has_lost_one_is_made_again(copied):
    runs, records, again = copied
    (runs / records[0].name / "documents.parquet").unlink()
    shutil.rmtree(runs / records[1].name)
    (runs / records[1].name).write_text("")
    assert again().count("it is made again") == 2 and again() == ""


def test_a_run_of_before_checksums_is_made_again(copied):
    runs, records, again = copied
    path = runs / records[0].name / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in ("seal", "documents")}))
    assert "made again" in again()


def test_the_record_of_another_run_is_not_this_ones(copied):
    runs, records, again = copied
    zero, one = (runs / r.name for r in records)
    shutil.rmtree(one)
    shutil.copytree(zero, one)
    assert f"holds another run's record, that of {records[0].name}" in again()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_loss_of_a_sweep_is_named_and_measured_again(copied, damage):
    runs, records, again = copied
    shutil.rmtree(runs / records[1].name)
    path = sorted((runs / "sweeps").glob("*.json"))[0]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert f"{path} is damaged" in again()


def test_the_loss_of_another_rate_is_not_this_ones(copied):
    runs, records, again = copied
    shutil.rmtree(runs / records[1].name)
    one, other = sorted((runs / "sweeps").glob("*.json"))
    shutil.copy(one, other)
    assert f"{other} is a copy of {one.name}: it is measured again" in again()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["record.json", "documents.parquet"]), st.data())
def test_any_change_of_a_file_is_seen(whole, tmp_path_factory, file, data):
    _, runs, records = whole
    folder = tmp_path_factory.mktemp("any")
    run = Path(shutil.copytree(runs / records[1].name, folder / records[1].name))
    content = (run / file).read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 20)))
    (run / file).write_bytes(content[:start] + data.draw(st.binary(max_size=20)) + content[stop:])
    try:
        assert read_run(folder, run.name) == records[1]
    except DamagedFile:
        assert (run / file).read_bytes() != content


def test_seeds_of_other_texts_are_not_mixed(small, made_up, tmp_path):
    path = Path(shutil.copy(made_up, tmp_path / "texts.jsonl"))
    first = run_experiment(small(["R0"], corpora=[str(path)]), runs=tmp_path / "runs")
    corpus = read_jsonl(path)
    fewer = {name: part[:-8] for name, part in corpus.splits.items()}
    write_jsonl(replace(corpus, splits=fewer), path)
    said = []
    both = run_experiment(small(["R0"], 2, corpora=[str(path)]), runs=tmp_path / "runs", say=said.append)
    assert "texts or backbone are others than in 1 runs" in "\n".join(said)
    assert len({r.data["hash"] for r in both}) == 1 and both[0].data["hash"] != first[0].data["hash"]
    said.clear()
    assert (
        run_experiment(small(["R0"], 2, corpora=[str(path)]), runs=tmp_path / "runs", say=said.append) == both
    )
    assert not said


def test_where_nothing_is_left_to_do_no_worker_is_waited_for(small, tmp_path):
    first = run_experiment(small(["R0"]), runs=tmp_path / "runs")
    assert run_experiment(small(["R0"]), runs=tmp_path / "runs", dask="tcp://127.0.0.1:9") == first


def test_readings_of_another_corpus_are_not_mixed(small, made_up, tmp_path):
    path = Path(shutil.copy(made_up, tmp_path / "other.jsonl"))
    made = small(["R0"], probes={"corpora": [str(path)]})
    (first,) = run_experiment(made, runs=tmp_path / "runs")
    assert run_experiment(made, runs=tmp_path / "runs", say=pytest.fail)
    corpus = read_jsonl(path)
    test = tuple(replace(d, text=d.text[::-1]) for d in corpus.splits["test"])
    write_jsonl(replace(corpus, splits=corpus.splits | {"test": test}), path)
    (again,) = run_experiment(made, runs=tmp_path / "runs")
    reading = f"transfer:{placeless(str(path))}_nll"
    assert again.metrics[reading] != first.metrics[reading]
    assert again.metrics["test_nll"] == first.metrics["test_nll"]


def test_seeds_of_another_backbone_are_not_mixed(small, tmp_path):
    folder, tiny = tmp_path / "model", load_backbone("tiny")
    tiny.lm.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    run_experiment(small(["R0"], backbone=str(folder)), runs=tmp_path / "runs")
    tiny.lm.get_output_embeddings().weight.data *= 1.5
    tiny.lm.save_pretrained(folder)
    said = []
    both = run_experiment(small(["R0"], 2, backbone=str(folder)), runs=tmp_path / "runs", say=said.append)
    assert (
        "are others than in 1 runs" in "\n".join(said) and len({r.data["backbone_hash"] for r in both}) == 1
    )


@pytest.mark.parametrize("name", ["x/../../../y", "/../../../y", "..", "a\\b", "a\0b", "n" * 300, ""])
def test_a_name_in_a_file_is_no_path(name, small, made_up, tmp_path):
    header, *lines = Path(made_up).read_text().splitlines()
    path = tmp_path / "evil" / "texts.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join([json.dumps(json.loads(header) | {"name": name}), *lines]) + "\n")
    with pytest.raises(UserError, match="name"):
        run_experiment(small(["R0", "R1"], corpora=[str(path)], **SWEEP), runs=tmp_path / "runs")
    assert {p.name for p in tmp_path.iterdir()} <= {"evil", "runs", "home"} and not list(
        tmp_path.rglob("*y*")
    )


def test_a_long_path_of_a_corpus_gives_a_short_name_of_a_run(small, made_up, tmp_path):
    folder = tmp_path / ("long" * 30) / ("läng" * 30)
    folder.mkdir(parents=True)
    made = small(["R0", "R1"], corpora=[shutil.copy(made_up, folder)], **SWEEP)
    records = run_experiment(made, runs=tmp_path / "runs")
    assert all(len(r.name.encode()) < 200 and (tmp_path / "runs" / r.name).is_dir() for r in records)
    with pytest.raises(UserError, match="too long"):
        load_corpus("t" * 300 + ".jsonl")
    assert file_part("owner/name") == "owner_name" and file_part("a\nb") == "a_b"
    assert file_part("x" * 91) != file_part("x" * 92) and len(file_part("ü" * 300).encode()) <= 90


def test_where_nothing_can_be_written_nothing_is_trained(small, made_up, tmp_path, monkeypatch):
    monkeypatch.setattr("chameleon_study.run.work", lambda *_: pytest.fail("trained, and only then refused"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file") as caught:
        run_experiment(small(["R0"]), runs=tmp_path / "file")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="cannot write"):
        run_experiment(small(["R0"]), runs=tmp_path / "file" / "runs")
    with pytest.raises(UserError, match="no folder at"):
        run_experiment(small(["R0"]), runs=tmp_path / "runs", data_dir=tmp_path / "absent")


@pytest.fixture(scope="module")
def of_one_library():
    return docstrings.build(libs=("typer",))


@pytest.mark.parametrize("damage", [*DAMAGE, "another source"])
def test_a_damaged_corpus_of_the_cache_is_named_and_built_again(
    damage, of_one_library, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path))
    builds = []
    monkeypatch.setattr(docstrings, "build", lambda form, seed: builds.append(form) or of_one_library)
    built = load_corpus("docstrings")
    (path,) = (tmp_path / "corpora").glob("docstrings-*.jsonl")
    content = path.read_bytes()
    damaged = DAMAGE.get(damage, lambda content: content.replace(b"docstrings of", b"docstrings or"))
    path.write_bytes(damaged(content))
    assert load_corpus("docstrings") == built and path.read_bytes() == content and len(builds) == 2
    assert path.name in capsys.readouterr().err
