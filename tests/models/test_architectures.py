"""Every masked LM that transformers maps, tiny and random, through the core of the three scripts:
it works with right values, or all scripts refuse it in the same line.

ARCHITECTURES_TABLE=docs/architectures.md python -m pytest -n 0 tests/models/test_architectures.py
writes the table.
"""

import copy
import functools
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import ROOT, bert_tokenizer, make_rows
from tiny_models import LAID
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

import run_finetune
from bertchain.arguments.pretraining import CheckpointArguments
from bertchain.data.tokenization import Preprocessor, known_types_only
from bertchain.errors import InputError
from bertchain.models.encoding import encode_layers, num_blocks
from bertchain.models.layers import (
    HEAD,
    block_lists,
    drop_blocks_above,
    freeze,
    layer_groups,
    layer_id_of,
    layer_rates,
    reinit_top_blocks,
)
from bertchain.models.loading import load_encoder, max_positions, read_config
from bertchain.models.modeling import DocumentClassifier, DocumentClassifierConfig, pad_documents
from bertchain.models.padding_free import lay_end_to_end
from bertchain.models.support import REFUSED, count_token_types, reason_against
from bertchain.models.windows import SpecialTokens, WindowSpec
from bertchain.pretraining import masked_lm
from bertchain.probing.features import FeatureStore

pytestmark = pytest.mark.versions

POSITIONS = 40
SIZES = {  # the first pattern that matches the whole name of a config's field gives its value
    r"(num_hidden|encoder|decoder|n)_layers?": 2,
    r"\w*heads|n_head": 4,
    r"head_dim": 8,
    r"max_position_embeddings": POSITIONS,
    r"(intermediate|feed_forward|prediction_head)_size|\w+_ffn_dim|hidden_dim": 32,
    r"hidden_size|d_model|dim|emb_dim|pooler_hidden_size|\w*embedding_size|\w*_emb\w*_size": 32,
    r"entity_vocab_size": 8,
}
OWN = {  # what the rule does not know
    "mobilebert": dict(true_hidden_size=32, intra_bottleneck_size=32),
    "longformer": dict(attention_window=8),
    "big_bird": dict(block_size=4),
    "modernbert": dict(local_attention=8),
    "xmod": dict(default_language="en_XX"),
}
IDS = dict(pad_token_id=0, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3)
SPECIAL = SpecialTokens(prefix=(2,), suffix=(3,), blank=0)
WINDOW = 20
KINDS = sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


@functools.cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return bert_tokenizer()


def tiny_config(kind: str) -> PreTrainedConfig:
    fields: dict[str, Any] = IDS | {"vocab_size": len(tokenizer()), "mask_token_id": 4}
    for name in AutoConfig.for_model(kind).to_dict():
        sizes = [size for pattern, size in SIZES.items() if re.fullmatch(pattern, name)]
        if sizes:
            fields[name] = sizes[0]
    return AutoConfig.for_model(kind, **fields | OWN.get(kind, {}))


def reason(kind: str) -> tuple[str, str] | None:
    config = AutoConfig.for_model(kind)
    if kind == "xmod":
        config.default_language = "en_XX"
    return reason_against(config)


