"""The study: its flags are known, its steps fit together, its claims are judged by their rules."""

import json
import math
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, make_rows
from forking import run_command

sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "examples" / "sun2019"))

import claims
import paper
import recipe
import sweep
from test_examples import load_example
from transformers import TrainingArguments

from bertchain.arguments import finetuning, pretraining
from bertchain.cli import make_parser
from bertchain.errors import InputError

STUDY = str(ROOT / "examples" / "sun2019" / "study.yaml")
PARSERS = {
    "run_finetune.py": make_parser((*finetuning.GROUPS, TrainingArguments)),
    "run_itpt.py": make_parser((*pretraining.GROUPS, TrainingArguments)),
}


@pytest.fixture(scope="module")
def tables():
    return load_example("sun2019/tables")


# ---------------------------------------------------------------- the steps


class Scripts:
    """Stands in for processes: sweeps run in this one, training leaves results and nothing more.

    Every flag must be known, and every model in the output folder must be there already.
    """

    def __init__(self, out: Path):
        self.out, self.ran, self.usual = out, [], subprocess.run

    def step(self, command: list[str], **options) -> subprocess.CompletedProcess:
        if command[0] == "git":
            return self.usual(command, **options)
        sys.argv = command[1:]
        sweep.main()
        return subprocess.CompletedProcess(command, 0)

    def start(self, command: list[str], log: Path, environment: dict[str, str]) -> int:
        script, flags = Path(command[1]).name, command[2:]
        given = dict(flag[2:].split("=", 1) for flag in flags if "=" in flag)
        if script in PARSERS:
            parser: ArgumentParser = PARSERS[script]
            assert not parser.parse_known_args(flags)[1]
        start, folder = given["model_name_or_path"], Path(given["output_dir"])
        assert start == "E" or (self.out in Path(start).parents and Path(start).is_dir())
        names = [*json.loads(given.get("tasks", "{}"))] if script == "run_multitask.py" else []
        if "--save_at_steps" in flags:
            names += [f"step-{n}" for n in flags[flags.index("--save_at_steps") + 1 :][:2]]
        for name in names:
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.ran.append(folder)
        score = 0.8 + len(self.ran) % 7 / 1000  # any
        names = ("test_accuracy", "test_lrap", "eval_perplexity", "eval_mean_score")
        (folder / "all_results.json").write_text(json.dumps(dict.fromkeys(names, score)))
        history = pd.DataFrame({"epoch": [0.5, 1.0], "eval_accuracy": [0.6, 0.7]})
        history.to_csv(folder / "history.csv", index=False)
        return 0


def run_study(monkeypatch, scripts, *words):
    monkeypatch.setattr(subprocess, "run", scripts.step)
    monkeypatch.setattr(sweep, "start", scripts.start)
    monkeypatch.setattr(sweep, "plot", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["recipe.py", STUDY, *words])
    recipe.main()


def test_all_steps_fit_together_and_the_page_tells_what_is_missing(
    tables, monkeypatch, tmp_path, capsys, pictures
):
    out = tmp_path / "out"
    scripts, words = Scripts(out), ["data=D", f"out={out}", "encoder=E", "seeds=2", "parallel=1"]
    run_study(monkeypatch, scripts, *words, "only=layers,rates")
    first = len(scripts.ran)
    assert first == 2 * (3 + 10 + 6) and not (out / "pretraining").exists()

    def report(*others):
        monkeypatch.setattr(sys, "argv", ["tables.py", str(out), *map(str, others)])
        tables.main()
        verdicts = pd.read_csv(out / "claims.csv").set_index("claim")["verdict"]
        return verdicts, (out / "report.html").read_text(encoding="utf-8")

    verdicts, page = report()
    assert verdicts["The last layer is the best one"] != claims.MISSING
    assert (verdicts == claims.MISSING).sum() == len(verdicts) - 5
    assert "Not run yet: long_text, decay, steps, domains" in page
    run_study(monkeypatch, scripts, *words)
    assert len(set(scripts.ran)) == len(scripts.ran)
    everything = sum(len(pd.read_csv(path)) for path in out.glob("*/*/sweep.csv"))
    fine_tuned, pretrained = 6 + 3 + 2 + 1 + 1, 2 + 3  # done for another study, by set and by text
    counts = 2 * (len(claims.SETS) + 1)  # all rows, and 2 % of IMDb; with and without ITPT
    assert len(scripts.ran) == everything - 2 * (fine_tuned + pretrained + counts)
    ran = len(scripts.ran)
    (out / "decay" / "imdb" / "step.json").unlink()  # as if it had been interrupted
    run_study(monkeypatch, scripts, *words)
    assert len(scripts.ran) == ran

    verdicts, page = report(out)
    assert "Not run yet" not in page and not (verdicts == claims.MISSING).any()
    assert page.count("<svg") == 1 + len(tables.STUDIES) and "http-equiv" in page
    assert "src=" not in page and 'href="http' not in page  # nothing is requested
    for study in tables.STUDIES:
        assert (out / f"{study}.csv").is_file() and (out / f"{study}.png").is_file()
    decay = pd.read_csv(out / "decay.csv")
    assert list(decay["paper"]) == [5.52, 5.46, 5.44, 5.58, 5.42, 5.40, 5.52, 5.65]
    long = pd.read_csv(out / "long_text.csv").set_index(["set", "point"])
    assert long.loc[("IMDb", "head + tail"), "paper"] == 5.42
    assert math.isnan(long.loc[("20 Newsgroups", "head"), "paper"])
    counts = pd.read_csv(out / "label_counts.csv").set_index(["set", "point"])
    assert len(counts) == 6 * len(claims.SETS)
    own = counts.loc["OHSUMED"]
    for point in ("100", "1000", "all"):
        change = own.loc[f"{point}, ITPT", "error"] - own.loc[point, "error"]
        assert own.loc[f"{point}, ITPT", "difference"] == pytest.approx(change)
    assert own.loc["all", "difference"] == pytest.approx(
        own.loc["all", "error"] - own.loc["100", "error"]
    )
    assert (
        "| claim |" in capsys.readouterr().out and "| verdict |" in (out / "report.md").read_text()
    )


