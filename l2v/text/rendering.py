"""A chat template, which is a program of whoever made a model, run in a process of its own: it may not hang ours."""

import functools
import json
import os
import subprocess
import sys
from typing import Any

from l2v.errors import L2VError

_SECONDS = 20
_BYTES = 4 * 2**30
_PROGRAM = """
import json, resource, sys
from transformers.utils.chat_template_utils import render_jinja_template
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
try:
    rendered, _ = render_jinja_template(**json.load(sys.stdin))
    answer = {"text": rendered[0]}
except Exception as error:
    answer = {"error": str(error).strip() or type(error).__name__}
print(json.dumps(answer))
"""


def render(template: str, message: str, special_tokens: dict[str, Any]) -> str:
    """A chat template around one message of a user.

    Args:
        template: in Jinja.
        message: of the user.
        special_tokens: by the names that a template knows them by: bos_token, eos_token, ...

    Raises:
        L2VError: the template fails, or comes to no end.
    """
    conversation = [{"role": "user", "content": message}]
    return _render(
        json.dumps({"conversations": [conversation], "chat_template": template, **special_tokens}, default=str)
    )


@functools.lru_cache(maxsize=32)
def _render(settings: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(_BYTES)],
            input=settings,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise L2VError(f"it came to no end within {_SECONDS} s") from None
    if done.returncode != 0:
        raise L2VError(f"it takes too much memory, or ends its process (exit code {done.returncode})")
    answer: dict[str, str] = json.loads(done.stdout)
    if "error" in answer:
        raise L2VError(answer["error"])
    return answer["text"]
