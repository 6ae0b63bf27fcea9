"""DirectProbe against hand-made shapes, a slow rewriting of its rule, and independent tests."""

import itertools
import zlib

import numpy as np
import pytest
from conftest import ROOT
from forking import run_bare
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls
from slow_rule import meet_by_lp, slow_clusters

from bertchain.directprobe import (
    centroid_distances,
    cluster,
    do_meet,
    growing,
    hull_distance,
    hull_distances,
    hulls,
    merging,
    predict,
    spatial_similarity,
    spread,
)
from bertchain.directprobe.clustering import whiten
from bertchain.directprobe.groups import Groups, pair_gaps, separate_jointly, separated
from bertchain.directprobe.hull_solvers import by_least_squares, by_linear_program, by_newton


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return ((a[:, None] == a[None]) == (b[:, None] == b[None])).all()


def check(x: np.ndarray, y: np.ndarray, found) -> None:
    """Every point once, clusters pure, no hulls of different labels meet, none could be merged."""
    z, _ = whiten(np.asarray(x, float))
    count = len(found.label_of)
    assert sorted(set(found.clusters)) == list(range(count))
    for k in range(count):
        assert set(np.asarray(y)[found.members(k)]) == {found.label_of[k]}
    for a, b in itertools.combinations(range(count), 2):
        of_a, of_b = found.members(a), found.members(b)
        if found.label_of[a] != found.label_of[b]:
            assert len(of_a) == len(of_b) == 1 or not meet_by_lp(z[of_a], z[of_b])
            continue
        union = z[np.r_[of_a, of_b]]
        rivals = [c for c in range(count) if found.label_of[c] != found.label_of[a]]
        assert any(meet_by_lp(union, z[found.members(c)]) for c in rivals)


# ---------------------------------------------------------------- shapes


def test_gaussians_far_apart_are_one_cluster_each():
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b", "c", "d"], 30)
    x = np.repeat(5 * np.eye(4), 30, axis=0) + 0.3 * rng.normal(size=(120, 4))
    found = cluster(x, y)
    assert found.linear and not len(found.decisions) and not found.conflicts.any()
    assert list(found.label_of) == ["a", "b", "c", "d"]
    assert (found.label_of[found.clusters] == y).all()


def test_xor_takes_four():
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, size=(400, 2))
    x = x[np.abs(x).min(axis=1) > 0.1]
    y = x[:, 0] * x[:, 1] > 0
    found = cluster(x, y)
    assert len(found.label_of) == 4
    quadrant = 2 * (x[:, 0] > 0) + (x[:, 1] > 0)
    assert same_partition(found.clusters, quadrant)
    check(x, y, found)


@pytest.mark.parametrize("axes", [2, 3])
def test_a_ball_inside_a_shell_stays_whole_and_the_shell_is_cut(axes):
    rng = np.random.default_rng(2)
    shell = rng.normal(size=(150, axes))
    shell *= 3 / np.linalg.norm(shell, axis=1, keepdims=True)
    ball = 0.3 * rng.normal(size=(60, axes))
    x, y = np.vstack([shell, ball]), np.repeat([0, 1], [150, 60])
    found = cluster(x, y)
    assert (found.label_of == 1).sum() == 1
    assert (found.label_of == 0).sum() > axes  # a simplex of pieces at least has to surround it
    check(x, y, found)


def test_runs_on_a_line():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 60)
    place = np.arange(60.0)[:, None] + 0.2 * rng.random((60, 1))
    found = cluster(place, y)
    runs = 1 + int((np.diff(y) != 0).sum())
    assert len(found.label_of) == runs
    tilted = cluster(place * np.array([[3.0, 4.0, 0.0, 12.0]]) / 13 + 7, y)  # collinear in 4-D
    assert same_partition(found.clusters, tilted.clusters)


