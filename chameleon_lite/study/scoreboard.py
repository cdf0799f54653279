"""The scoreboard of the book's first page: the paper's claims, and the verdicts stored beside the results.

study/paper.json (claims) + <results>/verdicts.json ─▶ one row a claim
"""

import json
import re
from pathlib import Path

from ..errors import DamagedFile
from .paper import claims
from .regimes import REGIMES

OPEN = "not measured yet"


def stored_verdicts(results: Path) -> dict[int, dict]:
    """`verdicts.json` of a results folder by claim number; {} where there is none.

    The file is a list of objects with `claim`, `status`, `number` and `deciding` (the part of the number that a
    short table shows). Raises DamagedFile when it is anything else: a scoreboard must not quietly show less than
    was measured.
    """
    path = Path(results) / "verdicts.json"
    if not path.exists():
        return {}
    try:
        return {
            int(row["claim"]): {"status": row["status"], "number": row["number"], "deciding": row["deciding"]}
            for row in json.loads(path.read_text(encoding="utf-8"))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{path} is not a list of verdicts ({error}); write it again from the records"
        ) from error


def scoreboard(results: Path) -> list[dict]:
    """One row a claim: `claim`, `says`, `status`, `number`, `decided by`; OPEN and a dash where nothing is stored.

    `number` is the deciding one, nats a token with its 95 % interval where it is a difference; chapter 09 has all.
    """
    found = stored_verdicts(results)
    rows = []
    for c in claims():
        own = found.get(c["claim"], {"status": OPEN, "deciding": "–"})
        rows.append(
            {
                "claim": c["claim"],
                "says": c["says"],
                "status": own["status"],
                "number": own["deciding"],
                "decided by": c["decided_by"],
            }
        )
    return rows


def regimes_named(board: list[dict]) -> list[dict]:
    """One row a regime that the board's `number` or `decided by` names, in the study's order: `regime`, `is`.

    A name that only stands for its variants (R19 for R19-R1 and R19-R2) brings those.
    """
    words = {
        word for row in board for key in ("number", "decided by") for word in re.findall(r"[\w-]+", row[key])
    }
    words |= {name for name in REGIMES if name.split("-")[0] in words - set(REGIMES)}
    return [{"regime": name, "is": regime.title} for name, regime in REGIMES.items() if name in words]
