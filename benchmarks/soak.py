"""Keep each script busy for an hour, killed again and again; compare with a run left alone.

    python benchmarks/soak.py --minutes 60 --output soak.md
    python benchmarks/soak.py --minutes 1 --steps 12 --kill_after 4 12      # a trial

The three scripts run side by side, on made-up documents. First each runs once, left alone, while
its memory is noted. Then, until the time is over, it runs anew in rounds: after random seconds a
random signal, then the same command, or, where that is refused and names it, the same with
--resume_from_checkpoint last. At the end of a round the outputs must have the bytes of the run left
alone, and nothing half-written may lie in its folder or in TMPDIR. Exits with 1 if a round failed.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

SIGNALS = ("INT", "TERM", "HUP", "KILL")
TRAINING = "--model_name_or_path model --train_file train.jsonl --validation_split 0.1"
TRAINING += " --max_steps {steps} --eval_strategy steps --eval_steps {part} --learning_rate 1e-3"
TRAINING += " --save_strategy steps --save_steps {part} --use_cpu true --disable_tqdm true"
PROBING = "--models base=model --train_file train.jsonl --test_file train.jsonl"
PROBING += " --max_predict_samples 500 --max_train_samples {steps} --token_pooling cls mean max"
PROBING += " --probes linear mlp"
HAS_ENDED = "holds a run that has ended|its run has ended"  # without, with a resume
OUTPUTS = {
    "run_itpt": ("model.safetensors", "history.csv"),
    "run_finetune": ("predictions_*.csv", "history.csv", "model.safetensors"),
    "run_probe": ("results.csv", "predictions_*.csv"),
}
ARGUMENTS = {
    "run_itpt": f"{TRAINING} --tokens_per_batch 1024",
    "run_finetune": f"{TRAINING} --test_file train.jsonl --max_predict_samples 200"
    " --max_seq_length 128",
    "run_probe": PROBING,
}


class Ended(NamedTuple):
    """How a process ended, and its own memory in MiB, second by second."""

    code: int
    said: str
    memory: list[int]


def own_memory(process: int) -> int:
    """MiB of a process, without mapped files; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+)", status)
    return int(found[1]) >> 10 if found else 0


