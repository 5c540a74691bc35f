#!/bin/sh
# The paper's table 4 for one model: five rows x chunking, NER and POS tagging on CoNLL-2003. Finished parts are reused.
#   sh experiments/word_level/run.sh <CoNLL-2003 folder> <mntp run> <simcse run without mntp> <mntp+simcse run> [overrides]
#   sh experiments/word_level/run.sh conll2003 runs/l3-mntp runs/l3-simcse runs/l3-mntp-simcse model=llama3-8b
set -eu
[ $# -ge 4 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
folder=$1 mntp=$2 simcse=$3 both=$4
shift 4
probe() {
    row=$1
    shift
    "${PYTHON:-python}" train.py -m experiment=word_level row="$row" data.folder="$folder" reuse=true "$@"
}
probe uni model.attention=causal "$@"
probe bi "$@"
probe bi_mntp init_from="$mntp" "$@"
probe bi_simcse init_from="$simcse" "$@"
probe bi_mntp_simcse init_from="$both" "$@"
"${PYTHON:-python}" experiments/word_level/table.py runs/word_level
"${PYTHON:-python}" -m l2v.cli.report runs/word_level/*
