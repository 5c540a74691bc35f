"""Puts together the texts to train on and to validate with, a folder for what MNTP reads and one for SimCSE.

python experiments/paper_scale/texts.py <folder of data> <folder to write>

The first holds ``wiki-split/sentences.txt``, ``wiki1m/wiki1m_for_simcse.txt`` and ``wikitext-2/{valid,test}.txt``. The
excerpt in the package gensim is added. WikiText-2's test part and the even articles of the excerpt are held out.
"""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from l2v.data.wikipedia import WikipediaExcerpt


def main(data: Path, folder: Path) -> None:
    articles, sentences = folder / "train" / "article", folder / "train" / "sentence"
    for name in ("wiki-split/sentences.txt", "wiki1m/wiki1m_for_simcse.txt"):
        for kind in (articles, sentences):
            copy(data / name, kind)
    copy(data / "wikitext-2" / "valid.txt", articles)
    write(WikipediaExcerpt("train", "article").texts(), articles / "excerpt.txt")
    write(WikipediaExcerpt("train", "sentence").texts(), sentences / "excerpt.txt")
    copy(data / "wikitext-2" / "test.txt", folder / "held_out" / "article")
    write(WikipediaExcerpt("held_out", "sentence").texts(), folder / "held_out" / "sentence" / "excerpt.txt")


def copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / file.name)


def write(texts: Iterable[str], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(text + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