def test_as_few_points_as_a_simplex_has_are_always_linear_and_that_is_said():
    rng = np.random.default_rng(4)
    found = cluster(rng.normal(size=(17, 16)), rng.integers(0, 3, 17))
    assert found.linear
    assert "17 points in 16 dimensions" in found.warnings[0]


def test_a_point_in_the_middle_of_a_simplex_cuts_it():
    x = np.vstack([np.eye(5), np.full((1, 5), 0.2)])
    found = cluster(x, [0] * 5 + [1])
    assert (found.label_of == 0).sum() == 2 and (found.label_of == 1).sum() == 1
    check(x, np.array([0] * 5 + [1]), found)


def test_a_lattice_with_ties_and_the_same_points_twice():
    x = np.array(list(itertools.product(range(4), range(4))), float)
    y = ((x.sum(axis=1) % 3) > 0).astype(int)
    x, y = np.vstack([x, x]), np.r_[y, y]
    found = cluster(x, y)
    check(x, y, found)
    assert found.mixed_points == 0
    again = cluster(x, y)
    assert (again.clusters == found.clusters).all()


def test_equal_points_with_different_labels_stay_apart_and_are_counted():
    x = np.array([[0.0, 0], [0, 0], [1, 0], [-1, 0], [9, 9], [9, 8], [8, 9]])
    y = np.array([0, 1, 1, 1, 0, 0, 0])
    found = cluster(x, y)
    assert found.mixed_points == 2
    assert "2 points have the place" in " ".join(found.warnings)
    assert found.conflicts[0, 1]
    check(x, y, found)


@pytest.mark.parametrize("seed", range(6))
def test_no_merge_is_tried_of_a_place_that_labels_share(seed):
    """As embeddings without context have them: few places, many labels at each."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, (30, 14, 4)[seed % 3], 40)  # the last: nearly all are shared
    x, y = rng.normal(size=(30, 2))[place], rng.integers(0, 3, 40)
    labels_at = {p: set(y[place == p]) for p in place}
    shared = np.array([len(labels_at[p]) > 1 for p in place])
    found = cluster(x, y)
    assert same_partition(found.clusters, slow_clusters(x, y))
    assert found.mixed_points == shared.sum() > 0
    assert all(len(found.members(k)) == 1 for k in found.clusters[shared])
    alone = np.bincount(y[~shared])  # each refusal and each merge takes one of their pairs
    assert len(found.decisions) <= (alone * (alone - 1) // 2).sum()


def test_odd_inputs_are_defined():
    assert len(cluster(np.zeros((3, 2)), [0, 0, 0]).label_of) == 1  # nothing differs, one label
    constant = cluster(np.ones((4, 2)), [0, 0, 1, 1])  # nothing differs, two labels
    assert constant.mixed_points == 4 and len(constant.label_of) == 4
    one = cluster(np.array([[1.0, 2.0]]), ["x"])
    assert one.linear and "one label" in one.warnings[0]
    with pytest.raises(ValueError, match="point 1 has a value that is not finite"):
        cluster(np.array([[0.0], [np.nan]]), [0, 1])
    with pytest.raises(ValueError, match="2 points but 3 labels"):
        cluster(np.zeros((2, 1)), [0, 1, 2])
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        cluster(np.zeros((0, 3)), [])


def test_it_needs_arrays_alone():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from bertchain.directprobe import cluster\n"
    code += "print(len(cluster([[0.0], [1.0], [2.0]], [0, 1, 0]).label_of))\n"
    code += "print({'torch', 'pandas', 'sklearn', 'transformers'} & {*sys.modules})"
    assert run_bare("-c", code).stdout == "3\nset()\n"


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("seed", range(25))
def test_same_clusters_as_the_rule_written_down(seed):
    rng = np.random.default_rng(seed)
    n, d, k = int(rng.integers(8, 32)), int(rng.integers(1, 5)), int(rng.integers(2, 4))
    y = rng.integers(0, k, n)
    x = rng.normal(size=(n, d)) * rng.uniform(0.3, 3, size=d)
    if seed % 3 == 0:
        x += 2 * y[:, None] * rng.normal(size=d)
    found = cluster(x, y)
    assert same_partition(found.clusters, slow_clusters(x, y))
    check(x, y, found)


def test_the_first_refusal_changes_nothing():
    """The unchecked start, found by bisection, is what checking every merge gives."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 6)) + 1.2 * np.eye(6)[y]
    found = cluster(x, y)
    first = int(np.flatnonzero(~found.decisions)[0])
    assert first > 5
    checked = cluster(x, y, decisions=found.decisions[:1])  # nothing but one merge is given
    assert (checked.decisions == found.decisions).all()
    assert (checked.clusters == found.clusters).all()


