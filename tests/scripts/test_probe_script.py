"""Features against a plain forward pass, the store, and the script as a whole."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

import run_probe
from bertchain.data.tokenization import resolve_windows, to_windows
from bertchain.errors import InputError
from bertchain.metrics import SCORES
from bertchain.models.loading import load_encoder
from bertchain.probing import features
from bertchain.probing.features import FeatureStore, hash_encoder, token_batches
from bertchain.probing.probed_models import named_models
from bertchain.probing.solvers import Standardiser, fit_multinomial

POOLINGS = ["cls", "mean", "max", "last"]


def cut(tiny_bert, tokenizer, texts, **given):
    documents = Dataset.from_dict({"id": [str(i) for i in range(len(texts))], "text": texts})
    return to_windows(documents, tokenizer, *resolve_windows(given, tiny_bert, tokenizer))[0]


TEXTS = ["red cat", "", "the river of the forest " * 4, "dog", "a large house in the city"] * 3


@pytest.mark.versions
@pytest.mark.parametrize("tokens_per_batch", [1, 64, 8192])
def test_features_equal_one_document_at_a_time(four_blocks, tokenizers, tmp_path, tokens_per_batch):
    tokenizer = tokenizers["bert"]
    encoder = load_encoder(four_blocks)[0].eval()
    dataset = cut(four_blocks, tokenizer, TEXTS, truncation="hierarchical", max_seq_length=12)
    store = FeatureStore(tmp_path, encoder, tokenizer.pad_token_id)
    features = store.of(dataset, POOLINGS, tokens_per_batch, "x")
    assert features.shape == (15, 5, 4, 32) and features.dtype == np.float32
    for row in range(5):
        windows = []
        for ids in dataset[row]["windows"]:
            with torch.no_grad():
                states = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states
            windows.append([[h[0, 0], h[0].mean(0), h[0].max(0).values, h[0, -1]] for h in states])
        expected = [
            [sum(w[k][p] for w in windows) / len(windows) for p in range(4)] for k in range(5)
        ]
        expected = torch.stack([torch.stack(poolings) for poolings in expected])
        np.testing.assert_allclose(features[row], expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_a_gpu_are_those_of_the_cpu(tiny_bert, tokenizers, tmp_path):
    dataset = cut(tiny_bert, tokenizers["bert"], TEXTS)
    features = {
        device: FeatureStore(tmp_path, load_encoder(tiny_bert)[0].to(device), 0).of(
            dataset, POOLINGS, 8192, device
        )
        for device in ("cpu", "cuda")
    }
    np.testing.assert_allclose(features["cpu"], features["cuda"], atol=1e-3)


def test_stored_features_are_read_again_until_anything_changes(
    four_blocks, tokenizers, tmp_path, monkeypatch
):
    tokenizer = tokenizers["bert"]
    encoder = load_encoder(four_blocks)[0].eval()
    dataset = cut(four_blocks, tokenizer, TEXTS)
    computed = []
    compute = FeatureStore.compute
    monkeypatch.setattr(FeatureStore, "compute", lambda *a: computed.append(1) or compute(*a))

    def is_computed(dataset=dataset, poolings=("cls",), encoder=encoder):
        computed.clear()
        FeatureStore(tmp_path, encoder, 0).of(dataset, list(poolings), 8192, "x")
        return bool(computed)

    assert is_computed() and not is_computed()
    assert is_computed(poolings=("mean",))
    assert is_computed(dataset=cut(four_blocks, tokenizer, ["blue cat", *TEXTS[1:]]))
    assert is_computed(dataset=cut(four_blocks, tokenizer, TEXTS[::-1]))
    assert is_computed(dataset=cut(four_blocks, tokenizer, TEXTS, max_seq_length=12))
    monkeypatch.setattr(
        "bertchain.probing.features.versions", lambda: {"torch": "9", "transformers": "9"}
    )
    assert is_computed() and not is_computed()
    with torch.no_grad():
        encoder.encoder.layer[3].output.dense.bias[0] += 1e-3
    assert is_computed() and not is_computed()


def test_a_run_that_was_killed_goes_on_where_it_was(tiny_bert, tokenizers, tmp_path, monkeypatch):
    encoder = load_encoder(tiny_bert)[0]
    dataset = cut(tiny_bert, tokenizers["bert"], TEXTS)
    whole = FeatureStore(tmp_path / "whole", encoder, 0).of(dataset, ["cls"], 64, "x")
    monkeypatch.setattr(features, "SECONDS_BETWEEN_MARKS", 0.0)
    compute, batches = FeatureStore.compute, len(list(token_batches(dataset["length"][:], 64)))
    calls = []

    def killed_at(call):
        def maybe(*args):
            if len(calls) == call:
                raise KeyboardInterrupt
            calls.append(1)
            return compute(*args)

        return maybe

    store = FeatureStore(tmp_path / "again", encoder, 0)
    monkeypatch.setattr(FeatureStore, "compute", killed_at(2))
    with pytest.raises(KeyboardInterrupt):
        store.of(dataset, ["cls"], 64, "x")
    assert not (tmp_path / "again" / f"{store.key(dataset, ['cls'])}.npy").exists()  # not as whole
    calls.clear()
    monkeypatch.setattr(FeatureStore, "compute", killed_at(-1))
    again = store.of(dataset, ["cls"], 64, "x")
    assert len(calls) == batches - 2 > 0
    assert (again == whole).all()
    assert len(list((tmp_path / "again").iterdir())) == 1  # marks are gone


FEATURE_DAMAGES = {
    "zeros": lambda data: data[:128] + bytes(len(data) - 128),
    "noise": lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    "another type": lambda data: data.replace(b"<f4", b"<i4", 1),
    "cut": lambda data: data[:-50],
    "cut in its hash": lambda data: data[:-1],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", FEATURE_DAMAGES)
def test_damaged_features_are_found_and_computed_again(
    tiny_bert, tokenizers, tmp_path, monkeypatch, caplog, damage
):
    encoder = load_encoder(tiny_bert)[0]
    dataset = cut(tiny_bert, tokenizers["bert"], TEXTS)
    whole = np.array(FeatureStore(tmp_path, encoder, 0).of(dataset, ["cls"], 64, "x"))
    (path,) = tmp_path.glob("*.npy")
    written = path.read_bytes()
    path.write_bytes(FEATURE_DAMAGES[damage](written))
    again = FeatureStore(tmp_path, encoder, 0).of(dataset, ["cls"], 64, "x")
    assert (again == whole).all() and f"{path} is damaged: computed again" in caplog.text
    assert path.read_bytes() == written


@pytest.mark.parametrize("file", ["unfinished", "marks"])
@pytest.mark.parametrize("damage", FEATURE_DAMAGES)
def test_damaged_batches_of_a_killed_run_are_computed_again(
    tiny_bert, tokenizers, tmp_path, monkeypatch, damage, file
):
    encoder = load_encoder(tiny_bert)[0]
    dataset = cut(tiny_bert, tokenizers["bert"], TEXTS)
    whole = np.array(FeatureStore(tmp_path / "whole", encoder, 0).of(dataset, ["cls"], 64, "x"))
    store = FeatureStore(tmp_path / "again", encoder, 0)
    with monkeypatch.context() as patch:
        patch.setattr(features, "seal", lambda path: 1 / 0)  # killed when all are marked
        with pytest.raises(ZeroDivisionError):
            store.of(dataset, ["cls"], 64, "x")
    (path,) = (tmp_path / "again").glob(f"*.{file}.npy")
    content = path.read_bytes()
    path.write_bytes(FEATURE_DAMAGES[damage](content + bytes(max(0, 201 - len(content)))))
    assert (store.of(dataset, ["cls"], 64, "x") == whole).all()


def test_half_as_many_bytes(tiny_bert, tokenizers, tmp_path, monkeypatch):
    encoder = load_encoder(tiny_bert)[0]
    dataset = cut(tiny_bert, tokenizers["bert"], TEXTS)
    full = FeatureStore(tmp_path, encoder, 0).of(dataset, POOLINGS, 8192, "x")
    half = FeatureStore(tmp_path, encoder, 0, "float16").of(dataset, POOLINGS, 8192, "x")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, atol=2e-3)
    with torch.no_grad():
        encoder.embeddings.LayerNorm.bias += 1e5
    with pytest.raises(InputError, match="use float32"):
        FeatureStore(tmp_path, encoder, 0, "float16").of(dataset, POOLINGS, 8192, "x")


@pytest.mark.versions
def test_the_hash_is_of_weights_not_of_where_they_came_from(tiny_bert, tmp_path):
    encoder, _ = load_encoder(tiny_bert)
    encoder.save_pretrained(tmp_path)
    assert hash_encoder(load_encoder(tmp_path)[0]) == hash_encoder(encoder)


def test_token_batches_hold_the_budget_and_every_row_once():
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    batches = list(token_batches(lengths, 100))
    assert sorted(np.concatenate(batches)) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= 100
    assert lengths[batches[0]].max() == lengths.max()


def test_model_names():
    assert named_models(["a=x/y", "z/base"]) == {"a": "x/y", "base": "z/base"}
    for wrong, message in ((["a=x", "a=y"], "twice"), (["a="], "write name=path")):
        with pytest.raises(InputError, match=message):
            named_models(wrong)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, four_blocks, topic_files):
    import run_finetune

    out = tmp_path_factory.mktemp("probe") / "finetuned"
    results = run_finetune.main(
        {
            "model_name_or_path": four_blocks,
            "train_file": topic_files["train"],
            "test_file": topic_files["test_labels"],
            "id_column_name": "id",
            "token_pooling": "mean",
            "learning_rate": 3e-3,
            "num_train_epochs": 4,
            "output_dir": str(out),
            "disable_tqdm": True,
            "use_cpu": True,
        }
    )
    return out, results


@pytest.mark.versions
def test_a_comparison_end_to_end(four_blocks, finetuned, topic_files, tmp_path, pictures):
    folder, tuned = finetuned
    arguments = {
        "models": [f"base={four_blocks}", f"tuned={folder}"],
        "train_file": topic_files["train"],
        "test_file": topic_files["test_labels"],
        "id_column_name": "id",
        "output_dir": str(tmp_path / "o"),
    }
    headline = run_probe.main(arguments).headline
    assert list(headline["what"]) == [
        "majority class", "words counted (TF-IDF), linear",
        "base: best frozen layer", "base: last layer",
        "tuned: best frozen layer", "tuned: last layer", "tuned: as fine-tuned, own head",
    ]  # fmt: skip
    score = dict(zip(headline["what"], headline["test accuracy"], strict=True))
    assert score["majority class"] == pytest.approx(1 / 3)
    assert score["base: best frozen layer"] > 0.8
    assert score["tuned: as fine-tuned, own head"] == pytest.approx(tuned["test_accuracy"])
    results = pd.read_csv(tmp_path / "o" / "results.csv")
    assert list(results.columns) == [
        "model", "layer", "token_pooling", "probe", "split", "metric", "value"
    ]  # fmt: skip
    probes = results[(results.metric == "accuracy") & (results.split == "test")]
    assert len(probes[probes.probe == "linear"]) == 2 * 5 * 2
    assert (results[results.metric == "converged"]["value"] == 1).all()
    # the best layer is the best on validation, not on test
    validation = results[
        (results.metric == "accuracy") & (results.split == "validation") & (results.model == "base")
    ]
    chosen = headline["validation accuracy"][2]
    assert chosen == validation[validation.probe == "linear"]["value"].max()
    report = (tmp_path / "o" / "report.md").read_text()
    gains = pd.read_csv(tmp_path / "o" / "gains.csv")
    assert set(gains["model"]) == {"tuned"} and len(gains) == 5 * 2
    last = gains[(gains["layer"] == 4) & (gains["token pooling"] == "mean")].iloc[0]
    at = probes[(probes.layer == 4) & (probes.token_pooling == "mean") & (probes.probe == "linear")]
    by_model = at.set_index("model")["value"]
    assert last["test accuracy against base"] == pytest.approx(by_model["tuned"] - by_model["base"])
    moved = pd.read_csv(tmp_path / "o" / "drift.csv").set_index(["model", "layer"])
    assert moved["weights changed by"]["tuned"].min() > 0
    assert moved["CKA with the first"]["tuned"].between(0, 1).all()
    assert "How far the layers moved" in report and (headline["± 95 %"] > 0).sum() >= 2
    assert "layers.png" in report and "Every probe converged" in report
    assert (tmp_path / "o" / "layers.png").stat().st_size > 10_000
    saved = json.loads((tmp_path / "o" / "all_results.json").read_text())
    assert "commit" in saved["versions"] and saved["seed"] == 42
    features = list((tmp_path / "o" / "features").glob("*.npy"))
    assert len(features) == 2 * 3
    again = [str(tmp_path / "o" / "run_args.yaml"), "--output_dir", str(tmp_path / "again")]
    again = run_probe.main([*again, "--features_dir", str(tmp_path / "o" / "features")]).headline
    pd.testing.assert_frame_equal(again, headline)
    assert sorted(features) == sorted((tmp_path / "o" / "features").glob("*.npy"))


def test_a_head_for_other_labels_is_not_scored(finetuned, topic_files, tmp_path, caplog):
    frame = pd.read_csv(topic_files["train"])
    frame["label"] = frame["label"].str.upper()
    frame.to_csv(tmp_path / "upper.csv", index=False)
    headline = run_probe.main(
        {
            "models": [f"tuned={finetuned[0]}"],
            "train_file": str(tmp_path / "upper.csv"),
            "output_dir": str(tmp_path / "o"),
        }
    ).headline
    assert "trained for other labels" in caplog.text
    assert len(headline) == 4 and headline["test accuracy"].isna().all()


@pytest.mark.parametrize("problem_type", ["multi_label", "regression"])
def test_other_problem_types(problem_type, tiny_bert, topic_files, tmp_path):
    frame = pd.read_csv(topic_files["train"])
    words = frame["text"].str.split()
    frame["label"] = {
        "multi_label": frame["label"] + "|" + np.where(words.str.len() > 7, "long", "short"),
        "regression": words.str.len() + 0.5,
    }[problem_type]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    arguments = {
        "models": [tiny_bert],
        "train_file": str(tmp_path / "rows.csv"),
        "test_file": str(tmp_path / "rows.csv"),
        "token_pooling": ["mean"],
        "output_dir": str(tmp_path / "o"),
    }
    if problem_type == "multi_label":
        arguments["label_delimiter"] = "|"
    headline = run_probe.main(arguments).headline
    metric = headline.columns[-2]
    majority, best = headline[metric][0], headline[metric][2]
    if problem_type == "multi_label":
        assert metric == "test lrap" and best > 0.85 > majority
    else:
        assert metric == "test rmse" and best < 0.6 * majority


def test_bad_arguments_are_one_line(tiny_bert, topic_files, tmp_path, monkeypatch):
    def error(**arguments):
        fields = {
            "models": [f"base={tiny_bert}"],
            "train_file": topic_files["train"],
            "output_dir": str(tmp_path / "x"),
        }
        with pytest.raises(InputError) as caught:
            run_probe.main({**fields, **arguments})
        assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()
        return str(caught.value)

    assert "--token_pooling attention" in error(token_pooling=["attention"])
    assert "one occurs twice" in error(token_pooling=["cls", "cls"])
    assert "give --models" in error(models=[])
    assert "give --train_file" in error(train_file=None, test_file=topic_files["test_labels"])
    assert "/no/where" in error(models=["a=/no/where"])
    assert "--feature_dtype int8" in error(feature_dtype="int8")
    assert "must name linear" in error(probes=["knn"])
    assert "--probes svm" in error(probes=["linear", "svm"])
    assert "--analyses all" in error(analyses=["all"])
    assert "--mlp_widths 0" in error(mlp_widths=[0])
    assert "--mlp_repeats 0" in error(mlp_repeats=0)


def test_other_probes_and_description_length(four_blocks, topic_files, tmp_path, pictures):
    arguments = {
        "models": [f"base={four_blocks}"],
        "train_file": topic_files["train"],
        "test_file": topic_files["test_labels"],
        "token_pooling": ["mean"],
        "probes": ["linear", "knn", "mlp", "mix"],
        "mlp_widths": [16],
        "mlp_repeats": 2,
        "analyses": ["mdl"],
        "output_dir": str(tmp_path / "o"),
    }
    headline = run_probe.main(arguments).headline
    names = [name for name in headline["what"] if "best frozen layer" in name]
    assert names == [f"base: best frozen layer{more}" for more in ("", ", knn", ", mlp")]
    assert headline["test accuracy"][4:].min() > 0.6
    assert list(headline["what"])[-1] == "base: learned mix of layers"
    results = pd.read_csv(tmp_path / "o" / "results.csv")
    compression = results[results.metric == "mdl_compression"].set_index("layer")["value"]
    assert list(compression.index) == [0, 1, 2, 3, 4] and (compression > 1).all()
    assert set(results[results.metric == "width_1"]["value"]) == {16}
    spread = results[(results.metric == "accuracy_sd") & (results.split == "test")]
    assert set(spread["probe"]) == {"mlp"} and len(spread) == 5
    assert not (tmp_path / "o" / "drift.csv").exists()  # not asked for
    frame = pd.read_csv(topic_files["train"])
    frame["label"] = frame["label"] + "|x"
    frame["half"] = 0.5 + frame.index
    frame.to_csv(tmp_path / "several.csv", index=False)
    several = arguments | {"train_file": str(tmp_path / "several.csv"), "test_file": None}
    several |= {"probes": ["linear"], "probe_layers": [-1], "output_dir": str(tmp_path / "p")}
    run_probe.main({**several, "label_delimiter": "|"})
    results = pd.read_csv(tmp_path / "p" / "results.csv")
    assert results[results.metric == "mdl_compression"]["value"].item() > 1
    several["output_dir"] = str(tmp_path / "q")
    with pytest.raises(InputError, match="mdl needs labels, which numbers are not"):
        run_probe.main({**several, "label_column_name": ["half"]})
    with pytest.raises(InputError, match="geometry needs one label a row"):
        run_probe.main({**several, "analyses": ["geometry"], "label_delimiter": "|"})


@pytest.mark.parametrize("solver", ["cores", "batched"])
def test_layers_side_by_side(solver, four_blocks, topic_files, tmp_path):
    """Equal to the probe of scikit-learn on the stored features of these layers."""
    arguments = {
        "models": [f"base={four_blocks}"],
        "train_file": topic_files["train"],
        "validation_file": topic_files["test_labels"],
        "token_pooling": ["cls", "mean"],
        "concat_layers": ["last4", "0,-1"],
        "probe_solver": solver,
        "analyses": ["none"],
        "output_dir": str(tmp_path / "o"),
    }
    headline = run_probe.main(arguments).headline
    assert list(headline["what"])[-2:] == [
        "base: layers last4 concatenated",
        "base: layers 0 4 concatenated",
    ]
    assert set(headline["layer"][4:]) <= {"cls", "mean"}
    results = pd.read_csv(tmp_path / "o" / "results.csv")
    of = {p: rows.set_index(["token_pooling", "split"]) for p, rows in results.groupby("probe")}
    assert {name for name in of if name.startswith("concat")} == {"concat last4", "concat 0 4"}
    stored = {len(x): x for x in map(np.load, (tmp_path / "o" / "features").glob("*.npy"))}
    sizes = {"train": 150, "validation": 45}
    codes = lambda path: np.unique(labels_of(path), return_inverse=True)[1]  # noqa: E731
    y = {"train": codes(topic_files["train"]), "validation": codes(topic_files["test_labels"])}
    for name, layers in (("concat last4", [1, 2, 3, 4]), ("concat 0 4", [0, 4])):
        for pooling, place in (("cls", 0), ("mean", 1)):
            x = {s: stored[n][:, layers, place].reshape(n, -1) for s, n in sizes.items()}
            rows = of[name].loc[pooling]
            found = rows.loc["validation"].set_index("metric")["value"]
            C = rows.loc["train"].set_index("metric")["value"]["C"]
            (fit,) = fit_multinomial(Standardiser(x["train"])(x["train"]), y["train"], 3, [C])
            p = fit.predict(Standardiser(x["train"])(x["validation"]))
            expected = SCORES["single_label"](p, y["validation"])
            assert found["accuracy"] == pytest.approx(expected["accuracy"])
            assert found["log_loss"] == pytest.approx(expected["log_loss"], rel=0.02)
    assert "concat 0 4" in (tmp_path / "o" / "report.md").read_text()


def test_erasure_of_concepts_from_columns(tiny_bert, topic_files, tmp_path, pictures):
    """The task's own label, a number, and chance; and a column that test rows lack."""
    frames = {name: pd.read_csv(topic_files[name]) for name in ("train", "test_labels")}
    for name, frame in frames.items():
        frame["again"] = frame["label"]
        frame["words"] = frame["text"].str.split().str.len() + 0.5
        frame["chance"] = np.random.default_rng(0).integers(0, 2, len(frame))
        frame.sample(frac=1, random_state=0).to_csv(tmp_path / f"{name}.csv", index=False)
    arguments = {
        "models": [f"base={tiny_bert}"],
        "train_file": str(tmp_path / "train.csv"),
        "test_file": str(tmp_path / "test_labels.csv"),
        "id_column_name": "id",
        "max_train_samples": 140,
        "token_pooling": ["mean"],
        "probe_layers": [-1],
        "analyses": ["erasure"],
        "concept_column_names": ["again", "words", "chance"],
        "output_dir": str(tmp_path / "o"),
    }
    run_probe.main(arguments)
    table = pd.read_csv(tmp_path / "o" / "erasure.csv")
    own, words, chance = (row for _, row in table.iterrows())
    assert table["concept"].tolist() == arguments["concept_column_names"]
    assert own["directions"] == 2 and own["the task needs it"] == "yes"
    assert own["test accuracy lost"] > 0.5
    scores = pd.read_csv(tmp_path / "o" / "results.csv").query("split == 'test'")
    task = scores.query("metric == 'accuracy'").set_index("probe")["value"]
    assert own["concept before"] == task["linear"]  # the same rows in the same order
    assert own["test accuracy lost"] == pytest.approx(task["linear"] - task["without again"])
    assert words["concept metric"] == "test rmse" and words["directions"] == 1
    assert chance["the task needs it"] == "no" and chance["concept found"] == "no"
    report = (tmp_path / "o" / "report.md").read_text()
    assert "no linear probe of base surely finds chance" in report
    assert "What the task loses with a concept" in report
    test = pd.read_csv(arguments["test_file"]).drop(columns="words")
    test.to_csv(tmp_path / "lacks.csv", index=False)
    more = {"test_file": str(tmp_path / "lacks.csv"), "concept_column_names": ["words"]}
    run_probe.main(arguments | more | {"output_dir": str(tmp_path / "p")})
    table = pd.read_csv(tmp_path / "p" / "erasure.csv")
    assert set(table["concept metric"]) == {"validation rmse"}  # test rows have none
    assert "test accuracy lost" in table