SUPPORTED = [kind for kind in KINDS if reason(kind) is None]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders of tiny masked LMs with their tokenizer, by kind."""

    @functools.cache
    def make(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(tiny_config(kind))
        for parameter in model.parameters():  # small weights would hide what attention sees
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.15)
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def encoder_of(folder_of):
    """Encoders by kind, loaded once; each call gives a copy."""

    @functools.cache
    def load(kind: str) -> transformers.PreTrainedModel:
        encoder, missing = load_encoder(folder_of(kind))
        assert not missing
        return encoder

    return lambda kind: copy.deepcopy(load(kind))


@pytest.fixture(scope="module")
def table():
    """Rows by kind; written after the text of the page that ARCHITECTURES_TABLE names."""
    found: dict[str, str] = {}
    yield found
    if "ARCHITECTURES_TABLE" in os.environ:
        page = Path(os.environ["ARCHITECTURES_TABLE"])
        text = page.read_text(encoding="utf-8").partition("| model type |")[0]
        lines = ["| model type | | |", "| --- | --- | --- |"]
        lines += [f"| {kind} | {found[kind]} |" for kind in sorted(found)]
        page.write_text(text + "\n".join([*lines, ""]), encoding="utf-8")


def make_classifier(encoder, layers: list[int], pooling: str) -> DocumentClassifier:
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        layers=layers,
        token_pooling=pooling,
        problem_type="single_label_classification",
        num_labels=3,
        pad_token_id=0,
        windows=WindowSpec("hierarchical", WINDOW).to_dict(),
        special_tokens=SPECIAL.to_dict(),
    )
    torch.manual_seed(1)
    model = DocumentClassifier(config, encoder).eval()
    model.head.weight.data.normal_()
    return model


def random_documents(sizes=((7,), (20, 13), (3,), (11,), (20,), (1,), (17,), (20, 20, 2))):
    """Windows of eight documents."""
    generator = torch.Generator().manual_seed(0)
    top = len(tokenizer())
    return [
        [torch.randint(5, top, (n,), generator=generator).tolist() for n in windows]
        for windows in sizes
    ]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())


# ---------------------------------------------------------------- what works


@pytest.mark.parametrize("kind", SUPPORTED)
@torch.no_grad()
def test_a_text_alone_gives_the_same_as_in_a_batch(kind, encoder_of):
    """And the same as plain transformers without any mask; also where it is cut into windows."""
    encoder = encoder_of(kind)
    blocks, documents = num_blocks(encoder.config), random_documents()
    for pooling, layers in (("cls", [blocks]), ("mean", [0, 1, blocks])):
        model = make_classifier(encoder, layers, pooling)
        batch = model(*pad_documents(documents, 0)).logits
        alone = torch.cat([model(*pad_documents([windows], 0)).logits for windows in documents])
        assert close(batch, alone)
        assert not close(batch[:1], batch[1:2])
        assert close(batch, model.head(torch.stack([plainly(model, w) for w in documents])))
    text = random_documents(sizes=((45,),))[0][0]
    ids = torch.tensor([[2, *text, 3]])
    windows = [[2, *text[i : i + WINDOW - 2], 3] for i in range(0, 45, WINDOW - 2)]
    types = torch.zeros_like(ids)  # as tokenizers give them, whatever the encoder takes
    cut = model(ids, torch.ones_like(ids), types).logits
    assert close(cut, model(*pad_documents([windows], 0)).logits)


def plainly(model: DocumentClassifier, windows: list[list[int]]) -> torch.Tensor:
    """Vector of a document: one window at a time, no padding, no mask."""
    vectors = []
    for window in windows:
        ids = torch.tensor([window])
        extra = {}
        if model.encoder.config.model_type == "longformer":  # as in LongformerForSequence...
            extra["global_attention_mask"] = torch.eye(1, len(window), dtype=torch.long)
        out = model.encoder(input_ids=ids, output_hidden_states=True, **extra)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        tokens = torch.cat([states[k][0] for k in model.config.layers], dim=-1)
        vectors.append(tokens[0] if model.config.token_pooling == "cls" else tokens.mean(dim=0))
    return torch.stack(vectors).mean(dim=0)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_features_of_a_text_alone_are_those_in_a_batch(kind, encoder_of, tmp_path):
    store = FeatureStore(tmp_path, encoder_of(kind), 0)
    documents, poolings = random_documents(), ("cls", "mean")
    batch = torch.tensor(store.compute({"windows": documents}, poolings))
    assert batch.shape == (8, 3, 2, 32)
    alone = [torch.tensor(store.compute({"windows": [d]}, poolings)) for d in documents]
    assert close(batch, torch.cat(alone))


@pytest.mark.parametrize("kind", SUPPORTED)
def test_each_parameter_has_the_rate_of_the_place_where_it_runs(kind, encoder_of):
    """Before block 1 as the embeddings, after the last block as the head."""
    encoder = encoder_of(kind)
    model = make_classifier(encoder, [2], "mean")
    reinit_top_blocks(encoder, 0)
    freeze(model, "none")
    groups = layer_groups(model, layer_rates(2, 1e-3, 0.5, 1e-2), 0.0, set())
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(rates) == sorted(map(id, trained))
    inside, order = tuple(f"{name}." for name in block_lists(encoder)), []
    for name, module in encoder.named_modules():
        if [*module.parameters(recurse=False)]:
            module.register_forward_pre_hook(lambda m, a, n=name: order.append(n))
    model(*pad_documents(random_documents(), 0))
    here = [i for i, name in enumerate(order) if name.startswith(inside)]
    shared = {i for i, name in enumerate(order) if "rel_" in name}  # used in every block
    for i, name in enumerate(order):
        layer_ids = {
            layer_id_of(n, model)
            for n, _ in model.named_parameters()
            if n.startswith(f"encoder.{name}.")
        }
        if i < here[0]:
            assert layer_ids == {0}, name
        elif i > here[-1] and i not in shared:
            assert layer_ids == {HEAD}, name
        elif i in here:
            assert layer_ids <= {1, 2}, name
    if kind != "albert":
        assert {layer_id_of(n, model) for n, _ in model.named_parameters()} == {0, 1, 2, HEAD}


@pytest.mark.parametrize("kind", SUPPORTED)
@torch.no_grad()
def test_blocks_are_dropped_and_renewed_whole(kind, encoder_of):
    encoder = encoder_of(kind)
    ids = torch.tensor(random_documents()[4])
    states = encoder(input_ids=ids, output_hidden_states=True).hidden_states
    if kind != "albert":
        before = {n: p.clone() for n, p in encoder.named_parameters()}
        reinit_top_blocks(encoder, 1)
        around = make_classifier(encoder, [2], "mean")
        for name, parameter in encoder.named_parameters():
            in_top = layer_id_of(f"encoder.{name}", around) == 2
            if parameter.dim() == 2 and min(parameter.shape) > 1:
                assert torch.equal(parameter, before[name]) != in_top, name
    drop_blocks_above(encoder, 1)
    shorter = encoder(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(shorter) == 2 and len(states) == 3
    assert close(shorter[0], states[0])


@pytest.mark.parametrize("kind", SUPPORTED)
def test_the_sparse_head_gives_the_dense_loss(kind, folder_of):
    """Also of each text alone: padding changes nothing in further pretraining either."""
    model, untrained = masked_lm.load_masked_lm(folder_of(kind), tokenizer(), {})
    assert not untrained
    ids, mask = (t[:, 0] for t in pad_documents(random_documents(), 0))
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(hidden, -100)}
    model.eval()
    dense = model(**batch).logits[hidden].float()
    alone = torch.cat(
        [
            model(input_ids=row[None, :n]).logits[0, where[:n]].float()
            for row, n, where in zip(ids, mask.sum(dim=1), hidden, strict=True)
        ]
    )
    head = masked_lm.SparseHead(model)
    sparse, targets = head(model, batch)
    assert close(sparse, dense) and close(alone, dense)
    F.cross_entropy(sparse, targets).backward()
    assert model.get_input_embeddings().weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", SUPPORTED)
@torch.no_grad()
def test_positions_and_token_types_go_as_far_as_is_said(kind, encoder_of, table):
    encoder = encoder_of(kind)
    config = encoder.config
    most, types = max_positions(config), count_token_types(config)
    ids = torch.randint(5, len(tokenizer()), (2, 2 * POSITIONS if most == float("inf") else most))
    mask = torch.ones_like(ids)
    encoder(input_ids=ids, attention_mask=mask)
    if types:
        encoder(input_ids=ids, attention_mask=mask, token_type_ids=torch.full_like(ids, types - 1))
    pair = SpecialTokens(pair_types=(0, 1))
    assert known_types_only(pair, config).pair_types == ((0, 1) if types >= 2 else None)
    longer = torch.cat([ids, ids[:, :1]], dim=1)
    if not hasattr(config, "rope_parameters"):  # there the limit is what it was trained for
        with pytest.raises((IndexError, RuntimeError)):
            encoder(input_ids=longer, attention_mask=torch.ones_like(longer))
    notes = NOTES.get(kind, "")
    if types == 1:
        notes = "; ".join(filter(None, [notes, "one token type: pairs are parted by [SEP] alone"]))
    table[kind] = f"works | {notes}"


@pytest.mark.parametrize("kind", SUPPORTED)
@torch.no_grad()
def test_windows_laid_end_to_end_give_the_same_or_are_padded(kind, encoder_of):
    encoder = encoder_of(kind)
    documents = [document[:1] for document in random_documents()]
    ids, mask = (tensor[:, 0] for tensor in pad_documents(documents, 0))
    layers = [*range(num_blocks(encoder.config) + 1)]
    padded = encode_layers(encoder, ids, mask, None, layers)
    before = copy.deepcopy(encoder.config)
    hooks = lay_end_to_end(encoder)
    assert hooks is not None or kind not in LAID
    if hooks is None:
        assert encoder.config._attn_implementation == before._attn_implementation
    else:
        hooks.always = True
    assert encoder.config.to_dict() == before.to_dict()  # it is never saved
    for found, right in zip(encode_layers(encoder, ids, mask, None, layers), padded, strict=True):
        assert close(found * mask.unsqueeze(-1), right * mask.unsqueeze(-1))


NOTES = {
    "albert": "blocks share weights: no `--freeze N`, no `--reinit_layers`",
    "big_bird": "full attention: with the sparse one, padding would change what a text gives",
    "convbert": "convolutions do not see padding",
    "longformer": "the first token attends to all others",
    "luke": "without entities",
    "mobilebert": "the padding's embedding is 0",
    "xmod": "needs a `default_language` in config.json",
}

# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("kind", [*sorted({*KINDS} - {*SUPPORTED}), "xmod", "xlnet", "t5"])
def test_all_scripts_refuse_in_the_same_line(kind, tmp_path, table):
    """Before a tokenizer is loaded: there is none."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    said = set()
    for ask in (
        lambda path: Preprocessor.for_checkpoint(path, {}),  # run_finetune.py, run_probe.py
        load_encoder,
        lambda path: masked_lm.find_encoder(CheckpointArguments(model_name_or_path=path)),
        lambda path: masked_lm.find_encoder(
            CheckpointArguments(config_name=path, tokenizer_name=path)
        ),
    ):
        with pytest.raises(InputError) as caught:
            ask(str(tmp_path))
        said.add(str(caught.value))
    (line,) = said
    name = AutoConfig.for_model(kind).model_type
    start = f"--model_name_or_path {tmp_path}: {name} is not supported: "
    assert line.startswith(start) and "; use " in line and "\n" not in line
    if kind != "xmod":
        table.setdefault(kind, "refused | " + line.removeprefix(start))


