"""The models of a run: which they are, and the features they give."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from bertchain.arguments.probing import LISTS, Arguments, ModelsArguments
from bertchain.cli import read_arguments
from bertchain.data.contamination import find_probed, find_seen
from bertchain.data.tasks import Task
from bertchain.data.tokenization import Preprocessor
from bertchain.errors import InputError, as_input_error
from bertchain.models import layers as structure
from bertchain.models.describe import describe_checkpoint
from bertchain.models.loading import load_encoder, new_encoder
from bertchain.models.modeling import num_blocks
from bertchain.models.weights import some
from bertchain.probing.features import find_device, make_store
from bertchain.probing.scoreboard import RANDOM
from bertchain.runtime.checkpoints import complete_checkpoints

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- which models


def model_paths(options: ModelsArguments) -> dict[str, str]:
    """Name -> path of the models to probe, the first of which others are compared with."""
    return named_models(options.models) | named_checkpoints(options.checkpoints_of)


def named_models(arguments: list[str]) -> dict[str, str]:
    """Parse name=path, or a path alone, whose last part is the name.

    Raises:
        InputError: for a name that occurs twice, and for an empty name or path.
    """
    models = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        name, path = (name, path) if equals else (Path(argument).name, argument)
        if name in models:
            raise InputError(f"--models: the name {name} occurs twice")
        if not name or not path:
            raise InputError(f"--models {argument}: write name=path")
        models[name] = path
    return models


def named_checkpoints(run: str | None) -> dict[str, str]:
    """List what a run of run_finetune.py started from, and its checkpoints, in order.

    Raises:
        InputError: if the run kept no checkpoints.
    """
    if run is None:
        return {}
    checkpoints = complete_checkpoints(run)
    if not checkpoints:
        raise InputError(
            f"--checkpoints_of {run}: holds no whole checkpoint-* folder; fine-tune with "
            "--keep_checkpoints --save_strategy epoch"
        )
    file = str(Path(run) / "run_args.yaml")
    start = read_arguments(file).get("model_name_or_path")
    if not isinstance(start, str):
        raise InputError(f"{file} names no model_name_or_path; was it written by run_finetune.py?")
    return {"start": start} | {p.name.replace("checkpoint-", "step "): str(p) for p in checkpoints}


def model_origins(options: ModelsArguments) -> dict[str, str]:
    """Name -> name of the model that each came from: of a checkpoint the one before, else the
    first of all."""
    given, kept = named_models(options.models), [*named_checkpoints(options.checkpoints_of)]
    first = next(iter([*given, *kept]))
    return dict.fromkeys(given, first) | dict(zip(kept, [*kept[:1], *kept[:-1]], strict=True))


def resolve_layers(wanted: list[int], count: int) -> list[int]:
    """Numbers of the layers to probe, 0 = embeddings, sorted.

    Args:
        wanted: as given, -1 = the last; none: all.
        count: of all layers.

    Raises:
        InputError: for a layer that does not exist.
    """
    bad = [layer for layer in wanted if not -count <= layer < count]
    if bad:
        raise InputError(
            f"--probe_layers {bad[0]}: layers are 0 to {count - 1}, or -1 for the last"
        )
    return sorted({layer % count for layer in wanted}) or list(range(count))


def resolve_concatenated(wanted: list[str], blocks: int) -> dict[str, tuple[int, ...]]:
    """Numbers of the layers that are read side by side, by the name of each such list.

    Args:
        wanted: as given: first4, last4, all, or numbers as 0,6,12, which are named "0 6 12".
        blocks: of the encoder.

    Raises:
        InputError: for a layer that does not exist, or occurs twice.
    """
    found = {}
    for given in wanted:
        try:
            numbers = tuple(structure.resolve_layers(given, blocks))
        except ValueError as error:
            raise InputError(
                f"--concat_layers {given}: write different layers from 0 to {blocks}, or "
                f"{', '.join(LISTS)}"
            ) from error
        found[given if given in LISTS else " ".join(map(str, numbers))] = numbers
    return found


# ---------------------------------------------------------------- what they give


@dataclass(frozen=True)
class ProbedModel:
    """What a model gave.

    Attributes:
        features: by split, [rows, layers, poolings, hidden], memory-mapped.
        poolings: names of the poolings.
        layers: numbers of the layers that are probed.
        concatenated: name -> numbers of layers that are read side by side.
        embeddings: the table of word embeddings [tokens, features], where static is asked for.
        windows: encoded documents by split, as its preprocessor made them.
        description: for the table "What was probed".
    """

    name: str
    path: str
    features: dict[str, np.ndarray]
    poolings: list[str]
    layers: list[int]
    windows: dict[str, Dataset]
    preprocessor: Preprocessor
    description: dict[str, Any]
    concatenated: dict[str, tuple[int, ...]] = field(default_factory=dict)
    embeddings: np.ndarray | None = None

    def at(self, layer: int | tuple[int, ...] | None, pooling: int) -> dict[str, np.ndarray]:
        """Features by split of one layer [rows, hidden], of all [rows, layers, hidden], or of
        several side by side [rows, several * hidden]."""
        if isinstance(layer, tuple):
            taken = {s: x[:, list(layer), pooling] for s, x in self.features.items()}
            return {split: x.reshape(len(x), -1) for split, x in taken.items()}
        which = slice(None) if layer is None else layer
        return {split: x[:, which, pooling] for split, x in self.features.items()}

    @property
    def compared_pooling(self) -> int:
        """Number of the pooling by which models are compared, where only one is."""
        return self.poolings.index("mean") if "mean" in self.poolings else 0


def compute_features(
    name: str, path: str, task: Task, args: Arguments, random_seed: int | None = None
) -> ProbedModel:
    """Encode the documents with a model; features that are stored already are read.

    Args:
        random_seed: of random weights in place of the model's own.

    Raises:
        InputError: if the model cannot be loaded, or lacks one of --probe_layers.
    """
    hub_kwargs, options = args.models.hub_kwargs, args.features
    preprocessor = Preprocessor.for_checkpoint(
        path, args.window.given, task.num_spans, **hub_kwargs
    )
    windows = preprocessor.encode(task.documents, f"{name}, ")
    with as_input_error(f"--models {name}={path}", Exception):
        if random_seed is None:
            encoder, missing = load_encoder(path, **hub_kwargs)
        else:
            encoder, missing = new_encoder(path, random_seed, **hub_kwargs), []
    if missing:
        logger.warning("Not in %s, random: %s", path, some(missing))
    blocks = num_blocks(encoder.config)
    layers = resolve_layers(options.probe_layers, blocks + 1)
    concatenated = resolve_concatenated(options.concat_layers, blocks)
    store = make_store(
        Path(options.features_dir or Path(args.run.output_dir) / "features"),
        encoder.to(find_device()),
        preprocessor,
        options.feature_dtype,
        options.half_precision,
    )
    features = {
        split: store.of(rows, args.token_pooling, options.tokens_per_batch, f"{name}, {split}")
        for split, rows in windows.items()
    }
    description = {"model": name, "path": path, **_describe(encoder)}
    description |= {"text": preprocessor.windows.truncation}
    description |= {"weights not in the checkpoint": ", ".join(missing) or "none"}
    static = "static" in args.probes.baselines
    return ProbedModel(
        name=name,
        path=path,
        features=features,
        poolings=args.token_pooling,
        layers=layers,
        windows=windows,
        preprocessor=preprocessor,
        description=description,
        concatenated=concatenated,
        embeddings=encoder.get_input_embeddings().weight.detach().cpu().numpy() if static else None,
    )


def random_models(name: str, path: str, task: Task, args: Arguments) -> list[ProbedModel]:
    """Compute features of the same encoder with random weights, from several seeds, if asked."""
    if "random_encoder" not in args.probes.baselines:
        return []
    seeds = range(args.run.seed, args.run.seed + max(3, args.probes.probe_seeds))
    called = name + RANDOM
    return [compute_features(called, path, task, args, random_seed=seed) for seed in seeds]


def _describe(encoder: nn.Module) -> dict[str, Any]:
    return {
        "encoder": type(encoder).__name__,
        "blocks": num_blocks(encoder.config),
        "hidden": encoder.config.get_text_config().hidden_size,
        "parameters": sum(p.numel() for p in encoder.parameters()),
    }


def describe(model: ProbedModel, task: Task, **hub_kwargs: Any) -> dict[str, Any]:
    """Describe a model, what its checkpoint holds, and which documents it has seen before."""
    holds = {"holds": describe_checkpoint(model.path, **hub_kwargs)}
    seen = find_seen(task.documents.get("test"), model.path, **hub_kwargs)
    seen |= find_probed(task.documents, model.path, **hub_kwargs)
    return model.description | holds | seen
