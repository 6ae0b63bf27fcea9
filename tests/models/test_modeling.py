"""Poolings of layers, tokens and windows against plain loops; saving and loading."""

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, tiny_bert_config
from forking import run_command
from tiny_models import ARCHITECTURES, tiny_encoder
from torch import nn
from transformers import AutoModelForSequenceClassification, BertModel, pipeline

from bertchain.models import encoding
from bertchain.models.layers import resolve_layers
from bertchain.models.loading import (
    is_document_classifier,
    load_classifier,
    load_encoder,
    max_positions,
)
from bertchain.models.modeling import (
    DocumentClassifier,
    DocumentClassifierConfig,
    document_loss,
    encode_layers,
    num_blocks,
    pad_documents,
)
from bertchain.models.pooling import (
    LAYER_POOLINGS,
    TOKEN_POOLINGS,
    WINDOW_POOLINGS,
    BiLSTMPooling,
)
from bertchain.models.windows import SpecialTokens, WindowSpec

pytestmark = pytest.mark.versions

SPECIAL = SpecialTokens(prefix=(2,), suffix=(3,), blank=0)


def build(
    layers=(4,), layer="concat", token="cls", window="mean", problem_type="single_label", **config
) -> DocumentClassifier:
    torch.manual_seed(0)
    encoder = BertModel(tiny_bert_config(60), add_pooling_layer=False)
    names = {"single_label": "single_label_classification", "regression": "regression"}
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        layers=layers,
        layer_pooling=layer,
        token_pooling=token,
        segment_pooling=window,
        problem_type=names.get(problem_type, "multi_label_classification"),
        num_labels=3,
        pad_token_id=0,
        windows=WindowSpec("hierarchical", 12).to_dict(),
        special_tokens=SPECIAL.to_dict(),
        **config,
    )
    model = DocumentClassifier(config, encoder).eval()
    for p in model.parameters():  # heads start near zero, which would hide differences
        if p.requires_grad and p.dim() == 1:
            nn.init.normal_(p, std=0.3)
    return model


def random_documents(seed=0, sizes=((7,), (5, 3, 6), (1,), (12, 12))):
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randint(5, 60, (n,), generator=generator).tolist() for n in windows]
        for windows in sizes
    ]


def logits_of(model, documents):
    ids, mask = pad_documents(documents, 0)
    with torch.no_grad():
        return model(ids, mask).logits


def plain_loop(model, documents):
    """The same without batches, masks or padding: one window at a time."""
    rows = []
    with torch.no_grad():
        for windows in documents:
            vectors = []
            for window in windows:
                states = model.encoder(
                    torch.tensor([window]), output_hidden_states=True
                ).hidden_states
                chosen = [states[k][0] for k in model.config.layers]  # each [length, hidden]
                tokens = {
                    "concat": lambda c: torch.cat(c, -1),
                    "mean": lambda c: torch.stack(c).mean(0),
                    "max": lambda c: torch.stack(c).max(0).values,
                    "weighted": lambda c: (
                        model.layer_mix.gamma
                        * sum(
                            w * h
                            for w, h in zip(model.layer_mix.weights.softmax(0), c, strict=True)
                        )
                    ),
                }[model.config.layer_pooling](chosen)
                vectors.append(pool_plainly(model, model.config.token_pooling, tokens, "token"))
            rows.append(
                vectors[0]
                if len(vectors) == 1 and model.config.segment_pooling != "attention"
                else pool_plainly(
                    model, model.config.segment_pooling, torch.stack(vectors), "segment"
                )
            )
        return model.head(torch.stack(rows))


def pool_plainly(model, name, items, where):
    if name == "bilstm":
        states = model.token_attention.lstm(items[None])[0][0]  # [length, features]
        attention = model.token_attention.attention
        shares = attention.score(torch.tanh(attention.project(states)))[:, 0].softmax(0)
        return (shares[:, None] * states).sum(0)
    if name == "attention":
        attention = getattr(model, f"{where}_attention")
        shares = attention.score(torch.tanh(attention.project(items)))[:, 0].softmax(0)
        return (shares[:, None] * items).sum(0)
    return {"cls": items[0], "last": items[-1], "mean": items.mean(0), "max": items.max(0).values}[
        name
    ]


