#!/bin/sh
# The demo's recipe on the first layers of the model: all of them, 80, 60 and 40%. What is finished is reused.
#   sh experiments/depth/run.sh <folder of data> [overrides]
#   sh experiments/depth/run.sh ../shared/data
set -eu
[ $# -ge 1 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1
shift
for layers in 1.0 0.8 0.6 0.4; do
    "${PYTHON:-python}" recipe.py recipe=demo name=depth/$layers model.layers=$layers baselines='[]' "$@"
done
"${PYTHON:-python}" experiments/depth/results.py "$data" runs/depth
