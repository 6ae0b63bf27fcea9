"""Train a vocabulary for any language, and write the config of a small BERT to go with it.

    python examples/make_vocabulary.py --train_file text.csv --vocab_size 6000 --output_dir zh
    python run_itpt.py --config_name zh --tokenizer_name zh --train_file text.csv ...

WordPiece, as BERT: words split at spaces and punctuation, Chinese at every character.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer
from transformers import BertConfig, PreTrainedTokenizerFast

from bertchain import cli
from bertchain.data import documents, tables

NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def main() -> None:
    """Write tokenizer and config."""
    options = read_arguments()
    tokenizer = train(read_texts(options), options.vocab_size, options.cased)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=max(1, options.hidden_size // 64),
        intermediate_size=4 * options.hidden_size,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(options.output_dir)
    config.save_pretrained(options.output_dir)
    print(f"{options.output_dir}: {len(tokenizer)} tokens, {options.num_hidden_layers} blocks")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_file", nargs="+", required=True, help="tables of text")
    parser.add_argument("--text_column_names", nargs="+", default=["text"])
    parser.add_argument("--encoding", default="utf-8", help="encoding of text files")
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--cased", action="store_true", help="keep upper case and accents")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_hidden_layers", type=int, default=4)
    parser.add_argument("--output_dir", required=True)
    return parser.parse_args()


def read_texts(options: argparse.Namespace) -> Iterator[str]:
    for path in options.train_file:
        table = tables.read_table(path, encoding=options.encoding)
        yield from documents.to_documents(table, path, options.text_column_names)["text"]


def train(texts: Iterator[str], size: int, cased: bool) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer of `size` tokens with BERT's special tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=NAMES["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=size, special_tokens=list(NAMES.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **NAMES,
    )


if __name__ == "__main__":
    cli.run_script(main)
