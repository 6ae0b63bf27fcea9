"""Windows laid end to end: the values and gradients of padded batches, and when they are laid."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import LAID, classifier, tiny_encoder
from transformers import AutoModelForMaskedLM

from bertchain.models import padding_free
from bertchain.models.encoding import strip_encoder
from bertchain.models.padding_free import END_TO_END, Laid, lay_end_to_end, remove_padding
from bertchain.pretraining.masked_lm import SparseHead

pytestmark = pytest.mark.versions

LENGTHS = (7, 3, 12, 1)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batch_of() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(5, 60, mask.shape) * mask
    types = (torch.arange(max(LENGTHS)) > 1).long() * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def lay(model):
    """Lay in any precision."""
    hooks = lay_end_to_end(model.base_model)
    hooks.always = True
    return hooks


def assert_same(found: dict, right: dict) -> None:
    assert found.keys() == right.keys()
    for name, value in right.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=1e-4, msg=name)


# ---------------------------------------------------------------- the same


@pytest.mark.parametrize("kind", sorted({"bert", "roberta", "modernbert", "distilbert"} & LAID))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("layers", [[4], [0, 2, 4]])
def test_a_classifier_trains_alike(kind, pooling, layers):
    """Also where the last block runs on the first tokens alone."""
    model = without_dropout(classifier(kind, layers=layers, token_pooling=pooling))
    batch = {name: tensor.unsqueeze(1) for name, tensor in batch_of().items()}
    if kind in ("modernbert", "distilbert", "roberta"):
        del batch["token_type_ids"]
    batch["labels"] = torch.tensor([0, 1, 2, 0])
    right = model(**batch)
    expected = gradients(model, right.loss)
    lay(model)
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = model(**batch)
    assert seen == [(1, sum(LENGTHS))]
    torch.testing.assert_close(found.logits, right.logits, atol=1e-6, rtol=1e-5)
    assert_same(gradients(model, found.loss), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", sorted({"bert", "roberta", "modernbert"} & LAID))
def test_a_masked_lm_trains_alike(kind, checkpointing):
    """Also where activations are computed again after the hooks have ended."""
    config = tiny_encoder(kind).config
    torch.manual_seed(0)
    model = without_dropout(AutoModelForMaskedLM.from_config(config))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = batch_of()
    del batch["token_type_ids"]
    batch["labels"] = torch.where(torch.rand(batch["input_ids"].shape) < 0.4, 7, -100)
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)

    def run():
        logits, targets = SparseHead(model)(model, batch)
        return gradients(model, torch.nn.functional.cross_entropy(logits, targets)), logits

    expected, right = run()
    lay(model)
    found, logits = run()
    torch.testing.assert_close(logits, right, atol=1e-6, rtol=1e-5)
    assert_same(found, expected)


def test_what_is_laid_is_put_back():
    mask = batch_of()["attention_mask"].flip(1)  # padded on the left
    laid = Laid.of(mask)
    states = torch.randn(*mask.shape, 5)
    tokens = states.flatten(0, 1)[laid.places].unsqueeze(0)
    assert laid.starts.tolist() == [0, 7, 10, 22, 23]
    assert torch.equal(laid.put_back(tokens), states * mask.unsqueeze(-1))
    assert laid.find(laid.places[[3, 20]]).tolist() == [3, 20]


# ---------------------------------------------------------------- when they are laid


def test_in_half_precision_alone():
    encoder = strip_encoder(tiny_encoder("bert")).eval()
    batch = batch_of()
    right = encoder(**batch).last_hidden_state
    assert lay_end_to_end(encoder) is not None
    assert lay_end_to_end(encoder) is None  # once is enough
    shapes = []
    encoder.embeddings.register_forward_hook(lambda *given: shapes.append(given[2].shape[:2]))
    assert torch.equal(encoder(**batch).last_hidden_state, right)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(**batch).last_hidden_state
    assert shapes == [(4, 12), (1, 23)]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(half[real], right[real], atol=0.05, rtol=0.05)
    assert not half[~real].any()
    encoder(input_ids=batch["input_ids"][:1])  # without a mask all are tokens, and none is laid
    assert shapes[2:] == [(1, 12)]


@pytest.mark.parametrize("kind", ["deberta-v2", "mpnet", "gpt2", "qwen2"])
def test_an_architecture_whose_windows_would_see_each_other_is_padded(kind):
    encoder = tiny_encoder(kind)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15)
    before = encoder.config._attn_implementation
    assert lay_end_to_end(encoder) is None
    assert encoder.config._attn_implementation == before
    assert not encoder._forward_pre_hooks and not encoder._forward_hooks


def test_an_attention_that_was_asked_for_stays_and_so_does_a_pooler():
    encoder = tiny_encoder("bert")
    assert encoder.pooler is not None and lay_end_to_end(encoder) is None
    encoder = strip_encoder(encoder)
    encoder.set_attn_implementation("eager")
    assert lay_end_to_end(encoder) is None
    assert encoder.config._attn_implementation == "eager"


def test_only_on_a_gpu_that_has_the_kernel(monkeypatch, caplog):
    encoder = strip_encoder(tiny_encoder("bert"))
    assert not remove_padding(encoder, torch.device("cpu"))
    gpu = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not remove_padding(encoder, gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(padding_free, "kernel_is_right", lambda device: False)
    assert not remove_padding(encoder, gpu)
    assert encoder.config._attn_implementation == "sdpa"
    monkeypatch.setattr(padding_free, "kernel_is_right", lambda device: True)
    assert remove_padding(encoder, gpu)
    assert encoder.config._attn_implementation == END_TO_END


def test_the_trial_of_the_kernel_compares_with_the_formula(monkeypatch, caplog):
    cpu = torch.device("cpu")
    assert padding_free.kernel_is_right(cpu)  # in bf16, by the formula too
    attend = padding_free.attend

    def wrong(module, query, *others, **options):
        out, weights = attend(module, query, *others, **options)
        return (out * 1.1 if query.dtype == torch.bfloat16 else out), weights

    monkeypatch.setattr(padding_free, "attend", wrong)
    assert not padding_free.kernel_is_right(cpu)

    def missing(module, query, *others, **options):
        if query.dtype == torch.bfloat16:
            raise AttributeError("no such operator")
        return attend(module, query, *others, **options)

    monkeypatch.setattr(padding_free, "attend", missing)
    with caplog.at_level("INFO"):
        assert not padding_free.kernel_is_right(cpu)
    assert "flash attention of PyTorch does not run here (no such operator)" in caplog.text


@pytest.mark.parametrize(("width", "padded"), [(8, 8), (26, 32)])
@pytest.mark.parametrize("reach", [None, 4])
def test_the_kernel_gets_heads_of_a_width_that_it_takes(width, padded, reach, monkeypatch):
    """TinyBERT has heads of 26; the scale stays that of their width."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 12, width)
    starts = torch.tensor([0, 5, 12], dtype=torch.int32)
    options = {"cu_seq_lens_q": starts, "max_length_q": 7, "sliding_window": reach}
    right, _ = padding_free.attend(None, query, key, value, None, **options)
    asked = []

    def kernel(q, k, v, begin, same, most, again, dropout, causal, debug, **windows):
        asked.append((q.shape, most, dropout, causal, windows["window_size_left"]))
        aside = windows["window_size_right"]
        sees = padding_free.who_sees_whom(begin, 12, None if aside is None else aside + 1)
        q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
        attended = torch.nn.functional.scaled_dot_product_attention
        return (attended(q, k, v, sees, scale=windows["scale"]).transpose(0, 1),)

    monkeypatch.setattr(padding_free, "has_kernel", lambda query: True)
    monkeypatch.setattr(padding_free, "kernel", kernel)
    found, _ = padding_free.attend(None, query, key, value, None, **options)
    assert asked == [((12, 2, padded), 7, 0.0, False, None if reach is None else reach - 1)]
    torch.testing.assert_close(found, right)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("width", [26, 64])
