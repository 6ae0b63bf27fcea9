"""Layer ids, rates, freezing, dropping and re-initialising on every architecture."""

import pytest
import torch
from tiny_models import ARCHITECTURES, classifier, tiny_encoder
from torch import nn

from bertchain.errors import InputError
from bertchain.models.layers import (
    HEAD,
    drop_blocks_above,
    find_blocks,
    freeze,
    group_table,
    layer_groups,
    layer_id_of,
    layer_rates,
    reinit_top_blocks,
    unfrozen_from,
)
from bertchain.models.modeling import encode_layers

pytestmark = pytest.mark.versions


def decayed(model):
    return {n for n, p in model.named_parameters() if p.dim() > 1}


# ---------------------------------------------------------------- groups


def test_rates_by_hand_for_four_blocks():
    model = classifier("bert", layer_pooling="weighted", token_pooling="attention")
    groups = layer_groups(model, layer_rates(4, 1e-3, 0.5, 7e-3), 0.01, decayed(model))
    rates = {group["name"]: group["lr"] for group in groups}
    expected = {"embeddings": 1e-3 / 16, "head": 7e-3}
    expected |= {f"block {k}": 1e-3 * 0.5 ** (4 - k) for k in (1, 2, 3, 4)}
    for name, rate in expected.items():
        assert rates[name] == pytest.approx(rate)
        assert rates[f"{name}, no decay"] == pytest.approx(rate)
    assert len(rates) == 12
    decay = {group["name"]: group["weight_decay"] for group in groups}
    assert decay["block 1"] == 0.01 and decay["block 1, no decay"] == 0.0
    assert [g["name"].removesuffix(", no decay") for g in groups][::2] == [
        "embeddings", "block 1", "block 2", "block 3", "block 4", "head"
    ]  # fmt: skip


def test_the_head_rate_defaults_to_the_base_rate():
    model = classifier("bert")
    groups = layer_groups(model, layer_rates(4, 1e-3, 0.5), 0.0, decayed(model))
    assert groups[-1]["lr"] == 1e-3


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_each_trainable_parameter_is_in_exactly_one_group(kind):
    model = classifier(kind)
    groups = layer_groups(model, layer_rates(4, 1e-3, 0.5, 1e-2), 0.01, decayed(model))
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    layer_ids = {name: layer_id_of(name, model) for name, _ in model.named_parameters()}
    assert {i for n, i in layer_ids.items() if not n.startswith("encoder.")} == {HEAD}
    embeddings = model.encoder.get_input_embeddings().weight
    (word,) = [n for n, p in model.named_parameters() if p is embeddings]
    assert layer_ids[word] == 0
    blocks = {i for i in layer_ids.values() if 0 < i < HEAD}
    assert blocks == ({4} if kind == "albert" else {1, 2, 3, 4})


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_layer_ids_follow_the_order_in_which_modules_run(kind):
    """Independent of names: what runs before block 1 is 0, what runs after block 4 is above."""
    model = classifier(kind)
    prefix, _ = find_blocks(model.encoder)
    order = []
    for name, module in model.encoder.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda m, a, n=name: order.append(n))
    ids = torch.randint(5, 60, (1, 1, 8))
    model.eval()(ids, torch.ones_like(ids))
    inside = [i for i, name in enumerate(order) if name.startswith(f"{prefix}.")]
    for i, name in enumerate(order):
        parameters = [n for n, _ in model.named_parameters() if n.startswith(f"encoder.{name}.")]
        for parameter in parameters:
            layer_id = layer_id_of(parameter, model)
            if i < inside[0]:
                assert layer_id == 0, parameter
            elif i > inside[-1]:
                assert layer_id == HEAD, parameter


def test_an_unknown_parameter_is_an_error():
    model = classifier("bert")
    model.encoder.surprise = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"encoder\.surprise\.weight is in no known place"):
        layer_groups(model, layer_rates(4, 1e-3), 0.0, set())


def test_the_audit_table_counts_everything():
    model = classifier("bert")
    table = group_table(layer_groups(model, layer_rates(4, 1e-3, 0.9, 1e-2), 0.01, decayed(model)))
    assert table["parameters"].sum() == sum(p.numel() for p in model.parameters())
    assert table["tensors"].sum() == len(list(model.parameters()))


def test_explicit_rates_and_those_of_embeddings():
    assert layer_rates(3, 1.0, explicit=[0.1, 0.2, 0.3]) == {
        0: 0.1,
        1: 0.1,
        2: 0.2,
        3: 0.3,
        HEAD: 1,
    }
    assert layer_rates(2, 1.0, 0.5, head=7.0, embedding=0.0) == {0: 0.0, 1: 0.5, 2: 1.0, HEAD: 7.0}
    with pytest.raises(InputError, match="one rate for each of 3 blocks, lowest first; got 2"):
        layer_rates(3, 1.0, explicit=[0.1, 0.2])


