#!/bin/sh
# Three seeds of the demo's recipe, and their weights put together: mean of three, mean and arc (SLERP) of two, and each
# scored by the same tasks. What is finished is reused.
#   sh experiments/merging/run.sh <folder of data> [overrides of recipe.py]
set -eu
[ $# -ge 1 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1
shift
python=${PYTHON:-python}
for seed in 0 1 2; do
    "$python" recipe.py recipe=demo name=merging/seed-$seed seed=$seed baselines='[]' "$@"
    "$python" evaluate.py encoder=runs/merging/seed-$seed/simcse evaluation=quick evaluation.folder="$data"
done

merged() {
    name=$1
    shift
    "$python" -m l2v.cli.export run=runs/merging/seed-0/simcse output=runs/merging/$name "$@"
    "$python" evaluate.py encoder=runs/merging/$name output=runs/merging/$name evaluation=quick evaluation.folder="$data"
}

first=runs/merging/seed-1/simcse second=runs/merging/seed-2/simcse
merged mean-of-three "merge.runs=[$first,$second]"
merged slerp-of-three "merge.runs=[$first,$second]" merge.method=slerp
merged half-of-the-base merge.base_ratio=0.5
"$python" experiments/quick/table.py runs/merging/seed-0/simcse runs/merging/seed-1/simcse runs/merging/seed-2/simcse \
    runs/merging/mean-of-three runs/merging/slerp-of-three runs/merging/half-of-the-base \
    --results experiments/merging/results.json