def test_one_solve_of_all_layers_finds_what_one_fit_after_another_finds(
    tiny_bert, topic_files, tmp_path
):
    headline = {
        solver: run_probe.main(
            {
                "models": [f"base={tiny_bert}"],
                "train_file": topic_files["train"],
                "test_file": topic_files["test_labels"],
                "probe_solver": solver,
                "features_dir": str(tmp_path / "features"),
                "output_dir": str(tmp_path / solver),
            }
        )
        for solver in ("auto", "cores", "batched")
    }
    tables = {s: pd.read_csv(tmp_path / s / "results.csv") for s in headline}
    device = json.loads((tmp_path / "auto" / "all_results.json").read_text())["device"]
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")  # which auto goes by
    if device == "cpu":
        pd.testing.assert_frame_equal(tables["auto"], tables["cores"])
    one, other = (t[t.metric == "log_loss"] for t in (tables["cores"], tables["batched"]))
    np.testing.assert_allclose(one["value"], other["value"], rtol=0.02)
    assert not one["value"].equals(other["value"])  # another solver was at work
    with pytest.raises(InputError, match="--probe_solver magic"):
        run_probe.main({"models": ["x"], "train_file": "x.csv", "probe_solver": "magic"})


def test_the_key_is_of_the_numbers_and_not_of_how_they_are_stored():
    def hashed(*columns):
        content = hashlib.sha256()
        for column in columns:
            features.add_numbers(content, column)
        return content.hexdigest()

    rows = [[[1, 2], [3]], [], [[4, 5, 6]]]
    plain = hashed(pa.array(rows))
    assert plain == hashed(pa.array([[[9]], *rows, [[9]]])[1:4])  # a slice of a longer array
    assert plain == hashed(pa.array(rows, type=pa.large_list(pa.large_list(pa.int32()))))
    others = [[[1], [2, 3]], [], [[4, 5, 6]]], [[[1, 2], [3]], [[4, 5, 6]], []]
    others = *others, [[[1, 2], [3]], [], [[4, 5, 7]]], rows[:2]
    assert len({plain, *(hashed(pa.array(other)) for other in others)}) == 5


