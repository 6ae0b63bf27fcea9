"""Tiny tokenizers and models, built from a config and a local vocabulary: no network."""

import contextlib
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # also for processes that tests start; before torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pandas as pd
import pytest
import torch
from forking import PICTURES, spare_disk_and_drawing, stand_in_path
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback

from bertchain.runtime import html

spare_disk_and_drawing()  # see the fixture `pictures`
SPARE = html.spare_the_run
html.spare_the_run = contextlib.nullcontext  # a page that cannot be made fails the test
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

WORDS = [
    "red",
    "green",
    "blue",
    "black",
    "white",
    "cat",
    "dog",
    "bird",
    "fish",
    "horse",
    "runs",
    "sleeps",
    "eats",
    "sings",
    "jumps",
    "the",
    "a",
    "of",
    "in",
    "on",
    "river",
    "mountain",
    "forest",
    "city",
    "house",
    "happy",
    "sad",
    "angry",
    "calm",
    "bright",
    "old",
    "new",
    "small",
    "large",
    "quick",
    "slow",
]
TOPICS = {  # the words that give a class away
    "animals": ["cat", "dog", "bird", "fish", "horse"],
    "places": ["river", "mountain", "forest", "city", "house"],
    "moods": ["happy", "sad", "angry", "calm", "bright"],
}
BASICS = {  # of fine-tuning the tiny model on the easy task
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-3,
    "num_train_epochs": 4,
    "token_pooling": "mean",
    "id_column_name": "id",
    "disable_tqdm": True,
    "use_cpu": True,
}
PRETRAINING = {  # basics of further pretraining of the tiny model on the easy task
    "max_train_samples": 60,
    "learning_rate": 5e-3,
    "validation_split": 0.2,
    "disable_tqdm": True,
    "use_cpu": True,
}
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece: whole words, and single letters for the rest."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIALS, *WORDS, *letters, *(f"##{c}" for c in letters), *".,!?0123456789"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, SPECIALS, strict=True)),
    )


def byte_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: with the special tokens of RoBERTa, or with none, as GPT-2."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind == "roberta" else ["<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=False
        )
        names = dict(bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>")
        names |= dict(sep_token="</s>", unk_token="<unk>", mask_token="<mask>")
    else:
        names = dict(eos_token="<|end|>", bos_token="<|end|>", unk_token="<|end|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's unigram model: whole words after a space, letters, and some ideographs."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    scored = [(piece, 0.0) for piece in specials] + [("▁", -3.0)]
    scored += [(f"▁{word}", -2.0) for word in WORDS]
    scored += [(piece, -5.0) for piece in [*letters, *".,!?0123456789", *"北京大学生活的研究"]]
    tokenizer = Tokenizer(models.Unigram([*dict(scored).items()], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>")
    names |= dict(sep_token="</s>", unk_token="<unk>", mask_token="<mask>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


class Preempt(TrainerCallback):
    """The machine is taken away in step 6 of 9 an epoch."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw all pictures for real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PICTURES, "all")
        yield


@pytest.fixture
def pictures() -> Iterator[None]:
    """For tests that look at pictures."""
    with drawing():
        yield


@contextlib.contextmanager
def short_networks() -> Iterator[None]:
    """Network probes of few epochs, for tests that do not ask how well they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertchain.probing.torch_probes.EPOCHS", 20)
        yield


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """What a test sets is not for those after it: with more threads than free cores, which wait for
    each other, they took many times as long."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def asks_the_hub(monkeypatch, tmp_path) -> None:
    """For tests that name something on the hub: a guarded run must not count what they try, and
    nobody waits between one try and the next."""
    monkeypatch.setenv("NETWORK_ATTEMPTS", str(tmp_path / "asked_on_purpose"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait a fifth of their time for what they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Each Trainer collects garbage: a third of a second, were all imports looked at again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def interrupts_arrive():
    """What is started in the background ignores SIGINT, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def forked_workers(monkeypatch) -> None:
    """What a benchmark or an example starts from within the test's own process is forked."""
    monkeypatch.setattr(sys, "executable", stand_in_path())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bert": bert_tokenizer(),
        "roberta": byte_tokenizer("roberta"),
        "gpt2": byte_tokenizer("gpt2"),
        "unigram": unigram_tokenizer(),
    }


def tiny_bert_config(vocab_size: int, **changes) -> BertConfig:
    fields = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    return BertConfig(**fields | changes)


def save_bert(folder: Path, tokenizer: PreTrainedTokenizerFast, blocks: int) -> str:
    torch.manual_seed(0)
    config = tiny_bert_config(len(tokenizer), num_hidden_layers=blocks)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, tokenizers) -> str:
    """A folder with a tiny random BERT (2 blocks of 32) and its tokenizer."""
    return save_bert(tmp_path_factory.mktemp("tiny_bert"), tokenizers["bert"], blocks=2)


@pytest.fixture(scope="session")
def four_blocks(tmp_path_factory, tokenizers) -> str:
    """The same with 4 blocks, for tests of layers."""
    return save_bert(tmp_path_factory.mktemp("four_blocks"), tokenizers["bert"], blocks=4)


def make_rows(n: int, seed: int = 0, words: tuple[int, int] = (3, 12)) -> list[dict]:
    """Rows id, text, label; a few words of the text belong to the label's topic."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        label = sorted(TOPICS)[i % 3]
        length = rng.randint(*words)
        text = [rng.choice(TOPICS[label] if j % 2 else WORDS[:5]) for j in range(length)]
        rows.append({"id": f"r{i}", "text": " ".join(text), "label": label})
    return rows


@pytest.fixture(scope="session")
def topic_files(tmp_path_factory) -> dict[str, str]:
    """train.csv, test.csv (no labels), test_labels.csv of an easy three-class task."""
    folder = tmp_path_factory.mktemp("topics")
    train, test = pd.DataFrame(make_rows(150)), pd.DataFrame(make_rows(45, seed=1))
    test["id"] = "t" + test["id"]
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test_labels.csv", index=False)
    test.drop(columns="label").to_csv(folder / "test.csv", index=False)
    return {f.stem: str(f) for f in folder.iterdir()}
