"""Clusters and arrangements of labels over models and layers, on planted features."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from bertchain.directprobe import centroid_distances, hull_distances, spatial_similarity
from bertchain.probing import arrangement, label_geometry
from bertchain.probing.arrangement import bootstrap_similarity
from bertchain.probing.drift import effective_rank
from bertchain.probing.label_geometry import (
    choose_rows,
    cluster_and_keep,
    directprobe_table,
    directprobe_warnings,
    divergence_warnings,
    label_geometry_table,
)

RNG = np.random.default_rng(0)
LABELS = {"train": np.arange(240) % 6, "test": np.arange(120) % 6}
CENTRES = 4 * RNG.normal(size=(6, 8))


def features(noise: float, scatter: float = 0.0) -> dict[str, np.ndarray]:
    """[rows, 2 layers, 8]: layer 0 says nothing; layer 1 has a centre a label, which new rows have
    elsewhere by `scatter`."""
    rng = np.random.default_rng(1)
    found = {}
    for split, y in LABELS.items():
        centres = CENTRES + (scatter * rng.normal(size=(6, 8)) if split == "test" else 0)
        known = centres[y] + noise * rng.normal(size=(len(y), 8))
        found[split] = np.stack([rng.normal(size=(len(y), 8)), known], axis=1)
    return found


def test_clusters_of_layers_that_know_and_do_not_know(tmp_path):
    layers = {"base": features(0.5)}
    table = directprobe_table(layers, LABELS, [0, 1], "test", 1000, 0, tmp_path)[0]
    nothing, known = table.to_dict("records")
    assert known["linear"] == "yes" and known["clusters"] == known["labels"] == 6
    assert known["accuracy of nearest cluster"] == 1 and known["mean distance of labels"] > 1
    assert nothing["linear"] == "no" and nothing["clusters"] > 12
    assert nothing["label pairs that meet"] == 15 and nothing["mean distance of labels"] == 0
    assert nothing["accuracy of nearest cluster"] < 0.4
    assert "clusters of shuffled labels" not in table  # 240 rows, 8 dimensions
    x = layers["base"]["train"][:, 1]
    within = [pdist(x[LABELS["train"] == label]) for label in range(6)]
    assert known["largest distance within a cluster"] == pytest.approx(np.concatenate(within).max())
    means = [own.mean() for own in within]
    assert known["mean distance within clusters"] == pytest.approx(np.mean(means))
    assert nothing["mean distance within clusters"] < nothing["largest distance within a cluster"]


def test_pairs_of_labels_stand_with_their_distances(tmp_path):
    labels = {split: 2 * y for split, y in LABELS.items()}  # numbers with gaps
    rest = ([1], "test", 1000, 0)
    table, pairs, _ = directprobe_table({"b": features(0.5)}, labels, *rest, tmp_path)
    assert list(zip(pairs["label"], pairs["other label"], strict=True))[:3] == [
        (0, 2),
        (0, 4),
        (0, 6),
    ]
    assert len(pairs) == 15 and (pairs["layer"] == 1).all()
    assert pairs["distance of hulls"].mean() == table["mean distance of labels"][0]
    _, pairs, _ = label_geometry_table({"b": features(0.5)}, labels, *rest)
    x = features(0.5)["train"][:, 1]
    one, other = (x[labels["train"] == k].mean(axis=0) for k in (0, 4))
    row = pairs[(pairs["label"] == 0) & (pairs["other label"] == 4)]
    assert row["distance of centroids"].item() == pytest.approx(np.linalg.norm(one - other))


def test_few_rows_stand_beside_shuffled_labels(tmp_path):
    layers = {"base": {s: np.tile(x, (1, 1, 30)) for s, x in features(0.5).items()}}
    table = directprobe_table(layers, LABELS, [1], "test", 1000, 0, tmp_path)[0]
    assert table["clusters of shuffled labels"][0] >= 6


def test_no_more_rows_than_asked_for(tmp_path):
    assert list(choose_rows(np.zeros(5), 9, 0)) == [0, 1, 2, 3, 4]
    rows = choose_rows(np.zeros(500), 100, 3)
    assert len(set(rows)) == 100 and (np.diff(rows) > 0).all()
    assert (rows == choose_rows(np.zeros(500), 100, 3)).all()
    table = directprobe_table({"b": features(0.5)}, LABELS, [1], "test", 50, 0, tmp_path)[0]
    assert table["rows"][0] == 50


def test_a_clustering_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    x, y = features(0.5)["train"][:, 0], LABELS["train"]
    monkeypatch.setattr(label_geometry, "KEEP_EVERY", 50)
    whole = cluster_and_keep(x, y, tmp_path / "whole")
    write, original = label_geometry._write, label_geometry.cluster

    def stop(path, decisions):
        write(path, decisions)
        if len(decisions) >= 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(label_geometry, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        cluster_and_keep(x, y, tmp_path / "cut")
    monkeypatch.setattr(label_geometry, "_write", write)
    known = []
    monkeypatch.setattr(
        label_geometry,
        "cluster",
        lambda a, b, decisions, keep: (
            known.append(len(decisions)) or original(a, b, decisions, keep)
        ),
    )
    again = cluster_and_keep(x, y, tmp_path / "cut")
    assert known == [100]
    assert (again.clusters == whole.clusters).all()
    cluster_and_keep(x + 1e-9, y, tmp_path / "cut")
    assert known == [100, 0]  # other points: nothing is taken over


def test_arrangement_of_labels_before_and_after():
    layers = {"base": features(0.5), "tuned": features(0.1), "lost": features(0.1, scatter=9.0)}
    table = label_geometry_table(layers, LABELS, [1], "test", 1000, 0)[0].set_index("model")
    assert table["train and new, similarity"]["base"] > 0.95
    assert table["similarity with the first"]["tuned"] > 0.99
    assert np.isnan(table["similarity with the first"]["base"])
    assert 0 < table["centroids moved by"]["tuned"] < 0.5
    assert table["train and new, similarity"]["lost"] < 0.8
    assert table["train and new, change"]["lost"] < 0
    lost = table.loc["lost"]
    assert lost["train and new, change of centroids"] < -lost["± 95 % of the change of centroids"]
    warned = divergence_warnings(table.reset_index(), "test")
    assert len(warned) == 1 and warned[0].startswith("lost: training pulled")


def test_similarity_is_that_of_hulls_with_centroids_beside():
    """Centroids stay where they are while one label grows long: only hulls see it."""
    base, long = features(0.1), {}
    for split, y in LABELS.items():
        along = np.where(y == 0, np.linspace(-0.9, 0.9, len(y)), 0.0)
        long[split] = base[split].copy()
        long[split][:, 1] += np.outer(along, CENTRES[1] - CENTRES[0])
    table = label_geometry_table({"b": base, "long": long}, LABELS, [1], "test", 1000, 0)[0]
    x = [layers["train"][:, 1] for layers in (base, long)]
    hulls = [hull_distances(points, LABELS["train"], 1e-4) for points in x]
    means = [centroid_distances(points, LABELS["train"]) for points in x]
    upper = np.triu_indices(6, 1)
    by_hulls, by_means = (np.corrcoef(*(d[upper] for d in pair))[0, 1] for pair in (hulls, means))
    assert abs(by_hulls - by_means) > 0.1  # another verdict
    later = table.set_index("model").loc["long"]
    assert later["similarity with the first"] == pytest.approx(by_hulls, abs=0.01)
    assert later["similarity with the first, centroids"] == pytest.approx(by_means)
    new = [long[split][:, 1] for split in ("train", "test")]
    pairs = [hull_distances(p, LABELS[s])[upper] for p, s in zip(new, LABELS, strict=True)]
    assert later["train and new, similarity"] == pytest.approx(np.corrcoef(*pairs)[0, 1], abs=0.01)
    means = [centroid_distances(p, LABELS[s])[upper] for p, s in zip(new, LABELS, strict=True)]
    assert later["train and new, centroids"] == pytest.approx(np.corrcoef(*means)[0, 1])
    assert table[["± 95 %", "± 95 % of centroids"]].gt(0).all().all()


def test_noise_with_many_rows_but_few_a_pair_is_called_empty(tmp_path):
    """120 rows in 30 dimensions, but pairs of 12 labels have 20: linear, as are shuffled labels."""
    rng = np.random.default_rng(6)
    noise = {split: rng.normal(size=(120, 1, 30)) for split in ("train", "test")}
    labels = {split: np.arange(120) % 12 for split in noise}
    table = directprobe_table({"b": noise}, labels, [0], "test", 1000, 0, tmp_path)[0]
    row = table.iloc[0]
    assert row["linear"] == row["linear, shuffled labels"] == "yes"
    assert row["label pairs of few rows"] == row["label pairs apart, shuffled labels"] == "66 of 66"
    assert "66 of 66 pairs of labels have fewer than twice the dim" in row["warnings"]
    (warned,) = directprobe_warnings(table)
    assert warned.startswith("b: in layers 0 no hulls of labels meet") and "nothing" in warned
    table = directprobe_table({"b": features(0.5)}, LABELS, [1], "test", 1000, 0, tmp_path)[0]
    assert table["linear, shuffled labels"][0] == "no" and table["warnings"][0] == ""
    assert table["label pairs apart, shuffled labels"][0] == "at least 0 of 15"
    assert directprobe_warnings(table) == []


def test_a_rare_label_among_many_rows_is_called_empty_as_well(tmp_path):
    """A few rows lie apart from any number of others: what counts is how few, not how many all."""
    rng = np.random.default_rng(8)
    noise = {split: rng.normal(size=(105, 1, 30)) for split in ("train", "test")}
    labels = {split: (np.arange(105) < 5).astype(int) for split in noise}
    table = directprobe_table({"b": noise}, labels, [0], "test", 1000, 0, tmp_path)[0]
    assert table["label pairs of few rows"][0] == "0 of 1" and table["warnings"][0] == ""
    assert table["linear"][0] == table["linear, shuffled labels"][0] == "yes"
    assert len(directprobe_warnings(table)) == 1


def test_distances_of_labels_and_of_clusters_are_both_named(tmp_path):
    """A label in two places has a hull across another: clusters are apart, labels are not."""
    rng = np.random.default_rng(7)
    place = np.repeat([0.0, 10.0, 20.0], 40)
    x = np.c_[place, np.zeros(120)] + 0.1 * rng.normal(size=(120, 2))
    layers = {"b": dict.fromkeys(("train", "test"), x[:, None])}
    labels = {split: np.repeat([0, 1, 0], 40) for split in ("train", "test")}
    row = directprobe_table(layers, labels, [0], "test", 1000, 0, tmp_path)[0].iloc[0]
    assert row["clusters"] == 3 and row["mean distance of labels"] == 0
    clusters = np.repeat([0, 1, 2], 40)
    distances = hull_distances(x, clusters)
    expected = (distances[0, 1] + distances[1, 2]) / 2
    assert row["mean distance of clusters"] == pytest.approx(expected, rel=0.02)


def test_labels_that_few_rows_leave_out_take_no_part():
    labels = {s: y.copy() for s, y in LABELS.items()}
    labels["test"][labels["test"] == 2] = 3
    labels["test"][0] = 2  # one row: no pair of rows
    table = label_geometry_table({"base": features(0.5)}, labels, [1], "test", 30, 0)[0]
    assert table["train and new, similarity"].between(-1, 1).all()


def test_centroids_move_by_as_many_spreads_as_planted():
    base = {s: x[:, 1:] for s, x in features(0.5).items()}
    shift = np.zeros(8)
    shift[0] = 3.0
    moved = {s: x + shift for s, x in base.items()}
    layers = {"base": base, "moved": moved}
    table = label_geometry_table(layers, LABELS, [0], "test", 1000, 0)[0].set_index("model")
    spread = table["spread of a label"]["base"]
    assert table["centroids moved by"]["moved"] == pytest.approx(3 / spread)
    assert table["similarity with the first"]["moved"] == pytest.approx(1)
    assert table["distance of centroids"]["moved"] == pytest.approx(
        centroid_distances(base["train"][:, 0], LABELS["train"])[np.triu_indices(6, 1)].mean()
    )


def test_the_bootstrap_draws_within_labels_and_repeats():
    x = features(0.5)
    known = [x["train"][:, 1], LABELS["train"], x["test"][:, 1], LABELS["test"]]
    draws = bootstrap_similarity(*known, 0)
    assert draws.std() > 0 and (draws == bootstrap_similarity(*known, 0)).all()
    rng, one_by_one = np.random.default_rng(0), []
    for _ in draws:
        rows, new = (arrangement._draw(LABELS[split], rng) for split in ("train", "test"))
        of_rows = centroid_distances(known[0][rows], LABELS["train"][rows])
        of_new = centroid_distances(known[2][new], LABELS["test"][new])
        one_by_one.append(spatial_similarity(of_rows, of_new))
    assert draws == pytest.approx(one_by_one)
    drawn = arrangement._draw(LABELS["train"], np.random.default_rng(0))
    assert (np.bincount(LABELS["train"][drawn]) == 40).all() and len(set(drawn)) < 240


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(2)
    flat = rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 10))
    assert 1 < effective_rank(flat) <= 3
    assert effective_rank(rng.normal(size=(20_000, 5))) == pytest.approx(5, rel=1e-3)
    assert effective_rank(np.ones((4, 3))) == 1
