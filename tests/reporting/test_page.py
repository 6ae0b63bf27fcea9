"""The page of a run: through the command line, recomputed from its tables, and in a browser."""

import json
import re
import shutil
import subprocess
from html import escape

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SPARE, make_rows
from forking import PICTURES, run_command

from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.reporting import calibration, joined_page, mistakes, sections
from bertchain.reporting.joined_page import Joined
from bertchain.reporting.scored import Scored
from bertchain.runtime import html
from bertchain.training.outcome import read_table

EVIL = "<script>alert(1)</script> & \"quoted\" | 'pipe'"
NAMES = ("<b>x</b> $y$", "_z 北京", "it's $")  # of the labels
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert):
    """A run with folds, of labels and texts that would break a page; the test file has labels."""
    folder = tmp_path_factory.mktemp("page")
    for name, number in (("train", 48), ("test", 15)):
        table = pd.DataFrame(make_rows(number, words=(3, 30)))
        table["label"] = [NAMES[i % 3] for i in range(number)]
        table["text"] = EVIL + " " + table["text"]
        table["id"] = f"<i>{name}" + table["id"]
        table.to_csv(folder / f"{name}.csv", index=False)
    sample = pd.DataFrame({"id": table["id"], "label": NAMES[0]})
    sample.to_csv(folder / "sample.csv", index=False)
    done = run_command(
        ROOT / "run_finetune.py", "--model_name_or_path", tiny_bert, "--train_file", "train.csv",
        "--test_file", "test.csv", "--id_column_name", "id", "--num_folds", 2, "--max_seq_length",
        16, "--num_train_epochs", 1, "--use_cpu", "true", "--sample_submission", "sample.csv",
        "--output_dir", "out", "--disable_tqdm", "true", cwd=folder, env={PICTURES: "all"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text(encoding="utf-8")


def section(page, name):
    return re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL)[0]


def test_a_run_leaves_a_page_whose_text_is_escaped(run, page):
    assert "<script>alert" not in page and page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot;" in page
    assert "<b>" not in page and "<i>" not in page
    assert "&lt;b&gt;x&lt;/b&gt; $y$" in page and "北京" in page
    assert str(run.parent) not in page  # no path of the machine
    assert "default-src 'none'" in page and page.count("<svg") == 4
    for name in ("scores", "warnings", "folds", "members", "curves", "confusion", "classes",
                 "calibration", "lengths", "mistakes", "doubtful", "predicted", "submission",
                 "rates", "run"):  # fmt: skip
        assert f'<section id="{name}">' in page, name
    assert "the decided label (by its name)" in section(page, "submission")
    assert "pooler" in section(page, "rates") or "block" in section(page, "rates")
    assert "max_seq_length: 16" in section(page, "run") and "train.csv" in section(page, "run")
    assert "tokens." in section(page, "lengths")  # some are cut off


def test_its_numbers_are_those_of_the_out_of_fold_table(run, page):
    oof, names = read_table(run / "predictions_oof.csv"), sorted(NAMES)
    p = oof[[f"prob_{name}" for name in names]].to_numpy()
    truth = oof["label"].map(names.index).to_numpy()
    wrong = oof["label"] != oof["prediction"]
    accuracy = float((~wrong).mean())
    row = re.search(r"<tr><td>accuracy</td>.*?</tr>", section(page, "scores"))[0]
    assert f'data-value="{accuracy!r}"' in row
    found = read_table(run / "mistakes.csv")
    sure = p.max(axis=1)[wrong]
    expected = oof["id"][wrong].iloc[np.argsort(-sure, kind="stable")[: mistakes.SHOWN]]
    assert found["id"].tolist() == expected.tolist() and "text" not in found
    by_id = oof.set_index("id").loc[found["id"]]
    assert found["label"].tolist() == by_id["label"].tolist()
    assert found["prediction"].tolist() == by_id["prediction"].tolist()
    assert found["fold"].tolist() == by_id["fold"].tolist()
    texts = pd.read_csv(run.parent / "train.csv").set_index("id")["text"]
    shown = section(page, "mistakes")
    assert all(escape(texts[name]) in shown for name in found["id"])
    doubtful, other = read_table(run / "doubtful_labels.csv"), calibration_of(p, truth)
    assert {*doubtful["id"]} <= {*oof["id"][wrong]}
    for value in other:
        assert f'data-value="{value!r}"' in section(page, "calibration")


def calibration_of(p, truth):
    """ECE by hand, and log loss with the temperature."""
    place = np.minimum((p.max(axis=1) * 15).astype(int), 14)
    gaps = [
        abs((p.max(axis=1)[place == k] - (p.argmax(axis=1) == truth)[place == k]).sum())
        for k in range(15)
    ]
    t = calibration.fit_temperature("single_label", p, truth)
    ece = sum(gaps) / len(p)
    found = calibration.measure("single_label", p, truth)
    assert found.error == pytest.approx(ece)
    return found.error, calibration.measure("single_label", p, truth, t).log_loss


def test_an_error_in_the_page_costs_no_results(tmp_path, caplog):
    with SPARE(tmp_path / "report.html"):
        raise ValueError("no picture")
    assert "report.html could not be made" in caplog.text
    with pytest.raises(OSError, match="full"), SPARE(tmp_path / "report.html"):
        raise OSError("disk full")


# ---------------------------------------------------------------- in a browser


def made_up(kind, names, rows=300):
    """Rows of a problem type, scored out of the folds."""
    size, ids = len(names), [f"{EVIL} {i}" for i in range(rows)]
    tokens = RNG.integers(5, 4000, rows)
    more = {"folds": RNG.integers(3, size=rows), "tokens": tokens}
    more["cut"] = np.maximum(0, tokens - 510)
    if kind == "single_label":
        truth = RNG.integers(size, size=rows)
        p = RNG.dirichlet(np.ones(size), rows) * 0.5
        p[np.arange(rows), np.where(RNG.random(rows) < 0.9, truth, 0)] += 0.5
    elif kind == "multi_label":
        truth = (RNG.random((rows, size)) < 0.3).astype(float)
        p = np.where(RNG.random(truth.shape) < 0.9, truth, 1 - truth) * 0.8 + 0.1
    else:
        truth = RNG.integers(1, 5, (rows, size)).astype(float)
        p = truth + RNG.normal(size=truth.shape)
    return Scored("oof", LabelSpec(kind, names, ("label",)), ids, p, truth, **more)


def all_sections(rows, thresholds=None):
    wrong = mistakes.find_mistakes(rows)
    doubtful = None if rows.spec.problem_type == "regression" else mistakes.find_doubtful(rows)
    texts = {name: f"{name} {'word ' * 60}" for name in rows.ids}
    return [
        sections.score_section([rows], {"oof_accuracy": 0.5, "oof_rmse": 0.5, "oof_lrap": 0.5}, 0),
        *sections.fold_sections(rows, None, 0),
        *sections.class_sections(rows, thresholds),
        *sections.number_sections(rows),
        *sections.calibration_sections(rows),
        *sections.length_sections(rows, 0),
        *sections.threshold_sections(rows, thresholds),
        *sections.mistake_sections(rows, wrong, texts),
        *sections.doubtful_sections(rows, doubtful, texts),
    ]


def joined_sections():
    """What the page of a blend has of its own, and the curves of several tasks."""
    rows = made_up("single_label", FEW)
    others = {f"/a/{EVIL[:8]} {name * 30}/out": rows.probabilities for name in "xyz"}
    scores = {name: {"accuracy": 0.5, "log_loss": 0.5, "own": 0.5} for name in [*others, "blend"]}
    joined = Joined("blend", rows, scores, others, dict.fromkeys(others, 1 / 3), "own")
    metrics = {"a": "accuracy", "b": "lrap", "$c$": "rmse", "d": "accuracy"}
    columns = [f"eval_{task}_{name}" for task, own in metrics.items() for name in ("loss", own)]
    history = pd.DataFrame(RNG.random((5, len(columns))), columns=columns)
    history["step"], history["train_loss"] = range(10, 60, 10), 0.3
    figure = sections.pictures.tasks_figure(history, metrics)
    return [
        joined_page.runs_section(joined),
        joined_page.correlation_section([*others.values()], [*others]),
        html.Section("curves", "Learning curves", figure=figure),
    ]


FEW, MANY = (EVIL, "$\\frac{1}$", "c" * 70), tuple(f"a rather long class {k}" for k in range(40))
KINDS = {  # pictures of each
    "single_label_few": (lambda: all_sections(made_up("single_label", FEW)), 3),
    "single_label_30": (lambda: all_sections(made_up("single_label", MANY[:30])), 3),
    "single_label_many": (lambda: all_sections(made_up("single_label", MANY)), 2),
    "single_label_two": (lambda: all_sections(made_up("single_label", FEW[:2])), 4),
    "multi_label": (
        lambda: all_sections(
            made_up("multi_label", (*FEW, *MANY)), Thresholds("global", (0.4,) * 43)
        ),
        3,
    ),
    "regression": (lambda: all_sections(made_up("regression", MANY[:6])), 2),
    "grades": (
        lambda: all_sections(
            made_up("regression", FEW[:1]), Thresholds("ordinal", (1.5, 2.5, 3.5), (1, 2, 3, 4.0))
        ),
        3,
    ),
    "joined": (joined_sections, 1),
}
PROBE = """
<script>
const sizes = [...document.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
const letters = [...document.querySelectorAll("figure svg text")].map(text => {
  const svg = text.closest("svg"), scale = svg.getBoundingClientRect().width;
  return parseFloat(getComputedStyle(text).fontSize) * scale / svg.viewBox.baseVal.width;
});
parent.postMessage(JSON.stringify({
  name: location.pathname.split("/").at(-1),
  pictures: sizes.filter(size => size.width > 200 && size.height > 150).length,
  least: Math.min(...letters),
  width: window.innerWidth,
  wide: document.documentElement.scrollWidth > window.innerWidth,
  fetched: performance.getEntriesByType("resource").length,
}), "*");
</script>
"""
FRAMES = """
<title>[]</title>
<script>
addEventListener("message", event => {
  document.title = JSON.stringify([...JSON.parse(document.title), JSON.parse(event.data)]);
});
</script>
"""
FRAME = '<iframe src="{}.html" style="width: {}px; height: 800px; border: 0"></iframe>'
WIDTHS = (390, 1280)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


def look(pages, folder):
    """What a browser finds in pages, by name and width: in frames, as no window is so narrow."""
    frames = FRAMES
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page.replace("</body>", PROBE + "</body>"), "utf-8")
        frames += "".join(FRAME.format(name, width) for width in WIDTHS)
    (folder / "frames.html").write_text(frames, "utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900",
         "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
         (folder / "frames.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    return {(one.pop("name").removesuffix(".html"), one.pop("width")): one for one in found}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_in_a_browser_nothing_overflows_and_pictures_are_legible(page, tmp_path, pictures):
    pages = {name: html.to_html(EVIL, make()) for name, (make, _) in KINDS.items()} | {"run": page}
    counts = {name: count for name, (_, count) in KINDS.items()} | {"run": 4}
    found = look(pages, tmp_path)
    assert set(found) == {(name, width) for name in pages for width in WIDTHS}
    for (name, width), one in found.items():
        assert one.pop("least") >= 6, (name, width)  # pixels of the smallest letters
        assert one == {"pictures": counts[name], "wide": False, "fetched": 0}, (name, width)


def test_the_same_picture_has_the_same_bytes(pictures):
    rows = made_up("single_label", FEW)
    measured = {"as given": calibration.measure("single_label", rows.probabilities, rows.truth)}
    one, other = (
        html.as_svg(sections.pictures.reliability_figure(measured, "accuracy")) for _ in range(2)
    )
    assert one == other