def labels_of(path):
    return pd.read_csv(path)["label"]


def test_how_labels_lie_along_a_training_run(four_blocks, topic_files, tmp_path, pictures):
    import run_finetune

    run_finetune.main(
        {
            "model_name_or_path": four_blocks,
            "train_file": topic_files["train"],
            "token_pooling": "mean",
            "learning_rate": 3e-3,
            "num_train_epochs": 2,
            "save_strategy": "epoch",
            "keep_checkpoints": True,
            "save_total_limit": 9,
            "output_dir": str(tmp_path / "run"),
            "disable_tqdm": True,
            "use_cpu": True,
        }
    )
    out = tmp_path / "o"
    arguments = {
        "checkpoints_of": str(tmp_path / "run"),
        "train_file": topic_files["train"],
        "test_file": topic_files["test_labels"],
        "id_column_name": "id",
        "analyses": ["directprobe", "geometry"],
        "probe_layers": [0, -1],
        "directprobe_points": 100,
        "output_dir": str(out),
    }
    run_probe.main(arguments)
    clusters = pd.read_csv(out / "directprobe.csv")
    assert clusters["model"][0] == "start" and clusters["model"].nunique() == 3
    assert set(clusters["layer"]) == {0, 4} and (clusters["clusters"] >= clusters["labels"]).all()
    last = clusters[clusters["layer"] == 4]
    assert last["mean distance of labels"].iloc[-1] > last["mean distance of labels"].iloc[0]
    lie = pd.read_csv(out / "geometry.csv")
    assert lie.loc[lie["model"] != "start", "similarity with the first"].between(-1, 1).all()
    probed = pd.read_csv(out / "results.csv")
    assert set(probed[probed["probe"] == "linear"]["layer"]) == {0, 4}
    pairs = pd.read_csv(out / "label_pairs.csv")
    assert len(pairs) == 3 * 2 * 3 and set(pairs["label"]) < set(labels_of(topic_files["train"]))
    means = pairs.groupby(["model", "layer"])["distance of hulls"].mean()
    for _, row in clusters.iterrows():
        assert means[row["model"], row["layer"]] == pytest.approx(row["mean distance of labels"])
    means = pairs.groupby(["model", "layer"])["distance of centroids"].mean()
    for _, row in lie.iterrows():
        assert means[row["model"], row["layer"]] == pytest.approx(row["distance of centroids"])
    each = pd.read_csv(out / "label_distances.csv")
    assert set(each["label"]) == set(labels_of(topic_files["train"]))
    ends = pd.concat(
        [pairs, pairs.rename(columns={"label": "other label", "other label": "label"})]
    )
    nearest = ends.groupby(["model", "layer", "label"])["distance of hulls"].min()
    for _, row in each.iterrows():
        at = row["model"], row["layer"], row["label"]
        assert row["smallest distance"] == pytest.approx(nearest[at])
    paths = pd.read_csv(out / "centroid_paths.csv")
    assert list(paths.groupby("model", sort=False)["from"].first()) == [
        *clusters["model"].unique()[[0, 0, 1]]
    ]
    page = (out / "report.html").read_text()
    assert "Clusters of labels" in page and "How the labels lie" in page
    assert "Each label and its nearest other" in page and "Where centroids move" in page
    assert (out / "directprobe.png").is_file() and (out / "geometry.png").is_file()


def test_bad_arguments_of_the_geometry_are_one_line(four_blocks, topic_files, tmp_path):
    arguments = {
        "models": [four_blocks],
        "train_file": topic_files["train"],
        "output_dir": str(tmp_path / "o"),
    }
    for change, message in (
        ({"checkpoints_of": four_blocks}, "holds no whole checkpoint"),
        ({"directprobe_points": 50}, "needs --analyses directprobe or geometry"),
        ({"probe_layers": [9]}, "layers are 0 to 4"),
        ({"analyses": ["hulls"]}, "analyses"),
    ):
        with pytest.raises(InputError, match=message):
            run_probe.main(arguments | change)
