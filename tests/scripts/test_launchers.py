"""The same command under every launcher, on one machine and on two, and on a sharded model."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT
from forking import Command, run_command, start_bare, start_command

ACCELERATE = ["-m", "accelerate.commands.launch"]
TORCHRUN = ["-m", "torch.distributed.run"]
PORT = 31000 + os.getpid() % 500
PROBING = ["--probes", "linear", "knn", "mlp", "mix", "--mlp_widths", "4"]
PROBING += ["--baselines", "random_encoder", "static", "--concat_layers", "all"]
PROBING += ["--analyses", "change", "mdl", "directprobe", "geometry"]
PROBING += ["--max_train_samples", "48", "--probe_layers", "0", "2", "--mlp_repeats", "2"]
OUTPUTS = ("predictions_test.csv", "predictions_validation.csv", "model.safetensors")


@pytest.fixture(scope="module")
def line(tiny_bert, topic_files):
    def line(out) -> list[str]:
        return [
            *(str(ROOT / "run_finetune.py"), "--model_name_or_path", tiny_bert, "--use_cpu"),
            *("--train_file", topic_files["train"], "--test_file", topic_files["test"]),
            *("--id_column_name", "id", "--learning_rate", "3e-3", "--num_train_epochs", "1"),
            *("--per_device_train_batch_size", "8", "--output_dir", str(out)),
        ]

    return line


def wait(*processes: subprocess.Popen | Command) -> None:
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]


def contents(out) -> list[bytes]:
    return [(out / name).read_bytes() for name in OUTPUTS]


def test_one_process_is_the_same_by_every_launcher(line, tmp_path):
    launchers = {
        "python": [],
        "accelerate": [*ACCELERATE, "--num_processes", "1", "--num_machines", "1"],
        "torchrun": [*TORCHRUN, "--nproc_per_node", "1", "--master_port", str(PORT)],
    }
    for name, launcher in launchers.items():
        # accelerate starts interpreters of its own with two processes, see below
        start = start_bare if name == "torchrun" else start_command
        wait(start(*launcher, *line(tmp_path / name)))
        assert contents(tmp_path / name) == contents(tmp_path / "python"), name


def test_two_processes_are_the_same_on_one_machine_and_on_two(line, tmp_path):
    """Two machines: two agents that know each other by address and rank alone. (Their processes
    are forks, those on one machine are not.)"""
    config = str(ROOT / "examples" / "accelerate" / "two_processes.yaml")
    launcher = [*ACCELERATE, "--config_file", config, "--main_process_port", str(PORT + 1)]
    wait(start_bare(*launcher, *line(tmp_path / "accelerate")))
    place = ["--master_addr", "127.0.0.1", "--master_port", str(PORT + 2)]
    each = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", *place, "--node_rank"]
    wait(*(start_command(*each, rank, *line(tmp_path / "torchrun")) for rank in "01"))
    config = str(ROOT / "examples" / "accelerate" / "two_machines.yaml")
    place = ["--num_processes", "2", "--main_process_port", str(PORT + 3)]
    each = [*ACCELERATE, "--config_file", config, *place, "--mixed_precision", "no"]
    each.append("--machine_rank")
    wait(*(start_command(*each, rank, *line(tmp_path / "machines")) for rank in "01"))
    for name in ("torchrun", "machines"):
        assert contents(tmp_path / name) == contents(tmp_path / "accelerate"), name


OF_ITS_RANK = """
import os, sys
sys.path.insert(0, {root!r})
import run_finetune
from bertchain import cli
sys.argv[1:] = [word.replace("RANK", os.environ["RANK"]) for word in sys.argv[1:]]
cli.run_script(run_finetune.main)
"""


@pytest.mark.parametrize("where", ["in the arguments", "in the data", "on one of two"])
def test_a_mistake_is_said_once_by_one_process(where, line, topic_files, tmp_path):
    """Whether all processes meet it or one alone; none hangs."""
    script = tmp_path / "script.py"
    script.write_text(OF_ITS_RANK.format(root=str(ROOT)))
    words = [script, *line(tmp_path / "out")[1:]]
    words += {
        "in the arguments": ["--layer_lr_decay", "2"],
        "in the data": ["--delimiter", ";"],
    }.get(where, ["--train_file", tmp_path / "train-RANK.csv"])
    shutil.copy(topic_files["train"], tmp_path / "train-0.csv")
    config = str(ROOT / "examples" / "accelerate" / "two_processes.yaml")
    done = run_command(
        *ACCELERATE, "--config_file", config, "--main_process_port", PORT + 6, *words
    )
    said = [row for row in done.stderr.splitlines() if row.startswith("script.py: error: ")]
    assert done.returncode == 1 and len(said) == 1, done.stderr  # the launcher's own exit code
    assert ("train-1.csv: no such file" in said[0]) == (where == "on one of two")
    assert "exitcode  : 2" in done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr  # the launcher's
    assert said[0] in done.stderr.split("Root Cause")[1]


@pytest.mark.parametrize("file", ["train-1.csv", "arguments-1.yaml"])
def test_a_process_whose_partner_on_another_machine_ends_does_not_wait(
    file, line, topic_files, tmp_path
):
    """The arguments are read before the process group is started, the data after it."""
    script = tmp_path / "script.py"
    script.write_text(OF_ITS_RANK.format(root=str(ROOT)))
    name = file.replace("1", "RANK")
    if file.startswith("train"):
        shutil.copy(topic_files["train"], tmp_path / "train-0.csv")
        words = [script, *line(tmp_path / "out")[1:], "--train_file", tmp_path / name]
    else:
        (tmp_path / "arguments-0.yaml").write_text("seed: 1\n")
        words = [script, tmp_path / name, *line(tmp_path / "out")[1:]]
    place = ["--master_addr", "127.0.0.1", "--master_port", str(PORT + 7)]
    each = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", *place, "--node_rank"]
    processes = [start_command(*each, rank, *words) for rank in "01"]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert all(process.returncode for process in processes)
    assert "script.py: error: another process of this run has ended" in said[0], said[0]
    assert f"{file}: " in said[1] and said[1].count("o such file") >= 1, said[1]


FULLY_SHARDED = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tiny_models import classifier
from bertchain.models.layers import layer_groups, layer_rates

def steps(shard):
    torch.manual_seed(0)
    model = classifier("bert", head_dropout=0.0).eval()
    if shard:
        mesh = init_device_mesh("cpu", (2,))
        for block in model.encoder.encoder.layer:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    groups = layer_groups(model, layer_rates(4, 1e-2, decay=0.5), 0.01, set())
    optimizer = torch.optim.AdamW(groups)
    ids = torch.randint(5, 60, (4, 2, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {{n: p.full_tensor() if shard else p.detach() for n, p in model.named_parameters()}}

plain, sharded = steps(False), steps(True)
for name, value in plain.items():
    torch.testing.assert_close(sharded[name], value, atol=1e-5, rtol=1e-4)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
print("equal")
"""


