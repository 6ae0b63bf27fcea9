"""A classifier saved before the code was one package: it loads, and predicts what it predicted."""

from pathlib import Path

import numpy as np
import pandas as pd
from forking import run_command

import run_finetune

FOLDER = Path(__file__).parent / "earlier_version"
PROBABILITIES = ["prob_animals", "prob_moods", "prob_places"]


def expected() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "predictions_test.csv")


def test_the_script_predicts_the_same_with_it(tmp_path):
    run_finetune.main(
        {
            "model_name_or_path": str(FOLDER),
            "test_file": str(FOLDER / "test.csv"),
            "id_column_name": "id",
            "output_dir": str(tmp_path),
            "use_cpu": True,
        }
    )
    found = pd.read_csv(tmp_path / "predictions_test.csv")
    assert found["prediction"].tolist() == expected()["prediction"].tolist()
    np.testing.assert_allclose(found[PROBABILITIES], expected()[PROBABILITIES], atol=1e-6)


def test_plain_transformers_loads_it_with_the_code_it_brings(tmp_path):
    code = f"""
import pandas as pd
from transformers import AutoModelForSequenceClassification, pipeline
model = AutoModelForSequenceClassification.from_pretrained({str(FOLDER)!r}, trust_remote_code=True)
assert type(model).__name__ == "DocumentClassifier" and model.config.slots == 0
classify = pipeline(
    "text-classification", model={str(FOLDER)!r}, trust_remote_code=True, top_k=None
)
for scores in classify(pd.read_csv({str(FOLDER / "test.csv")!r})["text"].tolist()):
    print(*[s["score"] for s in sorted(scores, key=lambda s: s["label"])])
"""
    done = run_command("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = [[float(s) for s in line.split()] for line in done.stdout.strip().splitlines()[-6:]]
    np.testing.assert_allclose(scores, expected()[PROBABILITIES], atol=1e-6)
