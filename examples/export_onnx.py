"""Export a classifier to ONNX, whole and in int8, and measure both; or predict with such a folder.

    python examples/export_onnx.py --model_name_or_path RUN --test_file test.csv \\
        --text_column_names title abstract --id_column_name id --output_dir onnx
    python examples/export_onnx.py --model_name_or_path onnx --test_file more.csv \\
        --text_column_names title abstract --id_column_name id --output_dir predicted

RUN is an output folder of run_finetune.py; of one with folds or seeds every model is exported, and
predictions are averaged. The test rows are read, cut into windows (hierarchical ones too) and
written to predictions_test.csv and submission.csv as run_finetune.py does it, with its flags. Each
model.onnx is compared with PyTorch, on rows of several lengths, before it is written.

The first command also writes report.md: rows a second of PyTorch, ONNX and int8 on the processor,
one after the other for each batch and with as many threads (OMP_NUM_THREADS); the greatest
difference of a probability; rows that are decided otherwise; and where the test rows have labels,
the main score with the interval of its difference (bootstrap over rows).

Needs `pip install onnx onnxruntime`; to predict with a folder of ONNX, onnxruntime alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bertchain import cli
from bertchain.arguments import common, competition
from bertchain.errors import InputError, as_input_error, one_of

PRECISIONS = ("fp32", "int8")


@dataclass
class OnnxArguments:
    """What is written."""

    _argument_group_name = "onnx"

    output_dir: str = common.arg("onnx", "Folder for what is written.", common=True)
    precision: str = common.arg(
        "int8", "Model whose predictions are written: fp32 or int8.", common=True
    )
    per_device_eval_batch_size: int = common.arg(32, "Documents in a batch.", common=True)

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)


GROUPS = (
    OnnxArguments,
    common.DataArguments,
    common.TextArguments,
    common.LabelArguments,
    common.EncoderArguments,
    competition.SubmissionArguments,
)

if __name__ == "__main__":
    cli.start_script(__doc__, GROUPS)

import importlib
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bertchain import metrics
from bertchain.competition import ensemble, run_folder, submission
from bertchain.data import batching, tasks, tokenization
from bertchain.models import loading, modeling
from bertchain.probing import scoreboard
from bertchain.runtime import files, outputs, records
from bertchain.training import prediction

logger = logging.getLogger("bertchain")

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # of these, those that a batch has
FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
TOLERANCE = 1e-3  # of a logit beside the largest one; a graph that is wrong is off by far more
OPSET = 17

Run = Callable[[dict[str, Tensor]], np.ndarray]  # a batch -> logits [documents, labels]


class Arguments(NamedTuple):
    """The arguments, by group."""

    onnx: OnnxArguments
    data: common.DataArguments
    text: common.TextArguments
    label: common.LabelArguments
    checkpoint: common.EncoderArguments
    submission: competition.SubmissionArguments
    run_config: dict[str, Any]


def main(argv: cli.Given = None) -> dict[str, Any]:
    """Export and measure, or predict. Returns what all_results.json holds."""
    args = Arguments(*cli.parse(GROUPS, argv))
    cli.start_logging()
    source, folder = Path(args.checkpoint.model_name_or_path), Path(args.onnx.output_dir)
    exported = sorted(path.parent for path in source.glob(f"**/{FILES['fp32']}"))
    check(args, exports=not exported)

    # 1. Rows, as run_finetune.py reads and cuts them to predict
    trained = [] if exported else run_folder.read_members(source)
    path = trained[0].checkpoint if trained else str(source)
    task = tasks.load_task(
        args.data, args.text, args.label, common.SpanArguments(), seed=0, checkpoint=path
    ).only(["test"])
    form = submission.read_sample(args.submission, args.text, task)
    preprocessor = tokenization.Preprocessor.for_checkpoint(path, {})
    rows = task.encoded_by(preprocessor).documents["test"]
    thresholds = ensemble.read_thresholds(source)

    # 2. The models, one after the other: probabilities by precision, added up, and seconds
    models = {own.relative_to(source): own for own in exported}
    models = models or {Path(m.name): Path(m.checkpoint) for m in trained} or {Path(): source}
    total: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with outputs.claim(folder):
        for name, own in models.items():
            if exported:
                runs = {args.onnx.precision: open_session(own / FILES[args.onnx.precision])}
            else:
                runs = export(own, folder / name, "window_types" in rows.column_names)
            logits, took = predict(runs, rows, preprocessor, args.onnx.per_device_eval_batch_size)
            for kind, values in logits.items():
                total[kind] = total.get(kind, 0) + task.spec.probabilities(values) / len(models)
                seconds[kind] = seconds.get(kind, 0.0) + took[kind]

        # 3. Predictions, submission, report
        chosen = total[args.onnx.precision]
        table = folder / "predictions_test.csv"
        prediction.write_predictions(table, task.spec, rows["id"][:], chosen, thresholds)
        if form is not None:
            submission.write_submission(form, folder, task.spec, thresholds)
        if not exported:
            shutil.copy(Path(path) / "config.json", folder)
            preprocessor.tokenizer.save_pretrained(folder)
            ensemble.write_thresholds(folder, thresholds)
        report = compare(total, seconds, rows, task.spec, thresholds)
        files.write_text(folder / "report.md", f"# ONNX\n\n{records.markdown_table(report)}")
        results = {"models": len(models), "threads": torch.get_num_threads()}
        results |= {"rows": report.to_dict("records"), "versions": records.versions()}
        files.write_json(folder / outputs.RESULTS, results)
    print(records.markdown_table(report))
    return results


def check(args: Arguments, exports: bool) -> None:
    """Raises InputError where a package, a file or a classifier is missing."""
    for package in ("onnxruntime", *(["onnx"] if exports else [])):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"the package {package} is missing: pip install {package}")
    if not args.data.test_file or args.data.train_file or args.data.validation_file:
        raise InputError("give --test_file, and no other: nothing is trained here")
    source = args.checkpoint.model_name_or_path
    names = ("test_file", "sample_submission", "model_name_or_path")
    named = {name: args.run_config.get(name) for name in names}
    outputs.check_apart(args.onnx.output_dir, **named)
    outputs.check_unused(args.onnx.output_dir)
    if not (loading.is_document_classifier(source) or run_folder.read_members(source)):
        raise InputError(
            f"--model_name_or_path {source} is no output folder of run_finetune.py, nor one that "
            "was exported here"
        )
    if args.submission.fit_thresholds:
        raise InputError("--fit_thresholds is of training; those of the run are used")


# ---------------------------------------------------------------- export


class Logits(nn.Module):
    """The logits of a classifier alone, of inputs in the order of their names."""

    def __init__(self, model: modeling.DocumentClassifier, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def export(checkpoint: Path, folder: Path, with_types: bool) -> dict[str, Run]:
    """Write a classifier's model.onnx and model_int8.onnx, once the first equals it.

    Args:
        with_types: whether its inputs have token types, as those of pairs.

    Returns:
        what runs it by name: pytorch, fp32, int8.

    Raises:
        InputError: for a classifier of words, and one that gives other logits as ONNX.
    """
    model, _ = loading.load_classifier(checkpoint)
    if model.config.num_spans:
        raise InputError(f"{checkpoint} classifies words inside documents: it is not exported")
    model.config.segments_per_forward = None  # a graph has no loop; batches may be smaller
    names = INPUTS if with_types else INPUTS[:2]
    axes = {0: "documents", 1: "windows", 2: "length"}
    with files.atomic_files(folder) as temporary:
        whole = temporary / FILES["fp32"]
        with silence(), as_input_error(f"{checkpoint}: cannot be exported", Exception):
            torch.onnx.export(
                Logits(model, names).eval(),
                tuple(made_up(model, 2, 2, 8)[name] for name in names),
                str(whole),
                dynamo=False,  # the newer exporter takes 20 times as long, to the same graph
                opset_version=OPSET,
                input_names=list(names),
                output_names=["logits"],
                dynamic_axes=dict.fromkeys(names, axes) | {"logits": {0: "documents"}},
            )
        check_export(model, open_session(whole), checkpoint)
        quantization = importlib.import_module("onnxruntime.quantization")
        with silence():  # it asks for a step that changes nothing here
            quantization.quantize_dynamic(
                whole,
                temporary / FILES["int8"],
                per_channel=True,
                reduce_range=True,  # 8 bits overflow on processors without VNNI
                weight_type=quantization.QuantType.QInt8,
            )

    def run(batch: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return model(**{name: batch[name] for name in names}).logits.numpy()

    runs = {kind: open_session(folder / name) for kind, name in FILES.items()}
    return {"pytorch": run} | runs


@contextmanager
def silence() -> Iterator[None]:
    """Keep back what exporters say of tensors that are no user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def made_up(
    model: modeling.DocumentClassifier, documents: int, windows: int, length: int
) -> dict[str, Tensor]:
    """Make up inputs [documents, windows, length], with padding and windows that are absent."""
    draw = torch.Generator().manual_seed(documents)
    words = model.encoder.get_input_embeddings().weight.shape[0]
    ids = torch.randint(words, (documents, windows, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, 0, length // 2 :] = 0
    if windows > 1:
        mask[1:, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def check_export(model: modeling.DocumentClassifier, run: Run, checkpoint: Path) -> None:
    """Raises InputError where ONNX gives other logits, at other sizes than it was exported at."""
    length = model.config.window_spec().max_seq_length
    for sizes in ((1, 1, length), (3, 1, max(2, length // 3)), (2, 3, length)):
        batch = made_up(model, *sizes)
        with torch.inference_mode():
            wanted = model(**{name: batch[name] for name in INPUTS[:2]}).logits.numpy()
        found = run(batch)
        off = np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
        if not off <= TOLERANCE:  # NaN is not either
            kind = model.config.encoder_config.model_type
            raise InputError(
                f"{checkpoint}: as ONNX its logits are off by {off:.1g}; {kind} is not exported"
            )


# ---------------------------------------------------------------- prediction


def open_session(path: Path) -> Run:
    """Open a model for the processor, with as many threads as PyTorch has.

    Raises:
        InputError: where it cannot be read.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # threads that wait must not take the time of whatever runs beside
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with as_input_error(str(path), Exception):
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    names = [given.name for given in session.get_inputs()]
    return lambda batch: session.run(None, {name: batch[name].numpy() for name in names})[0]


def predict(
    runs: dict[str, Run], rows: Dataset, preprocessor: tokenization.Preprocessor, size: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Predict rows with several runs, batch after batch in turns: what disturbs one disturbs all.

    Returns:
        by name of the run: logits [n, labels]; seconds.
    """
    order = batching.longest_first(rows["length"][:])
    found: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    seconds = dict.fromkeys(runs, 0.0)
    loader = DataLoader(rows.select(order), size, collate_fn=preprocessor.collator)
    for number, batch in enumerate(loader):
        for name, run in runs.items():
            if number == 0:
                run(batch)  # the first time takes longer
            started = time.perf_counter()
            found[name].append(run(batch))
            seconds[name] += time.perf_counter() - started
    back = np.argsort(order)
    return {name: np.concatenate(own)[back] for name, own in found.items()}, seconds


# ---------------------------------------------------------------- report


def compare(
    found: dict[str, np.ndarray],
    seconds: dict[str, float],
    rows: Dataset,
    spec: Any,
    thresholds: Any,
) -> pd.DataFrame:
    """Compare the precisions: speed, predictions beside PyTorch's, and the main score.

    Args:
        found: probabilities or values [n, labels] by precision; PyTorch's, where it is there, is
            what the others are compared with.
        seconds: by precision.
    """
    first, kind = found.get("pytorch"), spec.problem_type
    scale = np.asarray(spec.target_scale) if kind == "regression" else 1.0
    truth = np.asarray(rows["labels"][:]) if "labels" in rows.column_names else None
    metric, _ = metrics.main_metric(kind, len(spec.names))
    table = []
    for name, own in found.items():
        row = {"precision": name, "rows a second": len(rows) / seconds[name]}
        if first is not None:
            row["times PyTorch"] = seconds["pytorch"] / seconds[name]
            row["largest difference"] = float((np.abs(own - first) / scale).max())
        if first is not None and (kind != "regression" or thresholds is not None):
            otherwise = spec.decide(own, thresholds) != spec.decide(first, thresholds)
            row["decided otherwise"] = float(otherwise.any(axis=1).mean())
        if truth is not None:
            row[metric] = metrics.score_function(spec, [])(own, truth)[metric]
        if truth is not None and first is not None:
            row |= scoreboard.paired_difference(kind, own, first, truth)
        table.append(row)
    return pd.DataFrame(table)


if __name__ == "__main__":
    cli.run_script(main)
