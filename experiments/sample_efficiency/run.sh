#!/bin/sh
# Supervised training from three starts, scored every 25 steps (paper, figure 6). What is finished is reused.
#   SEED=0 sh experiments/sample_efficiency/run.sh <folder of triplets> <sts-dev.csv> <mntp run> <mntp+simcse run> [overrides]
set -eu
[ $# -ge 4 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
triplets=$1 sts=$2 mntp=$3 simcse=$4 seed=${SEED:-0}
shift 4
here=$(dirname "$0")

supervised() {
    start=$1
    shift
    "${PYTHON:-python}" train.py --config-dir="$here" experiment=sample_efficiency data=small_mix data.folder="$triplets" \
        stage.sts.file="$sts" reuse=true seed="$seed" name="sample-efficiency/seed-$seed/$start" "$@"
}

supervised uni model.attention=causal model.pooling=weighted_mean "$@"
supervised bi-mntp init_from="$mntp" "$@"
supervised bi-mntp-simcse init_from="$simcse" "$@"
