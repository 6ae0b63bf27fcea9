"""Ctrl-C and a notebook's stop button, where a library takes them for something else."""

import datasets.fingerprint
import pytest

import run_finetune
import run_itpt

RUNS = {
    "finetune": (run_finetune, {"token_pooling": "mean"}),
    "itpt": (run_itpt, {"packing": True}),
}


@pytest.mark.parametrize("script", RUNS)
def test_none_is_lost_while_datasets_hashes_a_function(
    script, tiny_bert, topic_files, tmp_path, monkeypatch
):
    """Interrupt each hash of a function, or of a long column, in turn until a run has no more."""
    module, arguments = RUNS[script]
    arguments = arguments | {"model_name_or_path": tiny_bert, "train_file": topic_files["train"]}
    arguments |= {"test_file": topic_files["test"]} if module is run_finetune else {}
    arguments |= {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "max_train_samples": 100}
    own, hashed = datasets.fingerprint.dumps, []

    def interrupted(value):
        parts = value if isinstance(value, tuple) else (value,)
        by_name = getattr(value, "__module__", "").startswith("datasets.")  # takes no time
        long = any(isinstance(part, list) and len(part) > 50 for part in parts)
        if long or (any(callable(part) for part in parts) and not by_name):
            hashed.append(value)
            if len(hashed) == at:
                raise KeyboardInterrupt
        return own(value)

    monkeypatch.setattr(datasets.fingerprint, "dumps", interrupted)
    at = 0
    while len(hashed) == at:
        at, hashed = at + 1, []
        try:
            module.main(arguments | {"output_dir": str(tmp_path / str(at))})
        except KeyboardInterrupt:
            continue
        assert len(hashed) < at, f"interrupt {at} was lost: {hashed[-1]}"
    assert at > 4
