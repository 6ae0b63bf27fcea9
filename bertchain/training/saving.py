"""A classifier's folder: weights with their code, tokenizer, encoder alone, model card."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bertchain.data.contamination import read_fingerprint, write_fingerprint
from bertchain.data.labels import LabelSpec
from bertchain.metrics import is_score
from bertchain.models.modeling import DocumentClassifier
from bertchain.runtime.files import replacing_files, write_text
from bertchain.runtime.records import model_card


def write_model(
    model: DocumentClassifier,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    results: dict[str, Any],
    spec: LabelSpec,
    as_run: dict[str, Any],
    arguments: dict[str, Any],
    with_encoder: bool = True,
) -> None:
    """The classifier with its code; and the encoder alone as a plain `AutoModel` checkpoint, which
    is left out where many models are kept.

    Args:
        results: whose scores stand in the model card.
        as_run: all arguments; arguments: those that differ from the defaults, for the card.
    """
    hashes = read_fingerprint(as_run["model_name_or_path"], revision=as_run["model_revision"])
    with replacing_files(folder) as temporary:
        alone = [(model.encoder, temporary / "encoder")] if with_encoder else []
        for part, where in ((model, temporary), *alone):
            part.save_pretrained(where)
            tokenizer.save_pretrained(where)
            if hashes is not None:  # what the encoder has seen stays with it
                write_fingerprint(where, hashes)
    scores = {k: v for k, v in results.items() if is_score(k)}
    card = model_card(
        title=folder.name,
        base_model=as_run["model_name_or_path"],
        pipeline_tag="text-classification",
        summary=f"{spec.problem_type} document classifier, {len(spec.names)} labels: "
        + ", ".join(spec.names[:20])
        + (" ..." if len(spec.names) > 20 else ""),
        usage=USAGE_OF_WORDS if model.config.slots else USAGE,
        metrics=scores,
        arguments=arguments,
    )
    write_text(folder / "README.md", card)


USAGE = """
from transformers import pipeline

classify = pipeline("text-classification", model="PATH OF THIS FOLDER", trust_remote_code=True)
classify("Some text")

# the encoder alone, without the head
from transformers import AutoModel
encoder = AutoModel.from_pretrained("PATH OF THIS FOLDER/encoder", add_pooling_layer=False)
"""


USAGE_OF_WORDS = """
# labels of words: python run_finetune.py --model_name_or_path PATH --test_file more.jsonl \\
#     --task_level token (or span, pair, as it was trained)

# the encoder alone, without the head
from transformers import AutoModel
encoder = AutoModel.from_pretrained("PATH OF THIS FOLDER/encoder", add_pooling_layer=False)
"""
