"""What a user's files and surroundings must not do: run code, leave the output folder, leak."""

import json
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT
from forking import run_command, start_command

import run_finetune
import run_itpt
import run_probe
from bertchain.errors import InputError

SECRET = "hf_noBodyMayReadThis"
TRAINING = ("--num_train_epochs", "1", "--use_cpu", "true", "--learning_rate", "3e-3")


def run(*line: object, **environment: str) -> tuple[int, str]:
    done = run_command(*line, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_tokens_and_the_environment_stay_out_of_files_and_logs(tiny_bert, topic_files, tmp_path):
    line = ["--model_name_or_path", tiny_bert, "--train_file", topic_files["train"], *TRAINING]
    line += ["--hub_token", SECRET, "--output_dir"]
    both = f"import sys; sys.path.insert(0, {str(ROOT)!r}); " + "".join(
        f"import {script}; {script}.main({[*line, str(tmp_path / script)]!r}); "
        for script in ("run_itpt", "run_finetune")
    )
    secrets = {"HF_TOKEN": SECRET, "MY_PASSWORD": SECRET}
    code, said = run("-c", both, **secrets)
    assert code == 0, said[-2000:]
    assert SECRET not in said
    for script in ("run_itpt", "run_finetune"):
        files = [path for path in (tmp_path / script).rglob("*") if path.is_file()]
        assert len(files) > 5
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def killed(line: list[object], mark: str, out: Path) -> None:
    """Run a command and kill it as soon as its output folder holds a file of that pattern."""
    process = start_command(*line, "--output_dir", out, env={"HF_TOKEN": SECRET})
    while process.poll() is None and not [*out.rglob(mark)]:
        time.sleep(0.01)
    process.kill()
    said = "".join(process.communicate())
    assert process.returncode == -signal.SIGKILL, said[-2000:]
    assert SECRET not in said


def test_a_killed_run_leaves_no_token_in_any_file(tiny_bert, topic_files, tmp_path):
    data = ["--train_file", topic_files["train"]]
    long = ["--use_cpu", "true", "--hub_token", SECRET, "--num_train_epochs", "500"]
    trained = ["--model_name_or_path", tiny_bert, *data, *long]
    killed([ROOT / "run_itpt.py", *trained], "checkpoint-*/whole", tmp_path / "itpt")
    killed([ROOT / "run_finetune.py", *trained], "checkpoint-*/whole", tmp_path / "one")
    folds = [ROOT / "run_finetune.py", *trained, "--num_folds", "2", "--seeds", "1", "2"]
    killed(folds, "checkpoint-*/whole", tmp_path / "folds")
    probed = [ROOT / "run_probe.py", "--models", f"base={tiny_bert}", *data]
    killed(probed, "*.npy", tmp_path / "probed")
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.name == "training_args.bin" for path in left) >= 3
    assert not [path for path in left if SECRET.encode() in path.read_bytes()]
    arguments = torch.load(
        next(tmp_path.rglob("training_args.bin")), weights_only=False, map_location="cpu"
    )
    assert arguments.hub_token is None


EVIL = "from pathlib import Path\nPath({mark!r}).write_text('run')\n"


@pytest.mark.parametrize("script", ["run_itpt.py", "run_finetune.py", "run_probe.py"])
def test_code_beside_a_checkpoint_is_not_run(script, tiny_bert, topic_files, tmp_path):
    """A model that brings code is refused in one line; a pickle beside it is not opened."""
    model, mark = tmp_path / "model", tmp_path / "mark"
    model.mkdir()
    for file in Path(tiny_bert).iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel"), "evil.Model")
    config |= {"model_type": "evil"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(EVIL.format(mark=str(mark)))
    (model / "training_args.bin").write_bytes(
        b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    )
    given = ["--models", model] if script == "run_probe.py" else ["--model_name_or_path", model]
    training = () if script == "run_probe.py" else TRAINING
    line = [*given, "--train_file", topic_files["train"], *training, "--output_dir", tmp_path / "o"]
    code, said = run(ROOT / script, *line)
    assert code == 2 and "Traceback" not in said and str(model) in said, said[-2000:]
    assert not mark.exists()


def test_a_description_does_not_ask_whether_code_may_run(tiny_bert, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    shutil.copytree(tiny_bert, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    code = EVIL.format(mark=str(mark)) + "from transformers import BertConfig, BertModel\n"
    code += "class C(BertConfig): model_type = 'evil'\nclass M(BertModel): config_class = C\n"
    (tmp_path / "model" / "evil.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda text="": "y")
    given = ["--describe", str(tmp_path / "model"), "--trust_remote_code"]
    with pytest.raises(InputError, match=r"custom code .*; if you trust its code, add --trust_rem"):
        run_probe.main([*given, "false"])
    assert not mark.exists()
    run_probe.main(given)
    assert mark.exists()


def test_names_from_data_make_no_paths(tiny_bert, topic_files, tmp_path, pictures):
    """Ids, labels, and names of models and corpora that look like ways out of the folder."""
    rows = pd.read_csv(topic_files["train"])
    rows["id"] = [f"../../escaped-{i}" for i in range(len(rows))]
    rows["label"] = "../../escaped-" + rows["label"]
    away = tmp_path / "a" / "b" / "c"
    away.mkdir(parents=True)
    rows.to_csv(away / "train.csv", index=False)
    data = ["--train_file", away / "train.csv", "--id_column_name", "id"]
    tuned = ["--model_name_or_path", tiny_bert, *data, *TRAINING, "--num_folds", "2"]
    tuned += ["--test_file", away / "train.csv", "--output_dir", away / "tuned"]
    probed = ["--models", f"../../escaped={tiny_bert}", *data, "--output_dir", away / "probed"]
    probed += ["--analyses", "change", "directprobe", "--directprobe_points", "60"]
    pretrained = ["--model_name_or_path", tiny_bert, *TRAINING, "--output_dir", away / "itpt"]
    pretrained += ["--corpora", json.dumps({"../../escaped": str(away / "train.csv")})]
    run_finetune.main([*map(str, tuned)])
    run_probe.main([*map(str, probed)])
    run_itpt.main([*map(str, pretrained)])
    outside = [p for p in tmp_path.rglob("*") if away not in p.parents and p != away]
    assert {p.name for p in outside} == {"a", "b"}
    assert not [*tmp_path.parent.glob("*escaped*")]
