"""Are these the data that a run began with? Plain values that go into a checkpoint, and what differs in words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from accel_train.data.remote.identity import Identity
from accel_train.data.remote.requests import path_of


def of_files(
    paths: Sequence[str], identities: Sequence[Identity], rows: Sequence[int], headers: Sequence[str] = ()
) -> dict[str, Any]:
    """Files in order. They are named relative to the folder that holds them all: data that were moved are the same.

    Args:
        headers: of each a hash of its own metadata, or ""; or none of any.
    """
    # What stands before a host or after a name may be a secret.
    parts = [re.sub(r"//[^/@]*@", "//", path_of(path)[0]).split("/") for path in paths]
    shared = len(os.path.commonprefix([names[:-1] for names in parts]))
    return {
        "files": [
            {
                "name": "/".join(names[shared:]),
                "rows": int(n),
                **identity.as_json(),
                **({"header": head} if head else {}),
            }
            for names, identity, n, head in zip(parts, identities, rows, headers or [""] * len(parts), strict=True)
        ]
    }


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs, in words; "" for nothing, or for what only one of them knows."""
    for what in ("items", "streams"):
        if what in before and what in now and before[what] != now[what]:
            return f"there were {before[what]:,} {what} and are {now[what]:,} now"
    if files := _changed_files(before.get("files") or [], now.get("files") or []):
        return files
    found = _changed_parts(before.get("parts") or {}, now.get("parts") or {})
    for what in (what for what in before.keys() & now.keys() - _COMPARED if before[what] != now[what]):
        found.append(f"{what} was {_short(before[what])} and is {_short(now[what])} now")
    return _listed(found)


def unknown(source: Any, found: dict[str, Any]) -> list[str]:
    """What nobody would notice if it changed, in lines."""
    name = type(getattr(source, "data", source)).__name__
    mend = 'a method fingerprint() of the data set that returns, say, {"version": 1} would tell'
    if not found.keys() - {"items", "streams", "unknown"}:
        return [f"nothing tells whether the data of {name} are the same when this run goes on: no arrays or files of "
                f"theirs are known; {mend}"]  # fmt: skip
    return [f"{name}.{what} is too large to be hashed, and nobody would notice other values in it; {mend}"
            for what in found.get("unknown", ())]  # fmt: skip


_COMPARED = {"items", "streams", "files", "parts", "unknown"}


def _changed_parts(before: dict[str, str], now: dict[str, str]) -> list[str]:
    if not before or not now:
        return []
    found = [f"{name} is gone" for name in before if name not in now]
    found += [f"{name} is new" for name in now if name not in before]
    return found + [f"{name} has another content" for name in now if before.get(name, now[name]) != now[name]]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _listed(found: list[str]) -> str:
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _changed_files(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    if not before or not now:
        return ""
    old, new = {file["name"]: file for file in before}, {file["name"]: file for file in now}
    found = [f"{name} is gone" for name in old if name not in new]
    found += [f"{name} is new" for name in new if name not in old]
    for name in (name for name in new if name in old):
        if old[name]["rows"] != new[name]["rows"]:
            found.append(f"{name} had {old[name]['rows']:,} rows and has {new[name]['rows']:,} now")
        elif what := Identity.from_json(old[name]).differs(Identity.from_json(new[name])):
            found.append(f"{name}: {what}")
        elif "header" in old[name] and "header" in new[name] and old[name]["header"] != new[name]["header"]:
            found.append(f"{name} has as many rows as before, and another content: its metadata differ")
    if not found and [file["name"] for file in before] != [file["name"] for file in now]:
        first = next(b["name"] for a, b in zip(before, now, strict=True) if a["name"] != b["name"])
        found = [f"the files are in another order, from {first} on"]
    return _listed(found)
