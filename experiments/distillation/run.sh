#!/bin/sh
# A sentence encoder teaches the demo's encoder on unlabelled sentences. What is finished is reused.
#   sh experiments/distillation/run.sh <teacher> <files of sentences> <run to begin with> [overrides]
#   sh experiments/distillation/run.sh sentence-transformers/all-MiniLM-L6-v2 'texts/*.txt' runs/demo/simcse
set -eu
[ $# -ge 3 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
teacher=$1 files=$2 start=$3
shift 3

"${PYTHON:-python}" encode.py encoder="$teacher" files="$files" output=runs/distillation-teacher normalize=true
"${PYTHON:-python}" train.py name=distillation stage=distillation init_from="$start" data=taught \
    data.train.files="$files" data.train.vectors=runs/distillation-teacher \
    stage.max_steps=130 stage.learning_rate=3e-4 stage.warmup_steps=10 stage.validate_every=50 \
    stage.validation_rows=256 reuse=true "$@"