def test_no_refusal_is_out_of_date():
    """Of what this version of transformers has."""
    assert {*REFUSED} & {*KINDS} | {"xlnet"} <= {*KINDS} - {*SUPPORTED} | {"xlnet"}


def test_the_page_names_every_architecture():
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| ([\w-]+) \| (?:works|refused)", page, flags=re.MULTILINE))
    assert {*KINDS} <= named


# ---------------------------------------------------------------- by its own rule


def test_bigbird_attends_in_full_from_every_start(tmp_path):
    config = tiny_config("big_bird")
    assert config.attention_type == "block_sparse"
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path).attention_type == "original_full"


def test_esm_with_rotary_positions_has_those_that_its_config_says():
    config = tiny_config("esm")
    assert max_positions(config) == POSITIONS - 1
    config.position_embedding_type = "rotary"
    assert max_positions(config) == POSITIONS


# ---------------------------------------------------------------- through run_finetune.py


@pytest.mark.parametrize("kind", ["albert", "convbert", "longformer", "roformer"])
def test_run_finetune_trains_and_predicts(kind, folder_of, tmp_path):
    rows = pd.DataFrame(make_rows(12))
    results = run_finetune.main(settings(folder_of(kind), rows, tmp_path))
    assert results["eval_accuracy"] >= 0