@pytest.mark.parametrize("reach", [None, 4])
def test_the_kernel_of_a_gpu_has_the_values_and_gradients_of_the_formula(width, reach):
    device = torch.device("cuda")
    torch.manual_seed(0)
    tokens = torch.randn(3, 1, 2, 24, width, device=device)
    starts = torch.tensor([0, 5, 24], dtype=torch.int32, device=device)
    options = {"cu_seq_lens_q": starts, "max_length_q": 19, "sliding_window": reach}
    values = []
    for dtype in (torch.float32, torch.bfloat16):  # the formula, the kernel
        given = tokens.detach().to(dtype).requires_grad_()
        assert padding_free.has_kernel(given) == (dtype == torch.bfloat16)
        found, _ = padding_free.attend(None, *given, None, **options)
        found.float().square().sum().backward()
        values.append((found.detach().float(), given.grad.float()))
    for right, half in zip(*values, strict=True):
        assert float((half - right).norm() / right.norm()) < padding_free.CLOSE_IN_HALF


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("kind", sorted({"bert", "modernbert"} & LAID))
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_trains_alike(kind, compiled):
    """Against float32 and padding: off by no more than padded batches in bf16."""
    torch.manual_seed(0)
    encoder = without_dropout(strip_encoder(tiny_encoder(kind))).cuda()
    batch = {name: tensor.cuda() for name, tensor in batch_of().items()}
    del batch["token_type_ids"]
    other = torch.randn(len(LENGTHS), max(LENGTHS), 32, device="cuda")

    def run(half: bool) -> dict[str, torch.Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            states = encoder(**batch).last_hidden_state
        return gradients(
            encoder, (states.float() * other * batch["attention_mask"][..., None]).sum()
        )

    def off(found: dict, right: dict) -> float:
        total = sum((found[name] - value).square().sum() for name, value in right.items())
        return float((total / sum(v.square().sum() for v in right.values())).sqrt())

    right = run(half=False)
    padded = off(run(half=True), right)
    assert remove_padding(encoder, torch.device("cuda"))
    if compiled:
        blocks = encoder.layers if kind == "modernbert" else encoder.encoder.layer
        for block in blocks:
            block.compile(dynamic=True)
    assert off(run(half=True), right) < 1.5 * padded + 1e-3
