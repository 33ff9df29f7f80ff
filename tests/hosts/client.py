"""Calls MONAILabelClient, in the environment of the server: `python client.py URL FOLDER METHOD`.

The arguments of the method are a JSON object on standard input, its result is JSON on standard output. What
goes wrong is one sentence on standard error, and exit status 1. The client has no method for scoring: here
"score" starts it and "score_status" says where it stands.
"""

from __future__ import annotations

import json
import re
import sys
from http.client import HTTPException
from typing import Any

from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException, MONAILabelUtils

#: What to do about an answer.
FIXES = {
    401: "it wants a login: hand a token to update_auth, or switch MONAI_LABEL_AUTH_ENABLE off on loopback",
    403: "the login lacks the role for this: ask who runs the server",
    404: "it knows no such address or entry: compare the names with those that 'info' lists",
    429: "it is at work on the same already: wait until its status is DONE",
    500: "it failed; its log says why, and an unknown model or image counts as failure too",
}


def score(server: str, model: str, **params: Any) -> Any:
    """Start the scoring of all images without label."""
    return http("POST", server, f"/scoring/{model}", params)


def score_status(server: str) -> Any:
    """The last scoring."""
    return http("GET", server, "/scoring/")


def http(method: str, server: str, address: str, body: Any = None) -> Any:
    """What the client does for the methods that it has."""
    status, answer, _, _ = MONAILabelUtils.http_method(method, server, address, body)
    if status != 200:
        raise MONAILabelClientException(0, f"Status: {status}; Response: {answer!r}", status)
    return json.loads(answer)


def call(server: str, folder: str, method: str, arguments: dict[str, Any]) -> Any:
    """Call a method of the client, or one of the two above."""
    if method in ("score", "score_status"):
        return globals()[method](server, **arguments)
    return getattr(MONAILabelClient(server, tmpdir=folder), method)(**arguments)


def sentence(server: str, method: str, error: Exception) -> str:
    """What went wrong, and what to do about it."""
    if isinstance(error, MONAILabelClientException):
        found = re.match(r"Status: (\d+)", str(error.msg))
        status = int(found[1]) if found else 0
        return f"{server} answered {status} to {method!r}: {FIXES.get(status, 'its log says why')}"
    if isinstance(error, ValueError):
        return f"{server} answered {method!r} with something else than JSON: is it MONAI Label that listens?"
    return f"{server} does not answer {method!r} ({error or type(error).__name__}): start the server there"


if __name__ == "__main__":
    server, folder, method = sys.argv[1:]
    try:
        result = call(server, folder, method, json.load(sys.stdin))
    except (MONAILabelClientException, ValueError, OSError, HTTPException) as error:
        sys.exit(sentence(server, method, error))
    sys.stdout.write(json.dumps(result))