def test_goes_on_after_an_interruption():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(200, 4)), rng.integers(0, 3, 200)
    whole, kept = cluster(x, y), []

    def stop_at_150(merged: bool) -> None:
        kept.append(merged)
        if len(kept) == 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster(x, y, on_decision=stop_at_150)
    seen = []
    resumed = cluster(x, y, decisions=kept, on_decision=seen.append)
    assert (resumed.clusters == whole.clusters).all()
    assert seen[:150] == kept and seen == list(whole.decisions)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(4, 40),
    d=st.integers(1, 6),
    scale=st.floats(1e-6, 1e6),
)
def test_what_does_not_matter(seed, n, d, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.integers(0, 3, n)
    found = cluster(x, y)
    turned, _ = np.linalg.qr(rng.normal(size=(d, d)))
    moved = cluster(scale * (x @ turned + rng.normal(size=d)), y)
    assert same_partition(found.clusters, moved.clusters)
    order = rng.permutation(n)
    shuffled = cluster(x[order], y[order])
    assert same_partition(found.clusters[order], shuffled.clusters)
    named = cluster(x, np.array(["zebra", "ant", "mole"])[y])
    assert same_partition(found.clusters, named.clusters)


# ---------------------------------------------------------------- two hulls


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    p=st.integers(1, 60),
    q=st.integers(1, 60),
    d=st.integers(1, 50),
    shift=st.floats(0, 6),
)
def test_every_answer_has_its_proof(seed, p, q, d, shift):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(p, d)), rng.normal(size=(q, d))
    other[:, 0] += shift
    meets, proof = do_meet(one, other, 1e-6)
    assert meets == meet_by_lp(one, other)
    if meets:
        assert (proof.weights_p >= 0).all() and (proof.weights_q >= 0).all()
        assert proof.weights_p.sum() == pytest.approx(1) == proof.weights_q.sum()
        gap = proof.weights_p @ one - proof.weights_q @ other
        assert np.linalg.norm(gap) <= 1e-6
    else:
        assert np.linalg.norm(proof.normal) == pytest.approx(1)
        assert (one @ proof.normal).min() - (other @ proof.normal).max() > 5e-7


@pytest.mark.parametrize("way", [by_least_squares, by_newton, by_linear_program])
@pytest.mark.parametrize("shift", [0.0, 1.5, 9.0])
def test_all_ways_agree(way, shift):
    rng = np.random.default_rng(7)
    one, other = rng.normal(size=(40, 5)), rng.normal(size=(50, 5))
    other[:, 1] += shift
    found = way(one, other, one.mean(0) - other.mean(0), 1e-6)
    if meet_by_lp(one, other):
        assert found.miss <= 1e-6
    else:
        assert found.gap > 1e-6


def test_many_points_of_which_few_are_looked_at():
    rng = np.random.default_rng(8)
    one, other = rng.normal(size=(3000, 6)), rng.normal(size=(3000, 6))
    other[:, 0] += 12
    assert not do_meet(one, other, 1e-6)[0]
    other[2999] = 0.5 * one[1] + 0.5 * one[2]
    assert do_meet(one, other, 1e-6)[0]


