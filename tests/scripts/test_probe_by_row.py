"""Predictions, weights, features and scores by class of probes: each from the others, by numpy."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import short_networks
from safetensors.numpy import load_file, save_file
from scipy.special import expit, softmax
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import run_probe

AT = ["model", "layer", "token_pooling", "probe"]


@pytest.fixture(scope="module")
def moved(tmp_path_factory, four_blocks):
    """The tiny model, its weights moved a little."""
    folder = tmp_path_factory.mktemp("moved") / "model"
    shutil.copytree(four_blocks, folder)
    rng, path = np.random.default_rng(0), folder / "model.safetensors"
    weights = {name: w + 0.1 * rng.normal(size=w.shape) for name, w in load_file(path).items()}
    save_file({name: w.astype(np.float32) for name, w in weights.items()}, path, {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def probed(tmp_path_factory, four_blocks, moved, topic_files):
    """A run of two models and all probes, its folder and what it returned."""
    out = tmp_path_factory.mktemp("by_row") / "o"
    arguments = {
        "models": [f"base={four_blocks}", f"moved/a_b={moved}"],
        "train_file": topic_files["train"],
        "test_file": topic_files["test_labels"],
        "id_column_name": "id",
        "probes": ["linear", "knn", "mlp", "mix"],
        "probe_layers": [0, -1],
        "mlp_widths": [8],
        "mlp_repeats": 2,
        "save_weights": True,
        "output_dir": str(out),
    }
    with short_networks():
        return out, run_probe.main(arguments)


def by_probe(table):
    """Rows of each probe; one of no layer or pooling has empty cells there."""
    return dict(list(table.groupby(AT, sort=False)))


def read(path):
    """Read a table; layers are whole numbers, or empty."""
    table = pd.read_csv(path, keep_default_na=False)
    for name in {"layer", "other_layer"} & {*table}:
        layers = [int(float(value)) if value != "" else "" for value in table[name]]
        table[name] = pd.Series(layers, dtype=object)
    return table


def test_predictions_by_id_give_the_scores(probed, topic_files):
    out, result = probed
    truth = pd.read_csv(topic_files["test_labels"])
    found = by_probe(read(out / "predictions_test.csv"))
    scores = read(out / "results.csv")
    scores = scores[(scores["metric"] == "accuracy") & (scores["split"] == "test")]
    scores = scores.set_index(AT)["value"]
    for at, rows in found.items():
        assert list(rows["id"]) == list(truth["id"]) and list(rows["label"]) == list(truth["label"])
        likeliest = rows.filter(like="prob_").idxmax(axis=1).str.removeprefix("prob_")
        assert list(likeliest) == list(rows["prediction"])
        if at[-1] != "mlp":  # whose score is the mean of two starts
            assert (rows["prediction"] == rows["label"]).mean() == pytest.approx(scores[at])
    assert {*found} == chosen(out)
    tables = result.predictions
    assert set(tables) == {"validation", "test"} and len(tables["test"]) == 45 * len(found)
    assert {"headline", "classes", "confusion", "comparisons", "rows"} <= set(result.tables)


def chosen(out):
    """What the headline names: the best on validation of each kind of probe, and of last layers."""
    scores = read(out / "results.csv")
    scores = scores[(scores["metric"] == "accuracy") & (scores["split"] == "validation")]
    scores = scores[~scores["probe"].str.startswith("mlp ")]  # each pair of widths: scores alone
    found = []
    for (_, probe), rows in scores.groupby(["model", "probe"], sort=False):
        found.append(rows.loc[rows["value"].idxmax()])
        if probe in ("linear", "knn", "mlp"):
            last = rows[rows["layer"] == 4]
            found.append(last.loc[last["value"].idxmax()])
    return {tuple(row[AT]) for row in found}


def test_weights_on_stored_features_give_the_predictions(probed):
    out, _ = probed
    index, rows = read(out / "features" / "index.csv"), read(out / "rows.csv")
    assert list(index["poolings"].unique()) == ["cls mean"] and len(index) == 2 * 3
    weights = np.load(out / "probe_weights.npz")
    checked = []
    for split in ("validation", "test"):
        of_split = rows[rows["split"] == split]
        assert list(of_split["row"]) == list(range(len(of_split)))
        for at, table in by_probe(read(out / f"predictions_{split}.csv")).items():
            model, layer, pooling, probe = at
            if probe in ("majority", "tf-idf", "knn"):
                continue
            (name,) = index[(index["model"] == model) & (index["split"] == split)]["hash"]
            stored = np.load(out / "features" / f"{name}.npy", mmap_mode="r")
            place = f"{model}/{layer}/{pooling}/{probe}".replace("//", "/")
            own = {name.removeprefix(f"{place}/"): weights[name] for name in weights
                   if name.startswith(f"{place}/")}  # fmt: skip
            x = stored[:, :, ["cls", "mean"].index(pooling)].astype(np.float64)
            if probe == "mlp":
                x = x[:, layer]
                for k in (1, 2):
                    x = np.maximum(0, x @ own[f"weight_{k}"].T + own[f"bias_{k}"])
                logits = x @ own["weight_3"].T + own["bias_3"]
            elif probe == "mix":
                logits = np.einsum("nld,old->no", x, own["weight"]) + own["bias"]
            else:
                logits = x[:, layer] @ own["weight"].T + own["bias"]
            expected = table.filter(like="prob_").to_numpy()
            np.testing.assert_allclose(softmax(logits, axis=1), expected, atol=1e-4)
            assert list(table["id"]) == list(of_split["id"])
            checked.append((model, probe))
    assert len(set(checked)) == 2 * 3


def test_scores_by_class_are_those_of_the_predictions(probed):
    out, _ = probed
    classes, confusion = (by_probe(read(out / f"{name}.csv")) for name in ("classes", "confusion"))
    names = ["animals", "moods", "places"]
    for split in ("validation", "test"):
        found = by_probe(read(out / f"predictions_{split}.csv"))
        for at, rows in found.items():
            own = classes[at][classes[at]["split"] == split]
            given = precision_recall_fscore_support(
                rows["label"], rows["prediction"], labels=names, zero_division=0
            )
            assert list(own["class"]) == names
            for column, values in zip(("precision", "recall", "f1", "rows"), given, strict=True):
                np.testing.assert_allclose(own[column], values)
            own = confusion[at][confusion[at]["split"] == split]
            counts = own.pivot(index="true", columns="predicted", values="rows")
            counts = counts.reindex(index=names, columns=names).fillna(0)
            given = confusion_matrix(rows["label"], rows["prediction"], labels=names)
            np.testing.assert_array_equal(counts, given)
            shares = own.groupby("true")["share of the true class"].sum()
            np.testing.assert_allclose(shares, 1)
    assert classes.keys() == found.keys()


def test_gains_of_every_kind_of_probe_are_corrected_over_layers(probed):
    out, _ = probed
    gains = read(out / "gains.csv")
    assert dict(gains["probe"].value_counts()) == {"linear": 4, "knn": 4, "mlp": 4, "mix": 2}
    scores = read(out / "results.csv")
    scores = scores[(scores["metric"] == "accuracy") & (scores["split"] == "test")]
    scores = scores.set_index(AT)["value"]
    for row in gains.to_dict("records"):
        at = row["layer"], row["token pooling"], row["probe"]
        gain = scores[("moved/a_b", *at)] - scores[("base", *at)]
        assert row["test accuracy against base"] == pytest.approx(gain)
    for _, rows in gains.groupby("probe"):
        p = sorted(rows["p"])
        worst = np.maximum.accumulate([v * (len(p) - k) for k, v in enumerate(p)])
        np.testing.assert_allclose(sorted(rows["p, Holm"]), np.minimum(1, worst))
    report = (out / "report.md").read_text()
    for probe in ("linear", "knn", "mlp", "mix"):
        assert f"moved/a\\_b, {probe}: " in report or f"moved/a_b, {probe}: " in report
    assert "numpy.load" in report and "rows.csv" in report and "## Scores by class" in report
    pairs = dict(read(out / "layer_comparisons.csv")["probe"].value_counts())
    assert pairs == {"linear": 2 * 6, "knn": 2 * 6, "mlp": 2 * 6, "mix": 2}


def test_tables_for_latex_hold_what_the_page_shows(probed):
    out, _ = probed
    for name in ("headline", "layers", "gains", "drift", "comparisons", "classes", "probed"):
        text = (out / "latex" / f"{name}.tex").read_text()
        assert text.startswith("\\begin{tabular}{") and "\\toprule" in text
    lines = (out / "latex" / "gains.tex").read_text().splitlines()
    rows = [line for line in lines if line.endswith("\\\\")]
    gains = read(out / "gains.csv")
    assert len(rows) == 1 + len(gains) and rows[1].startswith("moved/a\\_b & linear & 0 & cls & ")
    assert "$\\pm$ 95 \\%" in rows[0]


@pytest.mark.parametrize("problem_type", ["multi_label", "regression"])
def test_several_labels_or_numbers_and_rows_without(
    problem_type, four_blocks, topic_files, tmp_path
):
    frame = pd.read_csv(topic_files["train"])
    length = frame["text"].str.split().str.len()
    if problem_type == "multi_label":
        frame["label"] += np.where(length > 7, "|long", "|short")
        more = {"label_delimiter": "|"}
    else:
        frame["one"], frame["two"] = length + 0.5, -3.0 * length
        more = {"label_column_name": ["one", "two"]}
    frame.to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / "o"
    arguments = {
        "models": [f"base={four_blocks}"],
        "train_file": str(tmp_path / "rows.csv"),
        "test_file": topic_files["test"],
        "id_column_name": "id",
        "token_pooling": ["mean"],
        "probes": ["linear", "mlp", "mix"],
        "probe_layers": [2, 3],
        "mlp_widths": [8],
        "mlp_repeats": 1,
        "save_predictions": "all",
        "save_weights": True,
        "output_dir": str(out),
    }
    with short_networks():
        run_probe.main(arguments | more)
    tables = {split: read(out / f"predictions_{split}.csv") for split in ("validation", "test")}
    probes = {split: by_probe(table) for split, table in tables.items()}
    assert len(probes["test"]) == 2 + 2 + 1  # baselines are of labelled rows
    assert len(probes["validation"]) == 2 + 2 + 1 + 2
    labels = {"label"} if problem_type == "multi_label" else {"label_one", "label_two"}
    assert labels <= set(tables["validation"]) and not labels & set(tables["test"])
    for rows in probes["test"].values():
        assert list(rows["id"]) == list(pd.read_csv(topic_files["test"])["id"])
    index, weights = read(out / "features" / "index.csv"), np.load(out / "probe_weights.npz")
    (name,) = index[index["split"] == "test"]["hash"]
    x = np.load(out / "features" / f"{name}.npy").astype(np.float64)[:, :, 0]
    values = {
        "linear": x[:, 3] @ weights["base/3/mean/linear/weight"].T
        + weights["base/3/mean/linear/bias"],
        "mix": np.einsum("nld,old->no", x, weights["base/mean/mix/weight"])
        + weights["base/mean/mix/bias"],
    }
    hidden = x[:, 2]
    for k in (1, 2, 3):
        hidden = hidden @ weights[f"base/2/mean/mlp/weight_{k}"].T
        hidden += weights[f"base/2/mean/mlp/bias_{k}"]
        hidden = np.maximum(0, hidden) if k < 3 else hidden
    values["mlp"] = hidden
    for probe, layer in (("linear", 3), ("mlp", 2), ("mix", "")):
        rows = probes["test"]["base", layer, "mean", probe]
        columns = "prob_" if problem_type == "multi_label" else "prediction_"
        found = expit(values[probe]) if problem_type == "multi_label" else values[probe]
        np.testing.assert_allclose(rows.filter(like=columns), found, atol=2e-3, rtol=1e-3)
    classes = read(out / "classes.csv")
    assert ("f1" if problem_type == "multi_label" else "rmse") in classes
    assert not (out / "confusion.csv").exists()


def test_no_predictions_where_none_are_wanted(four_blocks, topic_files, tmp_path):
    out = tmp_path / "o"
    result = run_probe.main(
        models=[f"base={four_blocks}"],
        train_file=topic_files["train"],
        probe_layers=[4],
        token_pooling=["cls"],
        save_predictions="none",
        output_dir=str(out),
    )
    assert not list(out.glob("predictions_*")) and not len(result.predictions)
    assert not (out / "probe_weights.npz").exists()
    assert len(read(out / "layer_comparisons.csv")) == 0 and not (out / "gains.csv").exists()


def test_models_that_share_no_layer_have_no_gains(four_blocks, moved, topic_files, tmp_path):
    out = tmp_path / "o"
    other = tmp_path / "shallow"
    shutil.copytree(moved, other)
    config = (other / "config.json").read_text()
    four = '"num_hidden_layers": 4'
    assert four in config
    (other / "config.json").write_text(config.replace(four, four.replace("4", "3")))
    run_probe.main(
        models=[f"deep={four_blocks}", f"shallow={other}"],
        train_file=topic_files["train"],
        probe_layers=[-1],
        token_pooling=["cls"],
        output_dir=str(out),
    )
    assert not (out / "gains.csv").exists()
    (row,) = read(out / "layer_comparisons.csv").to_dict("records")
    assert (row["model"], row["layer"]) == ("deep", 4)
    assert (row["other_model"], row["other_layer"]) == ("shallow", 3)
