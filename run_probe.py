"""Probe frozen encoders: what does each layer know of a task, and what did (further) training
change?

    python run_probe.py --models base=bert-base-uncased itpt=itpt finetuned=finetuned \\
        --train_file train.csv --test_file test.csv --output_dir probed

One forward pass of a model gives every layer and pooling; features are stored memory-mapped and
read again on the next run. A linear probe is trained to convergence on each, its C chosen on
validation. Nothing is chosen on test. Takes hub names, plain transformers folders, and folders of
run_itpt.py and run_finetune.py; of the latter the fine-tuned head is scored as well.

With --spans_column_name, labelled words inside documents are probed in place of documents. With
--describe PATH alone it says what a checkpoint holds and which classes load it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # finds bertchain from a notebook too

from bertchain import cli
from bertchain.arguments import probing

if __name__ == "__main__":
    cli.start_script(__doc__, probing.GROUPS)

import logging
from functools import partial
from typing import Any

import pandas as pd

from bertchain.data import tasks
from bertchain.models import describe
from bertchain.probing import (
    analyses,
    baselines,
    by_class,
    by_row,
    comparisons,
    drift,
    erasure,
    label_geometry,
    layer_probes,
    own_head,
    probed_models,
    probes,
    report,
    scoreboard,
    torch_probes,
)
from bertchain.runtime import distributed, outputs
from bertchain.training import outcome

logger = logging.getLogger("bertchain")


@cli.callable_again
def main(argv: cli.Given = None, **arguments: Any) -> outcome.RunResult:
    """Probe as the arguments say: flags, keywords, a dict or a file; else the command line.

    Returns the main scores by what has them, with the folder and its tables beside them.
    """
    # 0. A checkpoint is to be described: that needs no data
    argv = cli.as_flags(argv, arguments)
    path = cli.value_of("describe", argv)
    if path is not None:
        trusted = cli.is_true("trust_remote_code", argv)
        print(describe.describe_checkpoint(path, trust_remote_code=trusted))
        return outcome.RunResult({}, "")

    # 1. Arguments
    args = probing.Arguments(*cli.parse(probing.GROUPS, argv))
    folder, seed = Path(args.run.output_dir), args.run.seed
    cli.start_logging(args.run.disable_tqdm)
    probing.check_combinations(args)
    paths = probed_models.model_paths(args.models)
    distributed.start_processes()

    # 2. Labelled documents, or labelled words inside them
    task = tasks.load_task(*args.sources, seed=seed)
    task = task.with_validation(args.label.validation_split, seed)
    probing.check_problem_type(args.analyses.names, task.spec.problem_type)
    task = task.with_concepts(args.analyses.concept_column_names, **args.rows_read)

    with outputs.claim(folder):
        # 3. Features of every layer of each model, each process its share
        models = [
            probed_models.compute_features(name, path, task, args) for name, path in paths.items()
        ]
        random = probed_models.random_models(*next(iter(paths.items())), task, args)
        distributed.close_process_group()
        if not distributed.is_main_process():
            return outcome.RunResult({}, folder)

        # 4. What needs no encoder; probes on each layer; the head a model was fine-tuned with
        board = score_all(task, models, random, args)

        # 5. Analyses, in the order of their names
        tables: dict[str, pd.DataFrame] = {}
        for name in args.analyses.names:
            tables |= ANALYSES[name](models, task, board, args)
        tables = label_geometry.join_pairs(tables, task.spec.names)

        # 6. Headline, tables, page; the arguments repeat the run
        headline = scoreboard.headline_table(board, board.models, args.probes.probes)
        tables |= comparisons.headline_comparisons(board, headline) | by_class.class_tables(board)
        splits = by_row.write_rows(folder, board, task, models, args.run)
        hub_kwargs = args.models.hub_kwargs
        descriptions = [probed_models.describe(model, task, **hub_kwargs) for model in models]
        report.write_report(folder, board, headline, tables, models, descriptions, args.run_config)
    headline = headline.drop(columns="key")
    logger.info("Wrote %s\n%s", folder / "report.html", headline.to_string(index=False))
    return outcome.RunResult(scoreboard.main_scores(headline), folder, splits, headline=headline)


# ---------------------------------------------------------------- probes


def score_all(
    task: tasks.Task,
    models: list[probed_models.ProbedModel],
    random: list[probed_models.ProbedModel],
    args: probing.Arguments,
) -> scoreboard.Scoreboard:
    """Score baselines, probes on each layer of each model, and the heads that models have."""
    labels = {split: task.hard_labels(split) for split in task.labelled_splits}
    board = scoreboard.Scoreboard(labels, task.spec, args.run.seed, args.run.keep_all)
    chosen, solver = chosen_probes(args, task), args.probes.probe_solver
    baselines.add_baselines(board, {split: task.texts(split) for split in labels})
    layer_probes.add_random(board, random, solver)
    for model in models:
        layer_probes.add_probes(board, model, chosen, solver)
        baselines.add_static(board, model)
        own_head.add_own_head(board, model)
    return board


def chosen_probes(args: probing.Arguments, task: tasks.Task) -> dict[str, layer_probes.Probe]:
    """The probes of --probes: functions of features and labels, both by split."""
    options, seed = args.probes, args.run.seed
    held_out = "validation" not in task.tables and not task.num_spans
    other_splits = range(seed + 1, seed + options.probe_seeds) if held_out else ()
    every = {
        "linear": partial(
            probes.fit_over_splits, share=args.label.validation_split, seeds=other_splits
        ),
        "knn": probes.fit_knn_probe,
        "mlp": partial(
            torch_probes.fit_mlp_probe,
            widths=options.mlp_widths,
            repeats=options.mlp_repeats,
            seed=args.run.seed,
        ),
        "mix": torch_probes.fit_mix_probe,  # of all layers at once
    }
    return {name: every[name] for name in options.probes}


# ---------------------------------------------------------------- analyses

# Each takes the models, of which the others are compared with the first, and returns tables by file
# name. What it measures of linear probes it adds to the scoreboard.

Models = list[probed_models.ProbedModel]
Tables = dict[str, pd.DataFrame]


def change(
    models: Models, task: tasks.Task, board: scoreboard.Scoreboard, args: probing.Arguments
) -> Tables:
    """Measure how far each layer moved from the first model's, and what that gained; compare any
    two models and layers."""
    first, *later = models
    later_paths = {model.name: model.path for model in later}
    changed = drift.weight_changes_since(first.path, later_paths, **args.models.hub_kwargs)
    features = {model.name: model.features[board.split] for model in models}
    tables = {"drift": drift.drift_table(features, first.compared_pooling, changed)}
    gained = comparisons.gains(board, [model.name for model in models])
    if len(gained):
        tables["gains"] = gained
    return tables | {"layer_comparisons": comparisons.layer_comparisons(board)}


def mdl(
    models: Models, task: tasks.Task, board: scoreboard.Scoreboard, args: probing.Arguments
) -> Tables:
    """Measure the description length of the training labels."""
    for model in models:
        analyses.add_code_length(board, model, args.probes.probe_seeds)
    return {}


def control(
    models: Models, task: tasks.Task, board: scoreboard.Scoreboard, args: probing.Arguments
) -> Tables:
    """Measure selectivity against a control task, which gives each word a random label."""
    texts = {split: task.texts(split) for split in board.labels}
    for model in models:
        analyses.add_selectivity(board, model, texts, args.probes.probe_solver)
    return {}


def directprobe(
    models: Models, task: tasks.Task, board: scoreboard.Scoreboard, args: probing.Arguments
) -> Tables:
    """Cluster the training rows by DirectProbe; distances between labels, and within them."""
    table, pairs, each = label_geometry.directprobe_table(
        {model.name: model.at(None, model.compared_pooling) for model in models},
        board.labels,
        wanted=args.features.probe_layers,
        split=board.split,
        most=args.analyses.points,
        seed=args.run.seed,
        folder=Path(args.run.output_dir) / "decisions",
    )
    return {"directprobe": table, "directprobe_pairs": pairs, "label_distances": each}


def geometry(
    models: Models, task: tasks.Task, board: scoreboard.Scoreboard, args: probing.Arguments
) -> Tables:
    """Measure how the labels lie, by hulls and by centroids, and how they moved."""
    table, pairs, paths = label_geometry.label_geometry_table(
        {model.name: model.at(None, model.compared_pooling) for model in models},
        board.labels,
        wanted=args.features.probe_layers,
        split=board.split,
        most=args.analyses.points,
        seed=args.run.seed,
        origins=probed_models.model_origins(args.models),
    )
    paths = {"centroid_paths": paths} if len(paths) else {}
    return {"geometry": table, "geometry_pairs": pairs} | paths


def erase(
    models: Models, task: tasks.Task, board: scoreboard.Scoreboard, args: probing.Arguments
) -> Tables:
    """Measure what the task loses when another concept is erased from the features."""
    return {"erasure": erasure.erasure_table(models, board, task.concepts)}


ANALYSES = {
    "change": change,
    "mdl": mdl,
    "control": control,
    "directprobe": directprobe,
    "geometry": geometry,
    "erasure": erase,
}


if __name__ == "__main__":
    cli.run_script(main)
