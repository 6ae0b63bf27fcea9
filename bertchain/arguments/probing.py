"""The arguments of run_probe.py beside those that scripts share."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from bertchain.arguments.common import (
    DataArguments,
    LabelArguments,
    SpanArguments,
    TextArguments,
    WindowArguments,
    arg,
)
from bertchain.errors import InputError, at_least, one_of
from bertchain.models.folders import check_model_folder
from bertchain.runtime import outputs

POOLINGS = ("cls", "mean", "max", "last")
LISTS = ("first4", "last4", "all")  # names of several layers
BASELINES = ("random_encoder", "static")  # beside the majority and TF-IDF, which are always there
PROBES = ("linear", "knn", "mlp", "mix")
OF_LABELS = ("directprobe", "geometry")  # analyses of where labels lie
ANALYSES = ("change", "mdl", "control", *OF_LABELS, "erasure", "none")


@dataclass
class ModelsArguments:
    """Which encoders are probed."""

    _argument_group_name = "models"

    models: list[str] = arg(
        [], "Encoders as name=path ..., each path a hub name or a folder.", common=True
    )
    checkpoints_of: str | None = arg(
        None,
        "Folder of run_finetune.py --keep_checkpoints: probes its start and each checkpoint.",
        common=True,
    )
    describe: str | None = arg(
        None,
        "Checkpoint to describe: what it holds and which classes load it. Needs nothing else.",
        common=True,
    )
    trust_remote_code: bool = arg(False, "Run code that a hub model brings along.")

    def __post_init__(self) -> None:
        if not self.models and self.checkpoints_of is None:
            raise InputError("give --models name=path ...")
        for model in self.models:
            check_model_folder(model.partition("=")[2] or model)

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        """For every `from_pretrained`."""
        return {"trust_remote_code": self.trust_remote_code}


@dataclass
class FeatureArguments:
    """Which features are computed, and how they are stored."""

    _argument_group_name = "features"

    token_pooling: list[str] = arg(
        [],
        "Vectors of a document: any of cls, mean, max, last.",
        shown="cls mean",
        common=True,
    )
    probe_layers: list[int] = arg(
        [], "Layers to probe: 0 = embeddings, -1 = the last.", shown="all", common=True
    )
    concat_layers: list[str] = arg(
        [],
        "Layers that a linear probe reads side by side: any of first4, last4, all, or numbers "
        "joined by commas, as 0,6,12.",
        shown="none",
    )
    features_dir: str | None = arg(
        None, "Folder of stored features.", shown="features in output_dir"
    )
    feature_dtype: str = arg("float32", "Number format of stored features: float32 or float16.")
    half_precision: bool = arg(
        False, "Compute features in bf16 (fp16 without it) on a GPU.", common=True
    )
    tokens_per_batch: int = arg(8192, "Tokens of a forward pass, padding included.")

    def __post_init__(self) -> None:
        for pooling in self.token_pooling:
            one_of("token_pooling", pooling, POOLINGS)
        if len(set(self.token_pooling)) < len(self.token_pooling):
            raise InputError(f"--token_pooling {' '.join(self.token_pooling)}: one occurs twice")
        for layers in self.concat_layers:
            if layers not in LISTS and len(layers.replace(",", " ").split()) < 2:
                raise InputError(
                    f"--concat_layers {layers} is none of {', '.join(LISTS)}, nor several layers "
                    "joined by commas, as 0,6,12"
                )
        one_of("feature_dtype", self.feature_dtype, ("float32", "float16"))
        at_least("tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class ProbeArguments:
    """Which probes are trained."""

    _argument_group_name = "probes"

    probes: list[str] = arg(
        ["linear"],
        "Kinds of probes: linear (always), knn, mlp, mix (of all layers, learned).",
        common=True,
    )
    mlp_widths: list[int] = arg([32, 128], "Widths tried for each of the two layers of mlp.")
    mlp_repeats: int = arg(3, "Random starts of mlp, whose scores are averaged.")
    baselines: list[str] = arg(
        [],
        "Baselines beside the majority and TF-IDF: random_encoder (the first model with random "
        "weights), static (word embeddings alone, without positions).",
        shown="none",
        common=True,
    )
    probe_seeds: int = arg(
        1,
        "Random starts that scores are averaged over and intervals allow for: of the validation "
        "split where none is given, of the order of mdl, of random_encoder (there at least 3).",
    )
    probe_solver: str = arg(
        "auto",
        "Solver of linear probes. cores: one by one, on each core; batched: all layers as one "
        "solve on the GPU (or CPU); auto: batched where there is a GPU.",
    )

    def __post_init__(self) -> None:
        if "linear" not in self.probes:
            raise InputError("--probes must name linear, which chooses the layer and compares")
        for probe in self.probes:
            one_of("probes", probe, PROBES)
        for baseline in self.baselines:
            one_of("baselines", baseline, BASELINES)
        at_least("probe_seeds", self.probe_seeds, 1)
        for width in self.mlp_widths:
            at_least("mlp_widths", width, 1)
        at_least("mlp_repeats", self.mlp_repeats, 1)
        one_of("probe_solver", self.probe_solver, ("auto", "cores", "batched"))


@dataclass
class AnalysisArguments:
    """What is measured beside the scores of probes."""

    _argument_group_name = "analyses"

    analyses: list[str] = arg(
        ["change"],
        "What to measure beside scores: change (between models and layers), mdl (bits to tell the "
        "labels), control (random labels for each word: selectivity), directprobe (clusters of "
        "labels), geometry (how labels lie), erasure (what is lost with a concept), or none.",
        common=True,
    )
    concept_column_names: list[str] = arg(
        [],
        "Columns with labels of other tasks, which erasure erases; with spans, fields beside words "
        "and label.",
        shown="none",
    )
    directprobe_points: int | None = arg(
        None, "Most training rows that directprobe and geometry use.", shown="5000"
    )

    def __post_init__(self) -> None:
        for analysis in self.analyses:
            one_of("analyses", analysis, ANALYSES)
        at_least("directprobe_points", self.directprobe_points, 10)
        if self.directprobe_points and not set(OF_LABELS) & {*self.analyses}:
            raise InputError("--directprobe_points needs --analyses directprobe or geometry")
        if ("erasure" in self.analyses) != bool(self.concept_column_names):
            raise InputError(
                "--analyses erasure and --concept_column_names need each other: which columns hold "
                "labels of other tasks?"
            )
        twice = [n for n in self.concept_column_names if self.concept_column_names.count(n) > 1]
        if twice:
            raise InputError(f"--concept_column_names: {twice[0]} occurs twice")

    @property
    def names(self) -> list[str]:
        """What to run, each once, in the order given."""
        return [name for name in dict.fromkeys(self.analyses) if name != "none"]

    @property
    def points(self) -> int:
        """Most training rows that analyses of where labels lie use."""
        return self.directprobe_points or 5000


@dataclass
class RunArguments:
    """Where results go."""

    _argument_group_name = "run"

    output_dir: str = arg("probed", "Folder for report.html, results.csv and more.", common=True)
    save_predictions: str = arg(
        "chosen",
        "Probes whose predictions of each row are written. chosen: of each kind the best layer on "
        "validation, and the best of the last one; all; or none.",
        common=True,
    )
    save_weights: bool = arg(
        False,
        "Write the weights of these probes to probe_weights.npz; with none, those of the chosen.",
    )
    seed: int = arg(42, "Seed of the validation split and of all that is drawn.", common=True)
    disable_tqdm: bool = arg(False, "Show no progress bars.")

    def __post_init__(self) -> None:
        one_of("save_predictions", self.save_predictions, ("chosen", "all", "none"))

    @property
    def keep_all(self) -> bool:
        """Whether predictions of every probe are kept, not of the chosen ones alone."""
        return self.save_predictions == "all"


GROUPS = (
    DataArguments,
    TextArguments,
    LabelArguments,
    SpanArguments,
    WindowArguments,
    ModelsArguments,
    FeatureArguments,
    ProbeArguments,
    AnalysisArguments,
    RunArguments,
)


class Arguments(NamedTuple):
    """The arguments of run_probe.py, by group."""

    data: DataArguments
    text: TextArguments
    label: LabelArguments
    span: SpanArguments
    window: WindowArguments
    models: ModelsArguments
    features: FeatureArguments
    probes: ProbeArguments
    analyses: AnalysisArguments
    run: RunArguments
    run_config: dict[str, Any]  # every argument that is not None, to repeat the run

    @property
    def sources(self) -> tuple[DataArguments, TextArguments, LabelArguments, SpanArguments]:
        """Where documents and labels come from."""
        return self.data, self.text, self.label, self.span

    @property
    def rows_read(self) -> dict[str, Any]:
        """Arguments of `Task.with_concepts`: which rows of the tables were read, and how."""
        return {
            "limits": self.data.limits,
            "spans_column": self.span.spans_column_name,
            "id_column": self.text.id_column_name,
        }

    @property
    def token_pooling(self) -> list[str]:
        """Poolings of a document; labelled spans have one: the mean over their tokens."""
        if self.span.spans_column_name:
            return ["word"]
        return self.features.token_pooling or ["cls", "mean"]


def check_combinations(args: Arguments) -> None:
    """Check combinations of arguments across groups.

    Raises:
        InputError: naming the arguments, where one needs another or excludes it.
    """
    outputs.check_apart(
        args.run.output_dir,
        models=[model.partition("=")[2] or model for model in args.models.models],
        checkpoints_of=args.models.checkpoints_of,
        dataset_name=args.data.dataset_name,
        **{f"{split}_file": path for split, path in args.data.files.items()},
    )
    outputs.check_unused(args.run.output_dir)
    if args.data.dataset_name is None and args.data.train_file is None:
        raise InputError("a probe is trained: give --train_file or --dataset_name")
    if args.label.validation_split == 0 and args.data.validation_file is None:
        raise InputError("--validation_split 0: a probe chooses C on validation rows; give some")
    if args.span.spans_column_name:
        if args.features.token_pooling:
            raise InputError("--token_pooling does not go with --spans_column_name")
    elif "control" in args.analyses.names:
        raise InputError("--analyses control needs --spans_column_name: words, which occur again")


def check_problem_type(analyses: list[str], problem_type: str) -> None:
    """Check that the analyses know what to do with the labels.

    Raises:
        InputError: naming an analysis that needs labels of another kind.
    """
    if "mdl" in analyses and problem_type == "regression":
        raise InputError("--analyses mdl needs labels, which numbers are not")
    for analysis in OF_LABELS:
        if analysis in analyses and problem_type != "single_label":
            raise InputError(
                f"--analyses {analysis} needs one label a row, not {problem_type} labels"
            )
