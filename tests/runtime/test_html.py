"""The report's page: escaped, self-contained, readable; in a browser where there is one."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from bertchain.runtime.figures import (
    confusion_figure,
    drift_figure,
    gains_figure,
    layers_figure,
    pca_figure,
)
from bertchain.runtime.html import Section, html_table, to_html, to_markdown, write_report_files

EVIL = "<script>alert(1)</script> & \"quoted\" | 'pipe'"
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("pictures")


def sections():
    results = pd.DataFrame(
        [
            {"model": m, "layer": layer, "token_pooling": "cls", "probe": "linear",
             "split": "test", "metric": "accuracy", "value": 0.5 + layer / 10}
            for m in (EVIL, "tuned") for layer in range(3)
        ]
    )  # fmt: skip
    for probe in ("majority", "tf-idf"):
        base = {"model": "", "layer": None, "token_pooling": "", "probe": probe}
        results.loc[len(results)] = base | {"split": "test", "metric": "accuracy", "value": 0.2}
    gains = pd.DataFrame(
        {"model": "tuned", "layer": [0, 1, 0, 1], "token pooling": ["cls", "cls", "mean", "mean"],
         "test accuracy against base": [0.1, -0.2, 0.0, 0.3], "± 95 %": 0.05}
    )  # fmt: skip
    drift = pd.DataFrame(
        {"model": ["base", "tuned"], "layer": 0, "CKA with the first": [np.nan, 0.9],
         "weights changed by": [np.nan, 0.1]}
    )  # fmt: skip
    labels = RNG.integers(0, 12, 300)
    names = [EVIL, *(f"label {i}" for i in range(11))]
    predicted = {"base": labels, "tuned": RNG.integers(0, 12, 300)}
    table = pd.DataFrame(
        {"what": [EVIL, "b", "c"], "score": [0.3, float("nan"), 0.1], "n": [1200, 2, 3]}
    )
    panels = {f"model {i}": RNG.normal(size=(300, 5)) for i in range(5)}
    return [
        Section("headline", f"In short {EVIL}", f"Text {EVIL}\n\nSecond.", table),
        Section("layers", "Layers", figure=layers_figure(results, "accuracy", "test")),
        Section("gains", "Gains", "", gains, gains_figure(gains), "gains", fold=True),
        Section("drift", "Drift", figure=drift_figure(drift)),
        Section("pca", "PCA", figure=pca_figure(panels, labels, names, "rows")),
        Section("confusion", "Confusion", figure=confusion_figure(predicted, labels, names)),
        Section("probed", "Probed", "careful", plain=EVIL, warning=True),
    ]


def test_text_from_data_is_escaped_and_nothing_is_fetched():
    page = to_html(EVIL, sections())
    assert "<script>alert" not in page and page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<svg") == 5 and "default-src 'none'" in page
    # addresses stand only in names of formats, which no browser asks for
    fetched = re.findall(r'(?:src|href|url\()\s*=?\s*["\']?(https?:[^"\')]+)', page)
    assert all("w3.org" in address or "purl.org" in address or "creativecommons" in address
               for address in fetched), fetched  # fmt: skip


def test_a_section_says_what_it_does_not_show():
    one = [Section("a", "A", "Text.", limit="why <that> is")]
    assert "<em>What this does not show:</em> why &lt;that&gt; is" in to_html("T", one)
    assert "*What this does not show:* why" in to_markdown("T", one)
    assert "does not show" not in to_html("T", sections()) + to_markdown("T", sections())


def test_numbers_stand_in_the_table_as_they_are():
    table = html_table(
        pd.DataFrame({"a": [0.12345, float("nan")], "b": [1234567, 2], "c": ["x", True]})
    )
    assert '<td class="number" data-value="0.12345">0.1234</td>' in table or "0.1235" in table
    assert '<td class="number" data-value=""></td>' in table and ">1,234,567<" in table
    assert "<td>x</td>" in table and "<td>True</td>" in table


def test_markdown_and_files(tmp_path):
    write_report_files(tmp_path, "Title", sections())
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Title") and "![gains](gains.png)" in text and "**careful**" in text
    assert text == to_markdown("Title", sections())
    assert "<script>" not in text.replace(f"```\n{EVIL}\n```", "")
    fence = [Section("a", EVIL, f"{EVIL}\n\n# no heading", plain="```\n# no heading\n```")]
    text = to_markdown(EVIL, fence)
    assert "````\n```\n# no heading\n```\n````\n" in text and "\n\\# no heading\n" in text
    assert "<script>" not in text
    for name in ("layers", "gains", "drift", "pca", "confusion"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert drift_figure(pd.DataFrame({"model": ["a"], "layer": [0]})) is None


NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
PROBE = """
<script>
window.onerror = message => { document.title = "error: " + message; };
const buttons = document.querySelectorAll("#headline th button");
buttons[1].click();
const firsts = () => {
  const rows = [...document.querySelectorAll("#headline tbody tr")];
  return rows.map(row => row.cells[0].textContent);
};
const up = firsts();
buttons[1].click();
const down = firsts();
const sizes = [...document.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
const seen = sizes.filter(size => size.width > 100 && size.height > 100).length;
const wide = document.documentElement.scrollWidth > window.innerWidth;
const hints = [...document.querySelectorAll(".hint")];
const shown = hints.filter(hint => getComputedStyle(hint).display !== "none").length;
document.title = JSON.stringify({shown, up: up.at(0), down: down.at(0), last: down.at(-1),
  seen, wide, fetched: performance.getEntriesByType("resource").length});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("size", ["1200,900", "400,800"])
def test_in_a_browser_tables_sort_figures_show_and_nothing_is_fetched(tmp_path, size):
    page = tmp_path / "report.html"
    page.write_text(to_html("Title", sections()).replace("</body>", PROBE + "</body>"), "utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}",
         "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)[1]
    assert (
        '"up":"c"' in title
        and f'"down":"{EVIL[:7].replace("<", "&lt;").replace(">", "&gt;")}' in title
    )
    assert '"last":"b"' in title  # not a number: always last
    assert '"seen":5' in title
    assert ('"shown":0' in title) == (size == "1200,900")  # hints that there is more to see
    assert '"fetched":0' in title and '"wide":false' in title
    assert "CONSOLE" not in done.stderr, done.stderr