def test_hulls_that_are_nearly_as_near_as_the_tolerance_are_told_apart(monkeypatch):
    """The linear program's bounds may differ by more than twice: its hyperplane is a proof."""
    monkeypatch.setattr(hulls, "by_newton", lambda *_: None)
    monkeypatch.setattr(hulls, "by_least_squares", lambda *_: None)
    other = np.full((1, 100), 0.01)
    other[0, 0] = 1.2
    meets, proof = do_meet(other, np.zeros((1, 100)), 1.0, np.eye(100)[1])
    assert not meets and 0 < proof.gap <= 0.5 and proof.miss > 1.0


@pytest.mark.parametrize("apart", [0.0, 1e-3])
def test_where_newton_cannot_tell_no_linear_program_is_waited_for(apart, monkeypatch):
    """It took a quarter of an hour for words whose vectors are a word's and a position's."""
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(2, 100, 60))
    one[:, 0], other[:, 0] = abs(one[:, 0]) + apart, -abs(other[:, 0])
    one[:40, 0] = apart
    other[:40] = 2 * one[:40].mean(axis=0) - one[:40]  # faces with one centre
    other[:40, 0] = 0
    monkeypatch.setattr(hulls, "by_newton", lambda *_: None)
    monkeypatch.setattr(hulls, "by_linear_program", lambda *_: pytest.fail("asked"))
    meets, proof = do_meet(one, other, 1e-6, np.eye(60)[1])
    assert meets == (apart == 0)
    assert proof.miss <= 1e-6 if meets else proof.gap > 1e-6


@pytest.mark.parametrize(
    ("p", "q", "d"), [(1, 1, 3), (1, 20, 3), (15, 20, 2), (30, 30, 8), (9, 9, 30)]
)
def test_distance_of_hulls_against_a_small_quadratic_program(p, q, d):
    rng = np.random.default_rng(9)
    one, other = rng.normal(size=(p, d)), rng.normal(size=(q, d)) + 3

    def square(weights):
        gap = weights[:p] @ one - weights[p:] @ other
        return gap @ gap, np.r_[2 * one @ gap, -2 * other @ gap]

    sums = [
        {"type": "eq", "fun": lambda w: w[:p].sum() - 1},
        {"type": "eq", "fun": lambda w: w[p:].sum() - 1},
    ]
    start = np.r_[np.full(p, 1 / p), np.full(q, 1 / q)]
    options = {"maxiter": 2000, "ftol": 1e-14}
    best = minimize(
        square, start, jac=True, bounds=[(0, 1)] * (p + q), constraints=sums, options=options
    )
    found = hull_distance(one, other)
    assert found.miss == pytest.approx(np.sqrt(best.fun), rel=1e-4)
    assert 0 <= found.miss - found.gap <= 1e-6 * found.miss
    gap = found.weights_p @ one - found.weights_q @ other
    assert np.linalg.norm(gap) == pytest.approx(found.miss)


def test_distance_of_known_shapes():
    square = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    assert hull_distance(square, square + np.array([3, 0])).gap == pytest.approx(2)
    assert hull_distance(square, square + np.array([4, 5])).miss == pytest.approx(5)  # 3, 4, 5
    assert hull_distance(square, square + 0.5).miss < 1e-6
    assert hull_distance(square, np.array([[0.5, 3.0]])).miss == pytest.approx(2)
    assert hull_distance(np.ones((2, 2)), np.ones((1, 2))).miss == 0


# ---------------------------------------------------------------- distances and prediction


def test_distances_between_clusters():
    square = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    x = np.vstack([square, square + np.array([4, 5]), [[0.5, 0.5]]])
    clusters = np.repeat([0, 1, 2], [4, 4, 1])
    hulls = hull_distances(x, clusters)
    assert hulls[0, 1] == hulls[1, 0] == pytest.approx(5, rel=1e-3)
    assert hulls[0, 2] == 0 and hulls[0, 0] == 0
    assert centroid_distances(x, clusters)[0, 1] == pytest.approx(np.sqrt(16 + 25))
    largest, mean = spread(x, clusters)
    assert largest == pytest.approx([np.sqrt(2), np.sqrt(2), 0])
    assert mean == pytest.approx([(4 + 2 * np.sqrt(2)) / 6] * 2 + [0])


