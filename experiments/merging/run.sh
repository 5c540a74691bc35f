#!/bin/sh
# Three seeds of the demo's recipe and the mean of their weights, scored by the same tasks; and how far their weights on
# the arc (SLERP) are from the mean. What is finished is reused.
#   sh experiments/merging/run.sh <folder of data> [overrides of recipe.py]
set -eu
[ $# -ge 1 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1
shift
python=${PYTHON:-python}

scored() {
    "$python" evaluate.py encoder="$1" output="$1" evaluation=demo_sts evaluation.folder="$data" \
        '~evaluation.tasks.sickr'
}

for seed in 0 1 2; do
    "$python" recipe.py recipe=demo name=merging/seed-$seed seed=$seed baselines='[]' "$@"
    scored runs/merging/seed-$seed/simcse
done
others='merge.runs=[runs/merging/seed-1/simcse,runs/merging/seed-2/simcse]'
for method in average slerp; do
    "$python" -m l2v.cli.export run=runs/merging/seed-0/simcse output=runs/merging/$method "$others" merge.method=$method
done
scored runs/merging/average
"$python" experiments/merging/results.py runs/merging
