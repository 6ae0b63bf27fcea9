"""The encoder that is saved, blended with the one that training began with."""

import pytest
import torch
from conftest import PRETRAINING
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import run_itpt
from bertchain.data import contamination
from bertchain.errors import InputError
from bertchain.pretraining import blending

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_bert, topic_files):
    """The same training, saved as it is and blended: (results, folder) by share."""
    folder, found = tmp_path_factory.mktemp("blends"), {}
    for share in (0.0, 0.25, 1.0):
        out = folder / str(share)
        arguments = PRETRAINING | {
            "model_name_or_path": tiny_bert,
            "train_file": [topic_files["train"]],
            "max_steps": 4,
            "save_at_steps": [0, 2],
            "head_warmup_steps": 2,
            "blend_with_start": share,
            "output_dir": str(out),
        }
        found[share] = run_itpt.main(arguments), out
    return found


def weights_of(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).state_dict()


def test_the_encoder_is_blended_and_the_head_is_the_trained_one(runs, tiny_bert):
    start = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).state_dict()
    for share, (_, out) in runs.items():
        for place in ("step-2", ""):
            trained, blended = weights_of(runs[0.0][1] / place), weights_of(out / place)
            for name, value in trained.items():
                if name.startswith("bert."):
                    before = start[name.removeprefix("bert.")]
                    expected = (1 - share) * value + share * before
                    torch.testing.assert_close(blended[name], expected, atol=1e-6, rtol=1e-6)
                elif "decoder.weight" not in name:  # that is the embeddings, once
                    assert torch.equal(blended[name], value)
            tied = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
            assert torch.equal(*(blended[name] for name in tied))
    assert all(torch.equal(blended[f"bert.{name}"], start[name]) for name in start)  # share 1


def test_perplexity_before_and_after_the_blend_is_told(runs):
    plain = runs[0.0][0]
    assert "unblended_eval_perplexity" not in plain
    for share in (0.25, 1.0):
        results = runs[share][0]
        assert results["unblended_eval_perplexity"] == plain["eval_perplexity"]
        assert results["eval_perplexity"] != plain["eval_perplexity"]
    history = [(out / "history.csv").read_bytes() for _, out in runs.values()]
    assert len(set(history)) == 1  # the training is the same


def test_blends_of_a_run_that_was_not_blended(runs, tiny_bert, tmp_path):
    plain, out = runs[0.0][1], runs[0.25][1]
    for start in (tiny_bert, str(plain / "step-0")):
        blending.write_blend(plain / "step-2", start, 0.25, tmp_path / "blend")
        written, expected = weights_of(tmp_path / "blend"), weights_of(out / "step-2")
        assert all(torch.equal(written[name], expected[name]) for name in expected)
    AutoTokenizer.from_pretrained(tmp_path / "blend")
    assert contamination.read_fingerprint(tmp_path / "blend") is not None
    model = AutoModelForMaskedLM.from_pretrained(plain)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path / "grown")
    with pytest.raises(InputError, match=r"has other weights than .*save_at_steps 0"):
        blending.write_blend(tmp_path / "grown", tiny_bert, 0.5, tmp_path / "x")