def test_a_tokenizer_may_know_more_token_types_than_the_model(tmp_path):
    """RoBERTa weights with a BERT tokenizer: the model has one token type, the tokenizer two."""
    config = tiny_config("roberta")
    config.type_vocab_size = 1
    model = tmp_path / "model"
    transformers.RobertaModel(config).save_pretrained(model)
    tokenizer().save_pretrained(model)
    rows = pd.DataFrame(make_rows(12))
    given = settings(str(model), rows, tmp_path)
    given |= {"text_column_names": ["text", "id"], "text_pair": True}
    assert run_finetune.main(given)["eval_accuracy"] >= 0
    saved = DocumentClassifier.from_pretrained(tmp_path / "out").eval()
    pair = tokenizer()("the cat", "runs", return_tensors="pt")
    assert pair["token_type_ids"].any()
    typed = saved(**pair).logits
    assert torch.equal(typed, saved(pair["input_ids"], pair["attention_mask"]).logits)


def settings(model: str, rows: pd.DataFrame, folder: Path) -> dict[str, Any]:
    rows.to_csv(folder / "train.csv", index=False)
    return {
        "model_name_or_path": model,
        "train_file": str(folder / "train.csv"),
        "output_dir": str(folder / "out"),
        "num_train_epochs": 1,
        "use_cpu": True,
    }