@pytest.mark.parametrize("layer", LAYER_POOLINGS)
@pytest.mark.parametrize("token", TOKEN_POOLINGS)
@pytest.mark.parametrize("window", WINDOW_POOLINGS)
def test_every_pooling_equals_a_plain_loop(layer, token, window):
    model = build((1, 3, 4), layer, token, window)
    documents = random_documents()
    torch.testing.assert_close(logits_of(model, documents), plain_loop(model, documents))


@pytest.mark.parametrize("layers", [(0,), (2,), (4,), (4, 0)])
def test_layer_numbers_are_those_of_hidden_states(layers):
    model = build(layers)
    documents = random_documents()
    torch.testing.assert_close(logits_of(model, documents), plain_loop(model, documents))


@pytest.mark.parametrize("token", TOKEN_POOLINGS)
@pytest.mark.parametrize("window", WINDOW_POOLINGS)
def test_padding_and_absent_windows_change_nothing(token, window):
    model = build((3, 4), "mean", token, window)
    documents = random_documents()
    together = logits_of(model, documents)
    alone = torch.cat([logits_of(model, [document]) for document in documents])
    torch.testing.assert_close(together, alone)
    ids, mask = pad_documents(documents, 0)
    ids = nn.functional.pad(ids, (0, 5, 0, 2), value=17)  # wrong ids behind the mask
    mask = nn.functional.pad(mask, (0, 5, 0, 2))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask).logits, together)


def test_absent_windows_are_never_encoded():
    model = build()
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    logits_of(model, random_documents())
    assert seen == [1 + 3 + 1 + 2]


def test_left_padding_changes_nothing():
    position = torch.tensor([[0, 0, 0, 1, 2]])
    for token in TOKEN_POOLINGS:
        model = build(token=token)
        ids = torch.tensor([[[0, 0, 7, 8, 9]]])
        mask = torch.tensor([[[0, 0, 1, 1, 1]]])
        hook = model.encoder.embeddings.register_forward_pre_hook(
            lambda m, args, kw: (args, kw | {"position_ids": position}), with_kwargs=True
        )
        with torch.no_grad():
            left = model(ids, mask).logits
        hook.remove()
        torch.testing.assert_close(left, logits_of(model, [[[7, 8, 9]]]))


@pytest.mark.parametrize("window", WINDOW_POOLINGS)
def test_hierarchical_of_one_window_equals_head(window):
    one = random_documents(sizes=((7,), (12,), (3,)))
    flat = build(window="mean")
    model = build(window=window)
    model.load_state_dict(flat.state_dict(), strict=False)
    ids, mask = pad_documents(one, 0)
    with torch.no_grad():
        expected = flat(ids[:, 0], mask[:, 0]).logits  # [documents, length], as a pipeline gives it
    torch.testing.assert_close(logits_of(model, one), expected)


def test_a_flat_text_longer_than_the_window_is_cut_as_in_training():
    model = build(token="mean")
    body = torch.randint(5, 60, (25,)).tolist()
    with torch.no_grad():
        flat = model(torch.tensor([[2, *body, 3]])).logits
    windows = [[2, *body[i : i + 10], 3] for i in range(0, 25, 10)]
    torch.testing.assert_close(flat, logits_of(model, [windows]))
    with pytest.raises(ValueError, match="text pair"):
        model(torch.tensor([[2, *body, 3]]), token_type_ids=torch.ones(1, 27, dtype=torch.long))


# ---------------------------------------------------------------- layers


def test_layer_names():
    assert resolve_layers("last", 12) == [12]
    assert resolve_layers("first4", 12) == [1, 2, 3, 4]
    assert resolve_layers("last4", 12) == [9, 10, 11, 12]
    assert resolve_layers("all", 3) == [1, 2, 3]
    assert resolve_layers("-1 0, 3", 6) == [6, 0, 3]
    assert resolve_layers("last4", 2) == [1, 2]
    for wrong in ("7", "-8", "lats", "", "6 -1"):
        with pytest.raises(ValueError, match="--layers"):
            resolve_layers(wrong, 6)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_loads_pools_and_ignores_padding(kind, tmp_path):
    tiny_encoder(kind).save_pretrained(tmp_path)
    encoder, missing = load_encoder(tmp_path)
    encoder.eval()
    assert missing == [] and getattr(encoder, "pooler", None) is None
    assert num_blocks(encoder.config) == 4
    documents = random_documents(sizes=((7,), (9, 4)))
    ids, mask = pad_documents([[w] for windows in documents for w in windows], 0)
    with torch.no_grad():
        layers = encode_layers(encoder, ids[:, 0], mask[:, 0], None, [0, 1, 2, 3, 4])
        (last,) = encode_layers(encoder, ids[:, 0], mask[:, 0], None, [4])
    torch.testing.assert_close(layers[4], last)
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        layers=[3, 4],
        token_pooling="mean",
        problem_type="single_label_classification",
        num_labels=3,
    )
    model = DocumentClassifier(config, encoder).eval()
    alone = torch.cat([logits_of(model, [document]) for document in documents])
    torch.testing.assert_close(logits_of(model, documents), alone, atol=1e-5, rtol=1e-4)