def test_spatial_similarity_is_a_correlation_of_pairs():
    rng = np.random.default_rng(10)
    x, labels = rng.normal(size=(5, 3)), np.arange(5)
    own = centroid_distances(x, labels)
    assert spatial_similarity(own, 3 * own) == pytest.approx(1)
    other = centroid_distances(rng.normal(size=(5, 3)), labels)
    upper = np.triu_indices(5, 1)
    expected = np.corrcoef(own[upper], other[upper])[0, 1]
    assert spatial_similarity(own, other) == pytest.approx(expected)
    assert np.isnan(spatial_similarity(own[:2, :2], other[:2, :2]))


def test_prediction_is_the_label_of_the_nearest_hull():
    rng = np.random.default_rng(11)
    y = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 3)) + 1.5 * np.eye(3)[y]
    found = cluster(x, y)
    new = rng.normal(size=(40, 3)) * 2
    distance = np.array(
        [
            [hull_distance(p[None], x[found.members(k)]).miss for k in range(len(found.label_of))]
            for p in new
        ]
    )
    inside = distance < 1e-5
    assert (inside.sum(axis=1) > 1).sum() == 0  # hulls of different labels, or one label's
    expected = found.label_of[distance.argmin(axis=1)]
    everywhere = predict(new, x, found)
    assert (everywhere == expected).all()
    assert (predict(x, x, found) == y).all()


def distance_by_nnls(point: np.ndarray, part: np.ndarray) -> float:
    """Distance of a point to a hull: convex weights by least squares, their sum held at 1."""
    weights, _ = nnls(np.vstack([(part - point).T, np.full(len(part), 1e3)]), np.r_[0, 0, 0, 1e3])
    return float(np.linalg.norm(weights @ (part - point) / weights.sum()))


