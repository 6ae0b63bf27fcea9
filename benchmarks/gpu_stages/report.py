"""Tables of all stages."""

import json
from pathlib import Path

PEERS = ("usual", "best", "encode", "scikit-learn", "cpu")  # ours over these, and theirs over ours
RATES = ("tokens_per_second", "train_tokens_per_second", "predict_tokens_per_second")
TIMES = ("seconds of a fit", "seconds")
HIDDEN = ("card", "torch", "transformers", "all_seconds", "kernels", "waits")


def write_report(folder: Path, stages: list[str]) -> None:
    """Write report.md: a table for each group of measurements of each stage that has run."""
    lines = ["# On a GPU", ""]
    for stage in stages:
        path = folder / f"{stage}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        seen = {(r["card"], r["torch"], r["transformers"]) for r in found.values() if "card" in r}
        lines += [f"## {stage}", ""]
        lines += [f"{c}; torch {t}, transformers {v}." for c, t, v in sorted(seen)] + [""]
        groups: dict[str, dict[str, dict]] = {}
        for name, result in found.items():
            group, _, way = name.rpartition("/")
            groups.setdefault(group, {})[way] = result
        for group, ways in groups.items():
            lines += [f"**{group}**", "", *_table(ways), ""]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(ways: dict[str, dict]) -> list[str]:
    columns = [k for result in ways.values() for k in result if k not in HIDDEN]
    columns = [*dict.fromkeys(columns)]
    peer = next((ways[name] for name in PEERS if name in ways), {})
    rows = [["", *columns, "against the peer"]]
    for way, result in ways.items():
        rows.append([way, *(_shown(result.get(c, "")) for c in columns), _ratio(result, peer)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- " * len(rows[0]) + "|")
    for way, result in ways.items():
        if "kernels" in result:
            kernels = [f"{100 * v:.1f} % `{k}`" for k, v in result["kernels"].items()]
            waits = [f"{v} x `{k}`" for k, v in result["waits"].items()]
            lines += ["", f"{way}: {'; '.join(waits)}", "", *(f"- {line}" for line in kernels)]
    return lines


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _ratio(result: dict, peer: dict) -> str:
    """How many times as fast as the peer: in training, then in prediction."""
    if result is peer:
        return ""
    found = [result[k] / peer[k] for k in RATES if k in result and k in peer]
    if not found:
        found = [peer[k] / result[k] for k in TIMES if k in result and k in peer][:1]
    return ", ".join(f"{ratio:.2f} x" for ratio in found)
