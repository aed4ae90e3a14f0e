"""Compute a site's answer to the handshake in a process of its own.

Both digests in the answer need torch, which takes several times the memory that the gateway may use. Once per run, a
separate process reads the site's folder and the study from its standard input and writes the answer as JSON:

    python -m federation.gateway.about
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

from federation.approval import reasons
from federation.protocol.handshake import answer
from models.refusal import Refusal
from pipeline.site.folder import Site

_SECONDS = 300.0  # importing torch from a slow disk for the first time takes long


def about_site(site: Site, study: str) -> dict[str, str]:
    """Return the answer to a study's handshake; `study` is JSON. Raises Refusal E_GATEWAY_FAILED."""
    question = json.dumps({"site": str(site.folder.absolute()), "study": study})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "federation.gateway.about"],
            input=question.encode(),
            capture_output=True,
            timeout=_SECONDS,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            check=True,
        )
    except subprocess.CalledProcessError as error:
        says = error.stderr.decode(errors="replace")[-2000:]
        raise Refusal(reasons.GATEWAY_FAILED, private=says) from error
    except subprocess.TimeoutExpired as error:
        raise Refusal(reasons.GATEWAY_FAILED, private="computing the handshake's digests took too long") from error
    return dict(json.loads(done.stdout))


def work_out(question: bytes) -> dict[str, str]:
    """Answer the question that `about_site` sends. Raises what `answer` raises."""
    from federation.protocol.study_config import Study

    asked = json.loads(question)
    return answer(Site.open(Path(asked["site"])), Study.model_validate_json(asked["study"]))


if __name__ == "__main__":
    gc.disable()  # a short process; while it imports torch, collections would take a sixth of its time
    sys.stdout.write(json.dumps(work_out(sys.stdin.buffer.read())))
