"""The scores of the runs of ``run.sh`` as a table, and as ``results.json`` beside this file.

python experiments/languages/results.py runs/languages
"""

import sys
from pathlib import Path

from l2v.errors import L2VError
from l2v.runs.files import read_json, write_json

ROWS = {"untrained": "untrained", "de": "German", "en": "English", "both": "half of each"}
LANGUAGES = ("en", "de", "fr", "zh")


def scores(folder: Path, name: str) -> dict[str, float]:
    """Spearman correlation by language, and the token accuracy of German parts of speech in percent.

    Raises:
        L2VError: the run was not scored.
    """
    similarity = folder / name / "evaluation" / "sts_languages.json"
    speech = folder / f"{name}-pos" / "evaluation" / "pos.json"
    for file in (similarity, speech):
        if not file.exists():
            raise L2VError(f"{file} is not there; experiments/languages/run.sh writes it")
    of_language = {language: score["value"] for language, score in read_json(similarity)["scores"].items()}
    words = read_json(speech)["words"]
    return of_language | {"pos": round(100 * words["scores"]["test"]["paper_accuracy"], 2)}


def main(folder: Path) -> None:
    """Print Markdown, and write the numbers."""
    results = {name: scores(folder, name) for name in ROWS}
    write_json(Path(__file__).with_name("results.json"), results)
    print("| trained on | STS-B English | German | French | Chinese | POS German |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, row in ROWS.items():
        cells = [*(f"{results[name][language]:.3f}" for language in LANGUAGES), f"{results[name]['pos']:.2f}"]
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/languages"))
    except L2VError as error:
        sys.exit(f"error: {error}")
