"""The arguments of run_probe.py."""

from dataclasses import dataclass

from bertchain.arguments.common import arg
from bertchain.errors import InputError, at_least, one_of

OF_LABELS = ("directprobe", "geometry")  # analyses of where labels lie
ANALYSES = ("change", "mdl", "control", *OF_LABELS, "none")


@dataclass
class ProbeArguments:
    _argument_group_name = "probing"

    models: list[str] = arg([], "name=path ..., path being a hub name or a folder.")
    describe: str | None = arg(
        None, "Say what this checkpoint holds and which classes load it; needs nothing else."
    )
    token_pooling: list[str] = arg(["cls", "mean"], "Any of cls, mean, max, last.")
    probes: list[str] = arg(["linear"], "Any of linear, knn, mlp, mix (of all layers, learned).")
    mlp_widths: list[int] = arg([32, 128], "All pairs are tried for the two layers of mlp.")
    mlp_repeats: int = arg(3, "Random starts of mlp, whose scores are averaged.")
    analyses: list[str] = arg(
        ["change"],
        "change (between models), mdl (bits to tell the labels), control (random labels for each "
        "word: selectivity), directprobe (clusters of labels), geometry (how labels lie), or none.",
    )
    checkpoints_of: str | None = arg(
        None, "A run of run_finetune.py with --keep_checkpoints: its start and each checkpoint."
    )
    probe_layers: list[int] = arg([], "Which layers are probed; -1 is the last. Default: all.")
    directprobe_points: int = arg(5000, "Training rows that directprobe and geometry take.")
    output_dir: str = arg("probed", "For report.md, results.csv and the figure.")
    features_dir: str | None = arg(None, "For stored features. Default: features in output_dir.")
    feature_dtype: str = arg("float32", "Of stored features: float32 or float16.")
    half_precision: bool = arg(False, "Compute features in bf16 (fp16 without it) on a GPU.")
    tokens_per_batch: int = arg(8192, "Tokens a forward pass, padding included.")
    trust_remote_code: bool = arg(False, "Run code that a hub model brings along.")
    probe_solver: str = arg(
        "auto",
        "cores: linear probes one by one, on each core; batched: of all layers as one solve on the "
        "GPU (or CPU); auto: batched where there is a GPU.",
    )
    seed: int = arg(42, "Of the validation split.")

    def __post_init__(self) -> None:
        if not self.models and self.checkpoints_of is None:
            raise InputError("give --models name=path ...")
        for pooling in self.token_pooling:
            one_of("token_pooling", pooling, ("cls", "mean", "max", "last"))
        if len(set(self.token_pooling)) < len(self.token_pooling):
            raise InputError(f"--token_pooling {' '.join(self.token_pooling)}: one occurs twice")
        if "linear" not in self.probes:
            raise InputError("--probes must name linear, which chooses the layer and compares")
        for probe in self.probes:
            one_of("probes", probe, ("linear", "knn", "mlp", "mix"))
        for analysis in self.analyses:
            one_of("analyses", analysis, ANALYSES)
        for width in self.mlp_widths:
            at_least("mlp_widths", width, 1)
        at_least("mlp_repeats", self.mlp_repeats, 1)
        one_of("probe_solver", self.probe_solver, ("auto", "cores", "batched"))
        one_of("feature_dtype", self.feature_dtype, ("float32", "float16"))
        at_least("tokens_per_batch", self.tokens_per_batch, 1)
        at_least("directprobe_points", self.directprobe_points, 10)

    @property
    def of_labels(self) -> bool:
        return any(analysis in self.analyses for analysis in OF_LABELS)
