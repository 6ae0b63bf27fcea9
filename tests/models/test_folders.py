"""Folders that have to be made plain first: what to do is said before anything is read."""

import json
import shutil

import pytest
import torch
from conftest import ROOT
from forking import run_command
from safetensors.torch import load_file
from transformers import AutoModel

from bertchain.arguments.common import EncoderArguments
from bertchain.arguments.pretraining import CheckpointArguments
from bertchain.arguments.probing import ModelsArguments
from bertchain.errors import InputError
from bertchain.models.folders import check_model_folder
from bertchain.models.loading import load_encoder

pytestmark = pytest.mark.versions
TAKERS = {
    "finetune": lambda path: EncoderArguments(model_name_or_path=path),
    "itpt": lambda path: CheckpointArguments(model_name_or_path=path),
    "probe": lambda path: ModelsArguments(models=[f"m={path}"]),
    "library": load_encoder,
}
ALL = pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)


@pytest.fixture
def folder(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "model")


def pickle_weights(folder, name="pytorch_model.bin", inside=None):
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.again"] = weights["embeddings.word_embeddings.weight"]  # shared memory
    torch.save({inside: weights, "epoch": 3} if inside else weights, folder / name)
    (folder / "model.safetensors").unlink()


@ALL
def test_a_pickled_file_names_the_command_that_converts_it(take, folder):
    pickle_weights(folder)
    with pytest.raises(InputError, match=rf"examples/to_safetensors.py {folder}"):
        take(str(folder))


@pytest.mark.parametrize(
    ("name", "inside"),
    [("pytorch_model.bin", None), ("last.ckpt", "state_dict"), ("w.pt", "model_state_dict")],
)
def test_the_converted_folder_is_taken(name, inside, folder, tiny_bert):
    pickle_weights(folder, name, inside)
    run_command(ROOT / "examples" / "to_safetensors.py", folder)
    check_model_folder(folder)
    wanted = load_encoder(tiny_bert)[0].state_dict()
    encoder, missing = load_encoder(folder)
    assert missing == [] and (folder / name).is_file()
    assert all(torch.equal(value, wanted[n]) for n, value in encoder.state_dict().items())


@ALL
@pytest.mark.parametrize("inner", ["0_Transformer", "own_name"])
def test_a_folder_of_sentence_transformers_names_its_encoder(take, inner, folder, tmp_path):
    outer = tmp_path / "sentences"
    shutil.copytree(folder, outer / inner)
    (outer / "modules.json").write_text(json.dumps([{"idx": 0, "path": inner}]))
    with pytest.raises(InputError, match=rf"sentence-transformers.*give {outer / inner}$"):
        take(str(outer))


def test_one_whose_encoder_lies_in_it_is_taken(folder):
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": ""}]))
    for take in TAKERS.values():
        take(str(folder))


@ALL
def test_an_adapter_is_to_be_merged(take, folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        AutoModel.from_pretrained(folder), peft.LoraConfig(target_modules=["query"])
    )
    model.save_pretrained(tmp_path / "adapter")
    says = rf"adapter is an adapter, not a model; merge it first: .*'{folder}'.*merge_and_unload"
    with pytest.raises(InputError, match=says):
        take(str(tmp_path / "adapter"))