def test_a_study_in_earnest_with_a_tiny_model(tables, tiny_bert, tmp_path):
    """Further pretraining, its kept steps fine-tuned, and the page."""
    data, out = tmp_path / "data", tmp_path / "out"
    for i, name in enumerate(("imdb", "trec", "agnews")):
        (data / name).mkdir(parents=True)
        for j, split in enumerate(("train", "dev", "test")):
            rows = pd.DataFrame(make_rows(45, seed=3 * i + j))
            rows.to_csv(data / name / f"{split}.csv{'.gz' if name == 'imdb' else ''}", index=False)
    words = [f"data={data}", f"out={out}", f"encoder={tiny_bert}", "seeds=2", "only=steps"]
    words += ["window=16", "itpt_window=16", "steps=3", "step1=1", "step2=2", "epochs_imdb=1"]
    line = [ROOT / "examples" / "recipe.py", STUDY, *words]
    done = run_command(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    again = run_command(*line, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count(": done") == 2  # both steps
    script = ROOT / "examples" / "sun2019" / "tables.py"
    done = run_command(script, out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = pd.read_csv(out / "steps.csv")
    assert steps["point"].tolist() == [0, 1, 2, 3] and (steps["seeds"] == 2).all()
    runs = pd.read_csv(out / "steps" / "imdb" / "sweep.csv")
    own = runs[runs["point"] == 3].sort_values("seed")["test_accuracy"].to_numpy()
    none = runs[runs["point"] == 0].sort_values("seed")["test_accuracy"].to_numpy()
    assert steps["error"].iloc[3] == pytest.approx(100 - 100 * own.mean())
    change = 100 * (none - own)
    assert steps["difference"].iloc[3] == pytest.approx(change.mean())
    assert steps["its ± 95 %"].iloc[3] == pytest.approx(
        12.706 * change.std(ddof=1) / 2**0.5, rel=1e-3
    )


# ---------------------------------------------------------------- the rules


def claim(**differences: list[float]) -> claims.Claim:
    return claims.Claim({}, {name: pd.Series(values) for name, values in differences.items()})


def test_verdicts_and_their_intervals_by_hand():
    assert claim(a=[-1.0, -1.2, -1.1]).verdict == claims.CONFIRMED
    assert claim(a=[1.0, 1.2, 1.1]).verdict == claims.REFUTED
    assert claim(a=[-1.0, 1.2, -0.5]).verdict == claims.OPEN
    assert claim(a=[-1.0]).verdict == claims.OPEN  # one seed has no interval
    assert claim().verdict == claims.MISSING
    sure, unsure, against = [-1.0, -1.2, -1.1], [-1.0, 1.2, -0.5], [1.0, 1.2, 1.1]
    assert claim(a=sure, b=sure).verdict == claims.CONFIRMED
    assert claim(a=sure, b=unsure).verdict == claims.OPEN
    assert claim(a=sure, b=against).verdict == claims.REFUTED
    # Student's t of 2 degrees: 4.3027 at .975; two differences: 6.2053 at .9875
    error = np.std(sure, ddof=1) / 3**0.5
    assert claim(a=sure).halves == pytest.approx([4.3027 * error], rel=1e-4)
    assert claim(a=sure, b=sure).halves == pytest.approx([6.2053 * error] * 2, rel=1e-4)
    edge = [-0.1, -0.5, -0.3]  # -.3 ± .497 alone; -.3 ± .716 as one of two
    assert claim(a=np.array(edge) * 1 - 0.3).verdict == claims.CONFIRMED
    assert claim(a=np.array(edge) * 1 - 0.3, b=sure).verdict == claims.OPEN


def errors(study: str, where: str, **points: float) -> dict:
    """Errors of three seeds around these means, the same noise for all points: exact pairs."""
    noise = np.array([0.0, 0.3, -0.3])
    table = pd.DataFrame({name: mean + noise for name, mean in points.items()}, index=[1, 2, 3])
    table += np.array([[0.0, 0.01, -0.01]]).T * np.arange(len(points))  # intervals have a width
    return {(study, where): table}


def verdicts(found: dict, larger: dict | None = None) -> dict[str, str]:
    by_name = [*claims.read_arguments(str(ROOT / "examples/sun2019/claims.yaml"))]
    judged = claims.all_claims(found, larger or {})
    told = {n: c.verdict for n, c in zip(by_name, judged, strict=True)}
    return {name: verdict for name, verdict in told.items() if verdict != claims.MISSING}


def both_ways(tables: list[dict], turned: list[dict], expected: set[str]) -> None:
    """The first tables confirm these claims, the second refute them, and neither says more."""
    merged = [{k: v for table in side for k, v in table.items()} for side in (tables, turned)]
    assert verdicts(merged[0]) == dict.fromkeys(expected, claims.CONFIRMED)
    assert verdicts(merged[1]) == dict.fromkeys(expected, claims.REFUTED)


def test_claims_on_fine_tuning_both_ways():
    ways = {"head": 22, "tail": 21, "hierarchical, mean": 23}
    for where in ("imdb", "20news"):
        both_ways(
            [errors("long_text", where, **ways, **{"head + tail": 19})],
            [errors("long_text", where, **ways, **{"head + tail": 21.8})],  # worse than one
            {f"cut_{where}"},
        )
    last = {"last alone": 20, "last, concat": 19.5, "last, mean": 20, "last, max": 20.2}
    first = {f"first, {how}": 25 for how in ("concat", "mean", "max")}
    better = last | {"last, concat": 18.5}
    both_ways(
        [errors("layers", "joined", **last, **first)],
        [errors("layers", "joined", **better, **first | {"first, max": 19})],
        {"upper_layers", "joined_layers"},
    )
    both_ways(
        [errors("layers", "single", **{"layers 1": 25, "layers 2": 20})],
        [errors("layers", "single", **{"layers 1": 19, "layers 2": 20})],
        {"last_layer"},
    )
    rates = {"learning_rate 4e-4": 20, "learning_rate 2e-5": 30, "learning_rate 1e-3": 22}
    both_ways(
        [errors("rates", "imdb", **rates, **{"learning_rate 8e-3": 49})],
        [errors("rates", "imdb", **rates, **{"learning_rate 8e-3": 19})],
        {"low_rate", "failing_rate"},
    )
    grid = [f"learning_rate {r}, layer_lr_decay {d}" for r in (5, 4) for d in (1.0, 0.9, 0.8, 0.7)]
    good = (21, 20.5, 20.6, 22, 21, 20, 20.5, 22)
    both_ways(
        [errors("decay", "imdb", **dict(zip(grid, good, strict=True)))],
        [errors("decay", "imdb", **dict(zip(grid, (20, 22, 20, 20, 20, 21, 20, 20), strict=True)))],
        {"mild_decay", "strong_decay", "best_decay"},
    )


TEXTS = ("none", "imdb", "all sentiment", "trec", "agnews", "20news", "all topic", "ohsumed", "all")


def domain(where: str, own: float, broader: float, foreign: float, everything: float) -> dict:
    """Errors on a set by text; 20 without further pretraining."""
    found = dict.fromkeys(TEXTS, foreign) | {"none": 20, "all": everything}
    kin = next(kin for kin in claims.DOMAINS if where in kin)
    found |= dict.fromkeys(kin, own)
    found |= {claims.BROADER[where]: broader} if where in claims.BROADER else {}
    return errors("domains", where, **found)


def test_claims_on_further_pretraining_both_ways():
    both_ways(
        [errors("steps", "imdb", **{"0": 20, "150": 19, "600": 18})],
        [errors("steps", "imdb", **{"0": 20, "150": 20.4, "600": 21})],
        {"within_task", "more_steps"},
    )
    expected = {"any_text", "in_domain", "all_text", "foreign_text", "three_kinds", "narrower_text"}
    both_ways(
        [domain(where, 18, 17, 19, 19.5) for where in claims.SETS if where != "trec"],
        [domain(where, 20.8, 21.5, 20.5, 18) for where in claims.SETS if where != "trec"],
        expected,
    )
    expected = (expected - {"in_domain"}) | {"trec_harm"}  # there is no more text of its domain
    found = verdicts(domain("trec", 22, 22, 19, 19.5)), verdicts(domain("trec", 18, 18, 19, 18))
    assert found[0]["trec_harm"] == claims.CONFIRMED and found[1]["trec_harm"] == claims.REFUTED
    assert {*found[0]} == {*found[1]} == expected
    both_ways(
        [errors("features", w, **{"fine-tuned": 20, "features": 25}) for w in ("imdb", "trec")],
        [errors("features", w, **{"fine-tuned": 25, "features": 20}) for w in ("imdb", "trec")],
        {"fine_tuned"},
    )


def test_claims_on_tasks_rows_and_size_both_ways():
    names = ("alone", "together first", "all text, alone", "all text, together first")
    good, bad = (20, 19, 18, 17.5), (20, 21, 22, 19)
    both_ways(
        [errors("multitask", w, **dict(zip(names, good, strict=True))) for w in ("imdb", "agnews")],
        [errors("multitask", w, **dict(zip(names, bad, strict=True))) for w in ("imdb", "agnews")],
        {"together_first", "together_after_all", "together_or_text"},
    )
    shares = ("0.4 %", "0.4 %, ITPT", "100 %", "100 %, ITPT")
    both_ways(
        [errors("few_rows", "imdb", **dict(zip(shares, (40, 30, 20, 19), strict=True)))],
        [errors("few_rows", "imdb", **dict(zip(shares, (40, 41, 20, 19), strict=True)))],
        {"few_rows", "fewer_rows"},
    )
    small = errors("steps", "imdb", **{"0": 20, "600": 17})
    gains = errors("steps", "imdb", **{"0": 18, "600": 16})
    loses = errors("steps", "imdb", **{"0": 15, "600": 16})
    for larger, verdict in ((gains, claims.CONFIRMED), (loses, claims.REFUTED)):
        found = verdicts({**small, ("steps", "x"): small["steps", "imdb"]}, larger)
        assert found["larger_gains"] == found["smaller_wins"] == verdict


def test_means_over_sets_take_the_seeds_that_all_have():
    one, other = pd.Series([1.0, 2.0, 3.0], [1, 2, 3]), pd.Series([5.0, 7.0], [2, 3])
    (mean,) = claims.mean_over_sets({"imdb": {"": one}, "trec": {"": other}, "agnews": {}}).values()
    assert mean.to_dict() == {2: 3.5, 3: 5.0}


def test_the_papers_figures():
    """Between its tables they agree; where a row of ours is its own, it is taken from there."""
    five = paper.TABLES["Table 5: further pretraining by text (rows) and task (columns)"]
    five = five.set_index("text")
    six = paper.TABLES["Table 6: features, fine-tuning, further pretraining"].set_index("model")
    assert six.loc["BERT-FiT", "IMDb"] == five.loc["w/o pretrain", "IMDb"] == 5.40
    assert six.loc["BERT-CDPT-FiT", "TREC"] == five.loc["all", "TREC"]
    assert six.loc["BERT-IDPT-FiT", "TREC"] == five.loc["all question", "TREC"]
    columns = {"imdb": "IMDb", "trec": "TREC", "agnews": "AG's News"}
    rows = {"none": "w/o pretrain", "imdb": "IMDb", "trec": "TREC", "agnews": "AG's News"}
    for where, column in columns.items():
        for point, error in paper.SAME["domains", where].items():
            assert error == five.loc[rows.get(point, point), column]
    assert paper.errors_of("layers", "single", ["layers 1", "layers 2"]) == [11.07, 5.42]
    twelve = [f"layers {n}" for n in range(1, 13)]
    assert paper.errors_of("layers", "single", twelve) == list(paper.SINGLE_LAYERS)
    assert paper.errors_of("steps", "imdb", ["0", "1", "2"])[::2] == [5.40, 4.37]


def test_what_cannot_be_reported_is_one_line(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
    with pytest.raises(InputError, match="run study"):
        tables.main()
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    with pytest.raises(InputError, match="give the folder"):
        tables.main()
    with pytest.raises(InputError, match=r"only=layer: .* not layer \(did you mean layers"):
        recipe.read_steps([STUDY, "only=layer"])
