#!/usr/bin/env bash
# The whole chain on real text, offline: data from docstrings, MiniLM as the encoder.
#
#   bash examples/quickstart.sh [folder]        # default folder: quickstart
#
# Environment:
#   MODEL   a hub name or folder in place of the packaged MiniLM, such as MODEL=bert-base-uncased
#   SHORT   set to 1 for a short form: fewer rows and steps, shorter windows
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-quickstart}
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false

if [ -z "${MODEL:-}" ]; then
  MODEL=$(python "$here/examples/find_encoder.py" minilm)
  export HF_HUB_OFFLINE=1 # nothing here needs the network
fi

finetune="--num_train_epochs 5"
itpt="--num_train_epochs 2"
length=64
if [ "${SHORT:-0}" = 1 ]; then
  finetune="--num_train_epochs 2 --max_train_samples 320"
  itpt="--num_train_epochs 1 --max_train_samples 150"
  length=32
fi
text="--text_column_names title abstract --max_seq_length $length"
labelled="--train_file $out/data/train.csv --id_column_name id --validation_split 0.15"

say() { printf '\n== %s\n' "$*"; }
rm -rf "$out"/{itpt,finetuned,itpt_finetuned,probed} # results of an earlier quickstart

say "1/5 Data: titles and descriptions of library functions, 13 topics"
python "$here/examples/make_docstring_data.py" --output_dir "$out/data"

say "2/5 Further pretraining (ITPT) on the unlabelled and the training text"
python "$here/run_itpt.py" --model_name_or_path "$MODEL" $text $itpt \
  --train_file "$out/data/unlabelled.csv" "$out/data/train.csv" --test_file "$out/data/test.csv" \
  --learning_rate 1e-4 --output_dir "$out/itpt"

say "3/5 Fine-tuning the encoder as it came"
python "$here/run_finetune.py" --model_name_or_path "$MODEL" $text $labelled $finetune \
  --test_file "$out/data/test.csv" --token_pooling mean --learning_rate 3e-4 \
  --output_dir "$out/finetuned"

say "4/5 Fine-tuning the further pretrained encoder"
python "$here/run_finetune.py" --model_name_or_path "$out/itpt" $text $labelled $finetune \
  --test_file "$out/data/test.csv" --token_pooling mean --learning_rate 3e-4 \
  --output_dir "$out/itpt_finetuned"

say "5/5 Comparison: frozen probe, fine-tuned, ITPT -> fine-tuned, ITPT -> probe"
python "$here/run_probe.py" $text $labelled --test_file "$out/data/test_labels.csv" \
  --models "base=$MODEL" "itpt=$out/itpt" "finetuned=$out/finetuned" \
  "itpt_finetuned=$out/itpt_finetuned" --output_dir "$out/probed"

say "Done. Look at $out/probed/report.html, $out/finetuned/history.png, $out/finetuned/README.md"