def test_positions():
    assert max_positions(tiny_encoder("bert").config) == 512
    assert max_positions(tiny_encoder("roberta").config) == 39  # pad_token_id 0: positions from 1
    assert max_positions(tiny_encoder("gpt2").config) == 40


def test_an_encoder_decoder_is_refused(tmp_path):
    config = transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    transformers.T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="t5 is not supported: it is an encoder-decoder"):
        load_encoder(tmp_path)


def test_half_precision_checkpoints_come_back_in_float32(tmp_path):
    BertModel(tiny_bert_config(60)).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_encoder(tmp_path)[0].dtype == torch.float32


def test_missing_weights_are_named(tmp_path):
    model = BertModel(tiny_bert_config(60))
    state = {k: v for k, v in model.state_dict().items() if "layer.2.output.dense" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    missing = load_encoder(tmp_path)[1]
    assert missing == ["encoder.layer.2.output.dense.bias", "encoder.layer.2.output.dense.weight"]


def test_building_a_classifier_leaves_the_loaded_encoder_as_it_was(tiny_bert):
    encoder, _ = load_encoder(tiny_bert)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    attention = encoder.config._attn_implementation
    config = DocumentClassifierConfig(encoder_config=encoder.config, layers=[4], num_labels=2)
    model = DocumentClassifier(config, encoder)
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())
    assert model.encoder.config._attn_implementation == attention == "sdpa"


# ---------------------------------------------------------------- loss


def test_losses_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    single = build().config
    p = torch.tensor([np.exp(2) / (np.exp(2) + 1 + np.exp(-1)), 1 / 3])
    expected = -p.log().mean()
    torch.testing.assert_close(
        document_loss(logits, torch.tensor([0, 2]), single).double(), expected
    )
    multi = build(problem_type="multi_label").config
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    sigmoid = 1 / (1 + (-logits).exp())
    by_hand = -(labels * sigmoid.log() + (1 - labels) * (1 - sigmoid).log()).mean()
    torch.testing.assert_close(document_loss(logits, labels, multi), by_hand)
    scaled = build(
        problem_type="regression", target_mean=[1.0, 2.0, 3.0], target_scale=[2.0, 1.0, 4.0]
    ).config
    errors = (logits - labels) / torch.tensor([2.0, 1.0, 4.0])
    torch.testing.assert_close(document_loss(logits, labels, scaled), (errors**2).mean())
    summed = document_loss(logits, labels, multi, num_items=12)
    torch.testing.assert_close(summed, by_hand / 2)


def test_regression_starts_at_the_mean_target():
    model = build(
        problem_type="regression", target_mean=[10.0, 20.0, 30.0], target_scale=[1e-6, 1e-6, 1e-6]
    )
    torch.testing.assert_close(
        logits_of(model, [[[7, 8]]]), torch.tensor([[10.0, 20.0, 30.0]]), atol=1e-4, rtol=0
    )


# ---------------------------------------------------------------- save and load


@pytest.mark.parametrize("layer", ["concat", "weighted"])
def test_a_saved_classifier_comes_back_with_every_weight(tmp_path, layer):
    model = build((2, 4), layer, "attention", "attention")
    documents = random_documents()
    before = logits_of(model, documents)
    model.save_pretrained(tmp_path)
    assert is_document_classifier(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {
        f"{name}.py" for name in ("modeling", "encoding", "pooling", "windows")
    }
    again, missing = load_classifier(tmp_path)
    assert missing == [] and again.encoder.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits_of(again.eval(), documents), before, rtol=0, atol=0)


