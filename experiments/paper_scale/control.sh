#!/bin/sh
# Bi + SimCSE of seed 0 on a CPU, where no small step of LoRA is rounded away, and its scores.
#   sh experiments/paper_scale/control.sh <folder of data> <folder of texts>
set -eu
[ $# -eq 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
run=runs/paper_scale/bi_simcse_cpu/seed-0/simcse
"${PYTHON:-python}" train.py --config-dir="$(dirname "$0")" model=smollm2-135m-embedded model.dtype=bfloat16 \
    data=small_wikipedia data.folder="$2" trainer=auto export=adapter stage=simcse stage.max_steps=250 \
    stage.global_batch_size=128 stage.learning_rate=5e-4 stage.warmup_steps=25 stage.validate_every=125 \
    stage.validation_rows=128 seed=0 name=paper_scale/bi_simcse_cpu/seed-0/simcse reuse=true
"${PYTHON:-python}" evaluate.py encoder="$run" dtype=bfloat16 evaluation=quick_whole evaluation.folder="$1" \
    evaluation.batch_size=64
