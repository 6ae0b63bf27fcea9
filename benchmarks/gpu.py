"""Measure everything that a GPU decides: stages that each end within minutes and can go on.

    python benchmarks/gpu.py speed --model "$(python examples/find_encoder.py minilm)"
    python benchmarks/gpu.py tests speed probes distances long --model MODEL --output_dir gpu

Nothing is fetched: text is that of docstrings (examples/make_docstring_data.py), shapes of larger
encoders come with random weights. Each measurement is a process of its own; its figures stand in
OUTPUT_DIR/STAGE.json as soon as it ends, and it is not repeated: the same command goes on where it
was cut off, or its --minutes were over, and retries what failed. OUTPUT_DIR/report.md holds the
tables of all stages. Without a GPU, --tiny runs every stage on the CPU with models of toy size.

- tests: the tests that need a GPU; the chain of the three scripts on the CPU, in float32, bf16 and
  fp16; two processes on one card against one.
- speed: training and prediction in bf16 against the usual recipes (itpt_speed.py,
  finetune_speed.py), eager and compiled, with peak memory and the share of the card's own rate of
  matrix products; what the time of a step is spent on.
- probes: all layers, poolings and strengths in one solve against scikit-learn on one core.
- distances: those of DirectProbe, on the card and on the CPU.
- long: a training step on a document of 100,000 tokens.
- study: examples/sun2019 (needs --data, and ENCODER by --study_model), as far as the time goes.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Asking for GPUs must not start CUDA, which a process cannot share with those it forks.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from gpu_stages import chain, distances, documents, probes, report, running, speed, study

STAGES = {
    "tests": chain.items,
    "speed": speed.items,
    "probes": probes.items,
    "distances": distances.items,
    "long": documents.items,
    "study": study.items,
}


def main() -> int:
    """Run the stages and write the report; returns 1 where one failed, 2 where nothing can run."""
    options = read_arguments()
    lacking = [name for name in running.HEAVY if find_spec(name.partition(".")[0]) is None]
    if lacking:  # each measurement would fail for it, one after the other
        print(f"{lacking[0]} is not installed: pip install -r requirements.txt", file=sys.stderr)
        return 2
    failed = 0
    for stage in options.stages:
        path = options.output_dir / f"{stage}.json"
        failed += running.run_stage(STAGES[stage](options), path, options)
    report.write_report(options.output_dir, list(STAGES))
    print((options.output_dir / "report.md").read_text(encoding="utf-8"))
    return min(failed, 1)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="+", choices=STAGES, metavar="stage")
    parser.add_argument("--model", required=True, help="a checkpoint; its tokenizer serves all")
    parser.add_argument("--study_model", help="of the study; default: --model")
    parser.add_argument("--data", help="folder of the study's data sets")
    parser.add_argument("--studies", help="some of the study, such as rates,layers")
    parser.add_argument("--output_dir", type=Path, default=Path("gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="after which none is started")
    parser.add_argument("--only", default="", help="measurements whose name holds this")
    parser.add_argument("--parallel", type=int, default=8, help="runs of the study at a time")
    parser.add_argument(
        "--together", action="store_true", help="to fill caches; times mean nothing"
    )
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