def test_it_loads_without_this_project_in_a_new_process(tmp_path, tokenizers):
    model = build((3, 4), "weighted", "mean")
    model.save_pretrained(tmp_path / "saved")
    tokenizers["bert"].save_pretrained(tmp_path / "saved")
    text = "red cat runs in the forest " * 5  # longer than the window of 12: three windows
    ids = tokenizers["bert"](text)["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.softmax(-1)[0].tolist()
    code = f"""
import sys
assert not any(p == {str(ROOT)!r} for p in sys.path)
from transformers import AutoModelForSequenceClassification, pipeline
model = AutoModelForSequenceClassification.from_pretrained("saved", trust_remote_code=True)
assert type(model).__name__ == "DocumentClassifier"
classify = pipeline("text-classification", model="saved", trust_remote_code=True, top_k=None)
(scores,) = classify([{text!r}])
print(*[s["score"] for s in sorted(scores, key=lambda s: s["label"])])
"""
    done = run_command("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = [float(s) for s in done.stdout.strip().splitlines()[-1].split()]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_pipelines_here_too(tmp_path, tokenizers):
    model = build()
    model.save_pretrained(tmp_path)
    tokenizers["bert"].save_pretrained(tmp_path)
    auto = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    documents = random_documents(sizes=((7,), (12,)))
    torch.testing.assert_close(logits_of(auto.eval(), documents), logits_of(model, documents))
    classify = pipeline("text-classification", model=str(tmp_path), trust_remote_code=True)
    assert len(classify(["red cat", "the river of the city"], batch_size=2)) == 2


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_last_block_may_leave_out_what_nobody_reads(kind, monkeypatch):
    """[CLS] alone through the last feed-forward half: the same logits and gradients."""
    documents = random_documents(sizes=((7,), (9, 4), (3,)))
    ids, mask = pad_documents(documents, 0)
    results = []
    for early in (True, False):
        encoder = tiny_encoder(kind)
        config = DocumentClassifierConfig(
            encoder_config=encoder.config, layers=[4], head_dropout=0.0, num_labels=3,
            problem_type="single_label_classification",
        )  # fmt: skip
        torch.manual_seed(1)
        model = DocumentClassifier(config, encoder).eval()
        widths = []
        blocks = getattr(getattr(model.encoder, "encoder", None), "layer", None)
        if blocks is not None and hasattr(blocks[-1], "intermediate"):
            blocks[-1].intermediate.register_forward_hook(
                lambda m, i, o, w=widths: w.append(o.shape[1])
            )
        if not early:
            monkeypatch.setattr(encoding, "last_bert_block", lambda encoder: None)
        output = model(ids, mask, labels=torch.tensor([0, 1, 2]))
        output.loss.backward()
        results.append((output.logits, {n: p.grad for n, p in model.named_parameters()}, widths))
    (fast, fast_gradients, few), (plain, gradients, all_tokens) = results
    torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-5)
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(fast_gradients[name], gradient, atol=1e-6, rtol=1e-4)
    if kind in ("bert", "roberta", "electra", "xlm-roberta"):
        assert few == [1] and all_tokens == [9]


def test_a_bilstm_does_not_see_padding_on_either_side():
    pooling = BiLSTMPooling(5)  # odd: both directions have 2
    items = torch.randn(2, 6, 5)
    right = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    vectors = pooling(items, right)
    assert vectors.shape == (2, pooling.features) == (2, 4)
    torch.testing.assert_close(vectors[:1], pooling(items[:1, :4], right[:1, :4]))
    left = torch.cat([torch.randn(1, 2, 5), items[:1, :4]], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()
    torch.testing.assert_close(vectors[:1], pooling(left, mask))
    turned = pooling(items[:1, :4].flip(1), right[:1, :4])
    assert not torch.allclose(vectors[:1], turned)  # it knows the order


def test_a_new_bilstm_starts_as_torch_starts_it():
    model = build((4,), token="bilstm")
    weights = model.token_attention.lstm.weight_ih_l0
    bound = model.token_attention.lstm.hidden_size**-0.5
    assert weights.abs().max() <= bound and weights.std().item() == pytest.approx(
        bound / 3**0.5, rel=0.1
    )
