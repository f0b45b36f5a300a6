"""What happens to a row that is longer than the model's context: always said, never silent."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from acclimate.errors import DataError
from acclimate.tokens.codec import Encoded

Policy = Literal["error", "drop", "truncate-prompt", "truncate-response"]
POLICIES: tuple[Policy, ...] = ("error", "drop", "truncate-prompt", "truncate-response")


class Fitted(NamedTuple):
    """Rows that fit, and what it cost: rows left out and rows cut, by where they stand."""

    rows: list[Encoded]
    dropped: list[str]
    cut: list[str]


def fit_rows(rows: Sequence[Encoded], limit: int, policy: Policy, keep: int = 0) -> Fitted:
    """Every row within `limit` ids (and, for an encoder-decoder, as many source ids).

    keep: how many ids at the start (BOS) a cut prompt retains. A row that would keep no scored token is dropped.
    """
    done = Fitted([], [], [])
    for row in rows:
        if len(row.ids) <= limit and len(row.source) <= limit:
            done.rows.append(row)
            continue
        if policy == "error":
            longest = max(len(row.ids), len(row.source))
            raise DataError(
                f"{row.where or 'a row'} is {longest:,} tokens long; {limit:,} fit. Set data.truncation to one of: "
                f"{', '.join(POLICIES[1:])}."
            )
        shorter = None if policy == "drop" else _cut(row, limit, policy, keep)
        if shorter is None or not any(shorter.scored[1:] if not shorter.source else shorter.scored):
            done.dropped.append(row.where)
        else:
            done.rows.append(shorter)
            done.cut.append(row.where)
    return done


def _cut(row: Encoded, limit: int, policy: Policy, keep: int) -> Encoded | None:
    if policy == "truncate-response":
        if len(row.source) > limit:
            return None
        return row._replace(ids=row.ids[:limit], scored=row.scored[:limit], truncated=len(row.ids) - limit)
    return cut_prompt(row, limit, keep)


def cut_prompt(row: Encoded, limit: int, keep: int) -> Encoded | None:
    """Leave out the oldest ids of the prompt after the first `keep`; None where the answer alone is too long."""
    if row.source:
        if len(row.ids) > limit or limit <= keep:
            return None
        tail = row.source[len(row.source) - (limit - keep) :]
        return row._replace(source=row.source[:keep] + tail, truncated=len(row.source) - limit)
    excess = len(row.ids) - limit
    prompt = row.scored.index(True) if True in row.scored else len(row.scored)
    if excess > prompt - keep:
        return None
    ids = row.ids[:keep] + row.ids[keep + excess :]
    scored = row.scored[:keep] + row.scored[keep + excess :]
    return row._replace(ids=ids, scored=scored, truncated=excess)
