"""Nearest labels, distances inside labels and paths of centroids, on points placed by hand."""

import numpy as np
import pytest

from bertchain.arguments.probing import ModelsArguments
from bertchain.directprobe import cluster, hull_distances
from bertchain.probing import each_label, label_geometry, probed_models
from bertchain.probing.arrangement import Arrangement

SQUARE = np.array([[0.0, 0], [0, 2], [2, 0], [2, 2]])


def test_the_nearest_label_and_the_distances_inside_by_hand():
    """A square from 0 to 2, a single point at 5, two points at 6 and 10, all on one line."""
    x = np.concatenate([SQUARE, [[5.0, 1], [6, 1], [10, 1]]])
    classes = np.array([3, 3, 3, 3, 7, 9, 9])
    y = np.searchsorted([3, 7, 9], classes)
    found = cluster(x, classes)
    distances = hull_distances(x, y, 1e-6)
    table = each_label.label_rows({"model": "m", "layer": 1}, x, y, found, distances)
    assert table["label"].tolist() == [3, 7, 9] and table["rows"].tolist() == [4, 1, 2]
    assert table["smallest distance"].tolist() == pytest.approx([3, 1, 1], rel=1e-4)
    assert table["nearest label"].tolist() == [7, 9, 7]
    assert table["largest distance inside"].tolist() == pytest.approx([8**0.5, 0, 4])
    assert table["mean distance inside"].tolist() == pytest.approx([(8 + 2 * 8**0.5) / 6, 0, 4])
    assert table["clusters"].tolist() == [1, 1, 1]


def test_labels_that_meet_are_at_no_distance_and_one_label_has_no_other():
    x = np.array([[0.0], [2], [1], [3]])
    y = np.array([0, 0, 1, 1])
    found = cluster(x, y)
    table = each_label.label_rows({"model": "m"}, x, y, found, hull_distances(x, y))
    assert table["smallest distance"].tolist() == [0, 0] and table["clusters"].sum() > 2
    alone = each_label.label_rows({}, x, y * 0, cluster(x, y * 0), np.zeros((1, 1)))
    assert np.isnan(alone["smallest distance"][0]) and alone["nearest label"][0] == ""


def test_tables_name_labels_and_have_every_model_layer_and_label(tmp_path):
    labels = {split: np.repeat([0, 2], 10) for split in ("train", "test")}
    rng = np.random.default_rng(0)

    def layer(gap: float) -> np.ndarray:
        """[rows, 1, 2]: the second label begins `gap` right of where the first ends."""
        x = rng.uniform(size=(20, 2))
        x[:10] = np.concatenate([SQUARE / 2, x[4:10]])
        x[10:] = x[:10] + np.array([1 + gap, 0])
        return x[:, None]

    layers = {
        name: dict.fromkeys(("train", "test"), layer(gap))
        for name, gap in (("base", 0.5), ("tuned", 3.0))
    }
    args = (labels, [], "test", 100, 0)
    table, pairs, each = label_geometry.directprobe_table(layers, *args, tmp_path)
    tables = {"directprobe": table, "directprobe_pairs": pairs, "label_distances": each}
    named = label_geometry.join_pairs(tables, ["a", "b", "c"])
    each = named["label_distances"]
    assert each["label"].tolist() == ["a", "c"] * 2
    assert each["nearest label"].tolist() == ["c", "a"] * 2
    assert each["smallest distance"].tolist() == pytest.approx([0.5] * 2 + [3] * 2, rel=0.01)
    wide = each_label.last_layer(each)
    assert list(wide.columns) == ["base", "tuned"]
    counts = each_label.count_changes(wide["base"], wide["tuned"])
    assert counts == {"labels": 2, "grew": 2, "shrank": 0}
    _, _, paths = label_geometry.label_geometry_table(layers, *args)
    moved = label_geometry.join_pairs({"centroid_paths": paths}, ["a", "b", "c"])["centroid_paths"]
    assert moved["label"].tolist() == ["a", "c"] * 2 and set(moved["from"]) == {"base"}
    pages = each_label.each_label_sections({"label_distances": each, "centroid_paths": moved})
    assert [page.name for page in pages] == ["label_distances", "centroid_paths"]
    assert "tuned: it grew for 2 of 2 labels since base, and shrank for 0" in pages[0].text


def test_centroids_of_all_models_lie_in_one_plane():
    """Three labels on a plane in four dimensions; one moves by 3, 4, then nothing moves."""
    start = np.zeros((3, 4))
    start[1, 0], start[2, 1] = 10.0, 10.0
    moved = start.copy()
    moved[1, :2] += [3, 4]
    centroids = {(2, "start"): start, (2, "step 1"): moved, (2, "step 2"): moved}
    centroids[2, "wider"] = np.zeros((3, 8))  # has other dimensions: no place
    origins = {"start": "start", "step 1": "start", "step 2": "step 1", "wider": "start"}
    paths = each_label.centroid_paths(centroids, np.array([4, 5, 6]), origins)
    assert set(paths["model"]) == {"start", "step 1", "step 2"}
    assert paths["share of variance"].tolist() == pytest.approx([1] * 9)
    places = paths.set_index(["model", "label"])
    assert places["distance from the first"]["step 1"].tolist() == pytest.approx([0, 5, 0])
    columns = ["component 1", "component 2"]
    xy = {model: places.loc[model][columns].to_numpy() for model in ("start", "step 1", "step 2")}
    assert np.linalg.norm(xy["step 1"] - xy["start"], axis=1) == pytest.approx([0, 5, 0])
    assert np.linalg.norm(xy["start"][1] - xy["start"][2]) == pytest.approx(200**0.5)
    assert places.loc[("step 2", 5), "from"] == "step 1"
    axis = each_label.paths_figure(paths).axes[0]
    assert len(axis.texts) == 3 * 2  # an arrow for each label and step
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    for x, y in np.concatenate([*xy.values()]):  # all of the paths can be seen
        assert left < x < right and low < y < high
    assert each_label.furthest(paths, 2) == [5, 4]
    assert not len(each_label.centroid_paths({(2, "a"): start}, np.arange(3), {"a": "a"}))


def test_moves_are_alike_where_all_labels_take_the_same():
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1, 2], 20)
    x = 5 * rng.normal(size=(3, 4))[y] + 0.1 * rng.normal(size=(60, 4))
    apart = x + np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])[y]
    before, alike, orthogonal = (
        Arrangement(points, y, points, y, seed=0) for points in (x, x + 1.0, apart)
    )
    found = alike.against(before)
    assert found["mean cosine of two moves"] == pytest.approx(1)
    assert found["similarity with the first"] == pytest.approx(1, abs=0.01)
    assert found["± 95 % with the first"] == pytest.approx(0, abs=0.05)
    found = orthogonal.against(before)
    assert found["mean cosine of two moves"] == pytest.approx(0, abs=1e-6)
    assert found["centroids moved by"] == pytest.approx(1 / before.spread)


def test_checkpoints_come_from_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(
        probed_models, "named_checkpoints", lambda run: {"start": "s", "step 1": "a", "step 2": "b"}
    )
    options = ModelsArguments(models=["other=bert-base-uncased"], checkpoints_of="run")
    assert probed_models.model_origins(options) == {
        "other": "other", "start": "start", "step 1": "start", "step 2": "step 1"
    }  # fmt: skip
