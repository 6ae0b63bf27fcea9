#!/usr/bin/env bash
# Further pretraining of MiniLM, which lacks its masked-LM head: none, all weights together, the head
# first; the same number of tokens in each of the last two. Then fine-tuned with five seeds.
#
#   ln -s "$(python examples/find_encoder.py minilm)" MiniLM; ln -s DATA_FOLDER DATA
#   bash benchmarks/head_first.sh ohsumed trec imdb
#
# Tables: sweeps/head_first_NAME/sweep.md. Finished runs are not repeated.
set -euo pipefail

pretrain() { # NAME WAY flags: half of the 120 steps of 4,096 tokens are the head's, or none
  [ -f "head_first/$1/$2/all_results.json" ] && return
  case $2 in
    together) own="--head_warmup_steps 0 --max_steps 120" ;;
    first) own="--head_warmup_steps 60 --max_steps 60" ;;
  esac
  python run_itpt.py --model_name_or_path MiniLM --learning_rate 1e-4 --validation_split 0.02 \
    --max_seq_length 128 --tokens_per_batch 4096 --eval_strategy steps --eval_steps 60 \
    --save_strategy steps --save_steps 60 --output_dir "head_first/$1/$2" $own "${@:3}"
}

for name in "$@"; do
  case $name in
    ohsumed) files=(--train_file DATA/ohsumed/train.jsonl.gz --test_file DATA/ohsumed/test.jsonl.gz
      --text_column_names title abstract) ;;
    trec) files=(--train_file DATA/trec/train.csv --test_file DATA/trec/test.csv) ;;
    imdb) files=(--train_file DATA/imdb/unsup.csv.gz --test_file DATA/imdb/test.csv.gz
      --max_train_samples 5000) ;;
  esac
  for way in together first; do pretrain "$name" "$way" "${files[@]}"; done
  python examples/sweep.py "benchmarks/sweeps/head_first_$name.yaml"
done
