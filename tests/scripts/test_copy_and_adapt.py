"""A script and the package are copied and changed; a notebook's own modules stay its own."""

import shutil

from conftest import ROOT
from forking import run_command

ADAPTED = '''
import run_finetune
from bertchain import cli


class OwnTrainer(run_finetune.ClassifierTrainer):
    """Trains the head alone, at ten times the rate."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        for group in optimizer.param_groups:
            group["lr"] *= 10
        print("own optimizer", len(optimizer.param_groups))
        return optimizer


run_finetune.ClassifierTrainer = OwnTrainer
if __name__ == "__main__":
    cli.run_script(run_finetune.main)
'''


def test_a_copy_elsewhere_trains_with_its_own_optimizer(four_blocks, topic_files, tmp_path):
    """The copy lies in one folder, the run starts in another."""
    copy, start = tmp_path / "copy", tmp_path / "start"
    start.mkdir()
    shutil.copytree(ROOT / "bertchain", copy / "bertchain")
    shutil.copy(ROOT / "run_finetune.py", copy)
    (copy / "run_own.py").write_text(ADAPTED)
    line = [copy / "run_own.py", "--model_name_or_path", four_blocks, "--use_cpu", "true"]
    line += ["--train_file", topic_files["train"], "--num_train_epochs", 1, "--output_dir"]
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"]
    for name, launcher in (("python", []), ("accelerate", launch)):
        done = run_command(*launcher, *line, start / name, cwd=start)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "own optimizer 12" in done.stdout
        assert (start / name / "model.safetensors").is_file()


def test_a_notebook_folder_keeps_its_own_modules(tmp_path):
    names = ("metrics", "labels", "features", "utils", "data", "models", "cli")
    for name in names:
        (tmp_path / f"{name}.py").write_text("OWN = True\n")
    code = f"import sys; sys.path.append({str(ROOT)!r})\n"
    code += "import run_itpt, run_finetune, run_probe\n"
    code += "".join(f"import {name}; assert {name}.OWN\n" for name in names)
    code += "from bertchain import metrics as ours; assert ours.MAIN_METRIC; print('both')"
    done = run_command("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "both", done.stderr[-2000:]
