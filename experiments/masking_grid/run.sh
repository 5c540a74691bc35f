#!/bin/sh
# The masking grid on a small model: MNTP, then SimCSE, at each point, scored on SICK-R and STSBenchmark's development
# part. What is finished is reused.
#   sh experiments/masking_grid/run.sh <folder of data> <folder of texts> [overrides]
# experiments/paper_scale/texts.py makes the second folder. JOBS=n trains n points at once (the extra l2v[sweep]).
set -eu
[ $# -ge 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1 texts=$2
shift 2
[ "${JOBS:-1}" -eq 1 ] || set -- hydra/launcher=joblib hydra.launcher.n_jobs="$JOBS" "$@"

"${PYTHON:-python}" recipe.py -m --config-dir=experiments/paper_scale recipe=masking_grid data=small_wikipedia \
    data.folder="$texts" seed=0,1 stage.masking_strategy=bert,all stage.masking_probability=0.2,0.4,0.6,0.8,0.9 \
    baselines='[]' evaluation=sts_dev evaluation.folder="$data" evaluation.batch_size=256 "$@"