class Soak:
    """One script, in a folder of its own."""

    def __init__(self, script: str, folder: Path, options: argparse.Namespace) -> None:
        self.script, self.folder, self.options = script, folder, options
        self.random = random.Random(f"{options.seed}-{script}")
        self.kills = dict.fromkeys(SIGNALS, 0)
        (folder / "tmp").mkdir(parents=True)
        for name in ("model", "train.jsonl"):
            (folder / name).symlink_to(folder.parent / name)

    def start(self, out: str, *more: str) -> subprocess.Popen:
        """Start the script in a fresh interpreter that heeds all signals."""
        numbers = {"steps": self.options.steps, "part": max(1, self.options.steps // 20)}
        words = ARGUMENTS[self.script].format(**numbers).split()
        command = [sys.executable, ROOT / f"{self.script}.py", *words, "--output_dir", out, *more]
        environment = os.environ | {"TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1"}
        with open(self.folder / "said", "w", encoding="utf-8") as said:
            return subprocess.Popen(
                [str(word) for word in command],
                cwd=self.folder,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                preexec_fn=heed_signals,
            )

    def finish(self, process: subprocess.Popen, kill_at: float | None = None) -> Ended:
        """Wait for a process; send it a random signal at a time, if one is given."""
        memory = []
        while process.poll() is None:
            time.sleep(1)
            memory.append(own_memory(process.pid))
            if kill_at and time.monotonic() > kill_at and process.poll() is None:
                name = self.random.choice(SIGNALS)
                self.kills[name] += 1
                process.send_signal(signal.Signals[f"SIG{name}"])
                kill_at = None
        said = (self.folder / "said").read_text(encoding="utf-8")
        return Ended(process.returncode, said, [size for size in memory if size])

    def contents(self, out: str) -> dict[str, bytes]:
        """Bytes of what is compared, by name."""
        paths = {p for pattern in OUTPUTS[self.script] for p in (self.folder / out).glob(pattern)}
        return {path.name: path.read_bytes() for path in sorted(paths)}

    def leftovers(self, out: str) -> list[str]:
        """Name what is half-written in a folder, and what lies in the folder for such things."""
        from bertchain.runtime.outputs import WRITING

        half = [path.name for path in (self.folder / out).rglob(f"{WRITING}*")]
        return half + [path.name for path in (self.folder / "tmp").iterdir()]

    def killed_round(self, out: str, until: float) -> str:
        """Run with kills until it ends; say how, "" if well."""
        more: list[str] = []
        while True:
            kill_at = time.monotonic() + self.random.uniform(*self.options.kill_after)
            ended = self.finish(self.start(out, *more), kill_at if kill_at < until else None)
            last = "".join(ended.said.strip().splitlines()[-1:])
            if ended.code == 0 or (ended.code == 2 and re.search(HAS_ENDED, ended.said)):
                break  # the second: killed after its last write
            if ended.code == 2 and "--resume_from_checkpoint last" in ended.said and not more:
                more = ["--resume_from_checkpoint", "last"]
            elif ended.code == 2 and more and "no checkpoint" in ended.said:
                more = []  # killed before the first
            elif ended.code not in (-9, -1, -2, -15, 129, 130, 143):
                return f"exit code {ended.code}: {last}"
        found = self.contents(out)
        differ = [name for name, bytes_ in self.expected.items() if found.get(name) != bytes_]
        if differ:
            return f"differ: {', '.join(differ)}"
        left = self.leftovers(out)
        return f"left: {', '.join(left)}" if left else ""

    def run(self) -> dict[str, Any]:
        """Run for the time that was given; a row of the table."""
        until = time.monotonic() + 60 * self.options.minutes
        alone = self.finish(self.start("alone"))
        if alone.code:  # the others go on
            print(f"{self.script}, left alone: {alone.said}", flush=True)
            return {"script": self.script, "rounds": 1, "as the run left alone": 0}
        self.expected = self.contents("alone")
        outcomes: list[str] = []
        while time.monotonic() < until or not outcomes:
            outcomes.append(self.killed_round("out", until))
            print(f"{self.script}: round {len(outcomes)}: {outcomes[-1] or 'equal'}", flush=True)
            name = f"failed-{len(outcomes)}"
            if outcomes[-1]:
                (self.folder / "out").rename(self.folder / name)
            shutil.rmtree(self.folder / "out", ignore_errors=True)
        half, quarter = len(alone.memory) // 2, len(alone.memory) // 4
        row = {"script": self.script, "rounds": len(outcomes)}
        row["as the run left alone"] = outcomes.count("")
        row |= {f"SIG{name}": number for name, number in self.kills.items()}
        row["seconds left alone"] = len(alone.memory)
        row["most MiB in its second quarter"] = max(alone.memory[quarter:half], default=0)
        row["in its second half"] = max(alone.memory[half:], default=0)
        return row


def heed_signals() -> None:
    """Take back what a shell's background or nohup had ignored."""
    for name in ("INT", "TERM", "HUP"):
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_DFL)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=1500, help="of a run; rows that probes see")
    parser.add_argument("--kill_after", type=float, nargs=2, default=[10, 150], help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scripts", nargs="+", default=[*OUTPUTS], choices=[*OUTPUTS])
    parser.add_argument("--output", help="file for the table, beside the screen")
    return parser.parse_args()


def main() -> None:
    import pandas as pd
    from memory import make_inputs

    from bertchain.runtime.records import markdown_table

    options = read_arguments()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(options.scripts)) as jobs:
        make_inputs(Path(name), 4000)
        soaks = [Soak(script, Path(name) / script, options) for script in options.scripts]
        rows = pd.DataFrame(jobs.map(Soak.run, soaks))
    print(markdown_table(rows))
    if options.output:
        Path(options.output).write_text(markdown_table(rows) + "\n", encoding="utf-8")
    sys.exit(int((rows["as the run left alone"] < rows["rounds"]).any()))


if __name__ == "__main__":
    main()
