"""Look for evaluation texts in training data: ``l2v contamination run=runs/demo/mntp evaluation=demo``."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from l2v import config as configs
from l2v.contamination.ngrams import Grams, contamination
from l2v.contamination.texts import training_texts
from l2v.data.texts import FileTexts
from l2v.errors import L2VError
from l2v.progress import say
from l2v.report.contamination import print_contamination
from l2v.runs.files import check_writable, write_json
from l2v.runs.run import Run


def main(composed: DictConfig) -> None:
    """Check the config, read both sides, write ``contamination/<suite>.json``, print the shares."""
    config = configs.plain(composed, without=("data.validation", "data.test"))
    grams = configs.construct(Grams, {name: config[name] for name in ("n", "shortest")}, "")
    source, data, folder = _training_data(config)
    suite = config.get("evaluation") or {"suite": "texts", "tasks": {}}
    tasks = configs.build_tasks(suite)
    file = Path(config["output"] or folder).expanduser() / "contamination" / f"{suite['suite']}.json"
    check_writable(file)
    texts: dict[str, tuple[str, Iterable[str]]] = {}
    unknown = []
    for name, task in tasks.items():
        found_texts = task.evaluated_texts_by_task(name)
        texts |= found_texts
        unknown += [] if found_texts else [name]
    if config["texts"]["files"] is not None:
        given = configs.construct(FileTexts, {**config["texts"], "override": "texts.files"}, "texts")
        for path in given.paths():
            own = replace(given, files=str(path))
            texts[path.stem if path.stem not in texts else str(path)] = (path.name, own.texts())
    if not texts:
        raise L2VError("evaluation: no texts to look for; choose a suite (evaluation=demo) or name texts.files=")
    if unknown:
        say(f"not looked at, as they do not say their texts: {', '.join(unknown)}", style="yellow")
    begin = time.monotonic()
    found = contamination(training_texts(source, show=True), {name: own for name, (_, own) in texts.items()}, grams)
    result = {
        "suite": suite["suite"],
        "data": data,
        "n": grams.n,
        "shortest": grams.shortest,
        "training": {**found["training"], "fingerprint": source.fingerprint()},
        "seconds": round(time.monotonic() - begin, 1),
        "tasks": {name: {"label": texts[name][0], **task} for name, task in found["tasks"].items()},
        "not_looked_at": unknown,
    }
    print_contamination(result)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    say(f"wrote {file}")


def _training_data(config: dict[str, Any]) -> tuple[Any, str, Path]:
    """The training data, what they are called, and the folder for the result where none is given."""
    if (config["run"] is None) == (config.get("data") is None):
        raise L2VError("expected either run=<run> or data=<training data> (data=wikitext103, data=files, ...)")
    if config["run"] is None:
        name = configs.choices()["data"]
        return configs.build(config["data"]["train"], "data.train"), name, Path("runs") / f"data-{name}"
    run = Run.open(config["run"], "run")
    where = f"run={config['run']}"
    try:
        settings = configs.read_saved(run.folder / "config.yaml", where)
        node = settings["data"]["train"]
    except (L2VError, KeyError, TypeError):
        raise L2VError(f"{where}: its config.yaml does not say its training data; name data= instead") from None
    used = {name: part for name, part in settings.items() if name != "logger"}
    configs.check_targets(used, configs.allowed_modules(), where)
    configs.check_definitions({"data": {"train": node}}, configs.allowed_modules(), where)
    if settings.get("init_from"):
        say(f"the run began with init_from={settings['init_from']}, whose own training data are not looked at")
    return configs.build(node, "data.train"), f"data of {run.folder.name}", run.folder


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="contamination", models=False)


if __name__ == "__main__":
    start()