# ---------------------------------------------------------------- freezing


def trainable(model):
    return {layer_id_of(n, model) for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("what", "layer_ids"),
    [
        ("none", {0, 1, 2, 3, 4, HEAD}),
        ("embeddings", {1, 2, 3, 4, HEAD}),
        ("2", {3, 4, HEAD}),
        ("0", {1, 2, 3, 4, HEAD}),
        ("encoder", {HEAD}),
    ],
)
def test_what_freezing_leaves(what, layer_ids):
    model = classifier("bert")
    freeze(model, what)
    assert trainable(model) == layer_ids
    model = classifier("modernbert")  # has a final norm above its blocks
    freeze(model, what)
    if what == "encoder":
        assert not any(p.requires_grad for p in model.encoder.parameters())
    assert model.head.weight.requires_grad


def test_blocks_that_nothing_reads_are_not_trained():
    model = classifier("modernbert", layers=[2])
    freeze(model, "none")
    assert trainable(model) == {0, 1, 2, HEAD}
    assert not model.encoder.final_norm.weight.requires_grad
    ids = torch.randint(5, 60, (2, 1, 8))
    model(ids, torch.ones_like(ids), labels=torch.tensor([0, 1])).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_shared_blocks_cannot_be_frozen_by_number():
    with pytest.raises(InputError, match="--freeze 2: albert shares its blocks"):
        freeze(classifier("albert"), "2")
    two = classifier("albert")
    two.encoder.config.num_hidden_layers = 2
    two.config.layers = [2]
    with pytest.raises(InputError, match="--freeze 1: albert shares its blocks"):
        freeze(two, "1")
    with pytest.raises(InputError, match="--freeze 9: bert has 4 blocks"):
        freeze(classifier("bert"), "9")


# ---------------------------------------------------------------- gradual unfreezing


def test_one_block_more_every_so_many_epochs_and_embeddings_last():
    starts = [unfrozen_from(epoch, 0.5, 4) for epoch in (0, 0.49, 0.5, 1, 1.5, 2, 2.4, 2.5, 9)]
    assert starts == [5, 5, 4, 3, 2, 1, 1, 0, 0]


# ---------------------------------------------------------------- dropping, starting anew


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_dropped_blocks_leave_the_layers_below_as_they_were(kind):
    encoder = tiny_encoder(kind).eval()
    ids = torch.randint(5, 60, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before = encode_layers(encoder, ids, mask, None, [0, 1, 2, 3, 4])
        drop_blocks_above(encoder, 2)
        after = encode_layers(encoder, ids, mask, None, [0, 1, 2])
    assert encoder.config.num_hidden_layers == 2
    torch.testing.assert_close(after[:2], before[:2])
    pre_norm = kind in ("modernbert", "gpt2", "qwen2")  # there the last layer is after a final norm
    assert torch.allclose(after[2], before[2], atol=1e-6) != pre_norm
    again = type(encoder)(encoder.config)  # the config describes what is left
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=ids, attention_mask=mask)[0], after[2])
    with pytest.raises(InputError, match=r"--drop_layers_above 5: .* has 2 blocks"):
        drop_blocks_above(encoder, 5)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES.keys() - {"albert"}))
def test_the_top_blocks_start_anew_and_nothing_else(kind):
    model = classifier(kind)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 9.0)
        parameter._is_hf_initialized = True  # as after from_pretrained
    reinit_top_blocks(model.encoder, 2)
    for name, parameter in model.named_parameters():
        if layer_id_of(name, model) in (3, 4):
            assert (parameter != 9.0).any(), name
            assert parameter.dim() == 1 or parameter.std() < 0.05, name
        else:
            assert (parameter == 9.0).all(), name


def test_what_cannot_start_anew():
    with pytest.raises(InputError, match="--reinit_layers 1: albert shares its blocks"):
        reinit_top_blocks(tiny_encoder("albert"), 1)
    with pytest.raises(InputError, match="--reinit_layers 5: bert has 4 blocks"):
        reinit_top_blocks(tiny_encoder("bert"), 5)
    with_pooler = tiny_encoder("bert")
    before = with_pooler.pooler.dense.weight.detach().clone()
    reinit_top_blocks(with_pooler, 1)
    assert not torch.equal(with_pooler.pooler.dense.weight, before)