def test_prediction_is_exact_where_the_nearest_hull_has_a_far_centroid():
    """30 long clusters: the hull beside a point may have the furthest centroid of all."""
    rng = np.random.default_rng(16)
    rods = np.array([[k % 6, k // 6] for k in range(30)], dtype=float)
    along = np.linspace(0, 60, 13) - 45 * rng.random((30, 1))  # each rod starts somewhere else
    x = np.concatenate([np.c_[np.tile(rods[k], (13, 1)), along[k]] for k in range(30)])
    x += 0.05 * rng.normal(size=x.shape)
    y = np.repeat(np.arange(30), 13)
    found = cluster(x, y)
    assert found.linear
    new = np.c_[rng.uniform(0, 5, 80), rng.uniform(0, 4, 80), rng.uniform(-40, 60, 80)]
    hulls = [x[y == k] for k in range(30)]
    distances = np.array([[distance_by_nnls(point, hull) for hull in hulls] for point in new])
    assert (predict(new, x, found) == distances.argmin(axis=1)).all()
    means = np.array([hull.mean(axis=0) for hull in hulls])
    order = ((new[:, None] - means[None]) ** 2).sum(axis=2).argsort(axis=1)
    beyond = (order[:, :10] != distances.argmin(axis=1)[:, None]).all(axis=1)
    assert beyond.sum() > 10  # the ten nearest centroids would not do


def test_prediction_is_exact_with_many_clusters_of_few_labels():
    rng = np.random.default_rng(17)
    x, y = rng.normal(size=(300, 3)), rng.integers(0, 4, 300)
    found = cluster(x, y)
    assert len(found.label_of) > 30
    new = 1.5 * rng.normal(size=(100, 3))
    hulls = [x[found.members(k)] for k in range(len(found.label_of))]
    distances = np.array([[distance_by_nnls(point, hull) for hull in hulls] for point in new])
    assert (predict(new, x, found) == found.label_of[distances.argmin(axis=1)]).all()


def test_a_separable_task_is_predicted():
    rng = np.random.default_rng(12)
    y = rng.integers(0, 4, 300)
    x = rng.normal(size=(300, 20)) + 6 * np.eye(20)[y]
    found = cluster(x[:200], y[:200])
    assert found.linear
    assert (predict(x[200:], x[:200], found) == y[200:]).mean() > 0.97


def test_a_joint_classifier_separates_pairs_that_centroids_do_not():
    rng = np.random.default_rng(13)
    y = np.repeat(np.arange(50), 20)
    noise = rng.normal(size=(1000, 20)) * np.array([10.0] * 3 + [1.0] * 17)
    x = (1.5 * rng.normal(size=(50, 20)))[y] + noise
    z, tolerance = whiten(x)
    groups, pairs = Groups(y), np.triu_indices(50, 1)
    by_centroids, gaps = separated(z[groups.order], groups, groups.means(z), tolerance)
    assert not by_centroids[pairs].all()
    left, _ = separate_jointly(
        z[groups.order],
        groups,
        groups.means(z),
        ~by_centroids & ~np.eye(50, dtype=bool),
        gaps,
        tolerance,
    )
    assert left[pairs].sum() < (~by_centroids)[pairs].sum()
    assert cluster(x, y).linear == (not left.any())


def test_gaps_of_all_pairs_by_hand():
    rng = np.random.default_rng(14)
    y, z = rng.integers(0, 4, 50), rng.normal(size=(50, 3))
    groups = Groups(y)
    directions = rng.normal(size=(4, 3))
    gaps = pair_gaps(z[groups.order], groups, directions)
    for a, b in itertools.permutations(range(4), 2):
        w = directions[a] - directions[b]
        assert gaps[a, b] == pytest.approx((z[y == a] @ w).min() - (z[y == b] @ w).max())


def test_directions_kept_while_clusters_grow_change_nothing(monkeypatch):
    rng = np.random.default_rng(15)
    y = rng.integers(0, 2, 400)
    x = rng.normal(size=(400, 12))
    x[:, 0] += 1.5 * y
    whole = cluster(x, y)
    monkeypatch.setattr(growing, "MANY", 0)  # every cluster keeps them
    assert (cluster(x, y).decisions == whole.decisions).all()
    monkeypatch.setattr(growing, "FRONTS", 0)  # none does
    monkeypatch.setattr(growing, "KEPT", 0)
    monkeypatch.setattr(merging, "COARSEST", 3)  # and every merge is tested
    assert (cluster(x, y).decisions == whole.decisions).all()


def test_asking_the_nearest_of_many_rivals_first_changes_nothing(monkeypatch):
    rng = np.random.default_rng(18)
    x, y = rng.normal(size=(300, 3)), rng.integers(0, 4, 300)
    asked, ask = [], growing.Growing._meets_nearest
    monkeypatch.setattr(
        growing.Growing, "_meets_nearest", lambda *own: asked.append(ask(*own)) or asked[-1]
    )
    first = cluster(x, y)
    assert sum(asked) > 0.5 * (~first.decisions).sum()  # most refusals need no other
    monkeypatch.setattr(growing, "CROWD", len(x) + 1)  # none is asked first
    assert (cluster(x, y).decisions == first.decisions).all()


def test_labels_that_mean_nothing_in_four_dimensions():
    rng = np.random.default_rng(19)
    x, y = rng.normal(size=(500, 4)), rng.integers(0, 4, 500)
    found = cluster(x, y)
    # stored: a faster order of the tests must not change the outcome
    assert (len(found.label_of), len(found.decisions), found.decisions.sum()) == (72, 1103, 428)
    assert zlib.crc32(found.clusters.astype("<i8").tobytes()) == 2055407625
