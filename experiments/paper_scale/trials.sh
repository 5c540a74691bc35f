#!/bin/sh
# Learning rates for run.sh: short trials from the untrained model, scored by STSBenchmark's development part and SICK-R.
#   sh experiments/paper_scale/trials.sh <folder of data> <folder of texts> [overrides]
# JOBS=n trains n of each at once, and both stages (the extra l2v[sweep]).
set -eu
[ $# -ge 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1 texts=$2
shift 2
[ "${JOBS:-1}" -eq 1 ] || set -- hydra/launcher=joblib hydra.launcher.n_jobs="$JOBS" "$@"
here=$(dirname "$0")

trial() {
    "${PYTHON:-python}" recipe.py -m --config-dir="$here" recipe=paper_scale data=small_wikipedia \
        data.folder="$texts" baselines='[]' stage.max_steps=200 stage.warmup_steps=20 evaluation=sts_dev \
        evaluation.folder="$data" "$@"
}

together() {
    if [ "${JOBS:-1}" -gt 1 ]; then "$@" & else "$@"; fi
}

together trial name=paper_scale_trials/mntp '~stages.simcse' stage.learning_rate=5e-4,1e-3,2e-3 "$@"
together trial name=paper_scale_trials/simcse '~stages.mntp' stage.learning_rate=3e-4,5e-4,1e-3 "$@"
wait