def test_layer_wise_rates_work_on_a_sharded_model(tmp_path):
    """FSDP 2 over two processes takes the steps of a model in one piece."""
    script = tmp_path / "sharded.py"
    script.write_text(FULLY_SHARDED.format(root=str(ROOT), tests=str(ROOT / "tests")))
    launcher = [*TORCHRUN, "--nproc_per_node", "2", "--master_port", str(PORT + 5)]
    done = run_command(*launcher, script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2


def test_nothing_hangs_on_the_hash_of_a_word(tiny_bert, topic_files, tmp_path):
    """Sets of text have another order in every process: no table may. (Forks share a seed that the
    server has drawn.)"""
    seed = next(seed for seed in "12" if seed != os.environ.get("PYTHONHASHSEED"))
    lines = {
        "tune": [
            *(ROOT / "run_finetune.py", "--model_name_or_path", tiny_bert, "--num_folds", "2")
        ],
        "probe": [*(ROOT / "run_probe.py", "--models", f"b={tiny_bert}"), *PROBING],
    }
    lines["tune"] += ["--num_train_epochs", "1", "--use_cpu"]
    files = ["--train_file", topic_files["train"], "--test_file", topic_files["test_labels"]]
    files += ["--id_column_name", "id", "--output_dir"]
    started = [
        start_bare(*line, *files, tmp_path / name / "1", env={"PYTHONHASHSEED": seed})
        for name, line in lines.items()
    ]
    started += [start_command(*line, *files, tmp_path / n / "2") for n, line in lines.items()]
    wait(*started)
    for name in lines:
        tables = sorted(path.name for path in (tmp_path / name / "1").glob("*.csv"))
        assert len(tables) > 4
        for table in tables:
            one, other = ((tmp_path / name / run / table).read_bytes() for run in "12")
            assert one == other, table
