"""Are these the data that a run began with? Plain values that go into a checkpoint, and what differs in words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from accel_train.data.remote.identity import Identity
from accel_train.data.remote.requests import path_of


def of_files(paths: Sequence[str], identities: Sequence[Identity], rows: Sequence[int]) -> dict[str, Any]:
    """Files in order. They are named relative to the folder that holds them all: data that were moved are the same."""
    # What stands before a host or after a name may be a secret.
    parts = [re.sub(r"//[^/@]*@", "//", path_of(path)[0]).split("/") for path in paths]
    shared = len(os.path.commonprefix([names[:-1] for names in parts]))
    return {
        "files": [
            {"name": "/".join(names[shared:]), "rows": int(n), **identity.as_json()}
            for names, identity, n in zip(parts, identities, rows, strict=True)
        ]
    }


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs, in words; "" for nothing, or for what only one of them knows."""
    for what in ("items", "streams"):
        if what in before and what in now and before[what] != now[what]:
            return f"there were {before[what]:,} {what} and are {now[what]:,} now"
    return _changed_files(before.get("files") or [], now.get("files") or [])


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
    if not found and [file["name"] for file in before] != [file["name"] for file in now]:
        first = next(b["name"] for a, b in zip(before, now, strict=True) if a["name"] != b["name"])
        found = [f"the files are in another order, from {first} on"]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
