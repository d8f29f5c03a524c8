"""Secrets are taken out of whatever a run writes down or says: configs, events, error lines, tracebacks.

The places that write call ``scrub`` for text and ``scrub_tree`` for plain data. What is left says ``***`` where a
secret stood, and ``${NAME}`` where the user had named an environment variable instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Za-z_]\w*)\}")

_KEYS = r"(?:api|access|account|private|secret|shared)[_-]?(?:access[_-]?)?(?:key|signature)"
_WORDS = rf"(?:token|secret|password|passwd|passphrase|credentials?|{_KEYS})"
# token_file and the like say where a secret is.
_NAMES = (
    rf"{_WORDS}(?![A-Za-z])(?![_-](?:file|env|scope|issuer|cache|path|dir|type|name|len|size|ids?)\b)[\w.-]{{0,40}}"
)
_SETS = r"(?:=|:(?!//)(?!\s*(?:expected|missing|no|unknown|cannot|give)\s))"  # not "password: expected text", our own
_IN_QUERY = r"(?:sig|signature|key|code|authz?|(?:access_)?token|x-(?:amz|goog)-[\w-]+)"
_PATTERNS = [
    # token=x, "api_key": "x"
    re.compile(rf"""({_NAMES}["']?\s*{_SETS}\s*["']?)(?!\$\{{)[^\s"',}}&]+""", re.I),
    re.compile(rf"([?&]{_IN_QUERY}=)(?!\$\{{)[^\s&\"'<>]+", re.I),
    re.compile(rf"((?<![\w.-])--[\w.-]{{0,80}}?{_NAMES}\s+)(?!\$\{{)\S+", re.I),  # --token x
    re.compile(r"(\bBearer\s+)\S+", re.I),
    # https://user:x@host; the names before the @ of these schemes are no secrets
    re.compile(
        r"(\b(?!(?:ssh|sftp|hdfs|smb|abfss?|wasbs?)://[^\s/:@]+@)\w[\w+.-]{0,20}://)(?![^\s/]*\$\{)[^\s/]+(?=@)"
    ),
    re.compile(r"(\b\w[\w+.-]{0,20}:/)(?!/)(?![^\s/]*\$\{)[^\s/:@]+:[^\s/@]+(?=@)"),  # as pathlib makes of it
    re.compile(r"(https?://[^\s/?#]*hook[^\s/?#]*/)[^\s\"'<>]+", re.I),  # hooks.slack.com/...
    re.compile(r"(https?://\S*/(?:webhooks?|hooks)/)[^\s\"'<>]+", re.I),  # discord.com/api/webhooks/...
    # tokens that say what they are; hf_language_model is a name
    re.compile(r"(\b(?:hf|ghp|gho|ghs|github_pat|glpat|xox[abp]|sk)[_-])(?=\w*[A-Z\d])\w{10,}"),
    re.compile(r"(\b(?:AKIA|ASIA|AIza|eyJ))[\w-]{12,}(?:\.[\w-]+)*"),
]
_QUERY = re.compile(r"(\b(\w[\w+.-]{0,20}):/[^\s\"'<>?]*\?)([^\s\"'<>]+)")
_HARMLESS = re.compile(r"(?:download|dl|raw|directread)(?:=\w{0,5})?", re.I)
_SECRET_PARAMETER = re.compile(rf"{_WORDS}|{_IN_QUERY}|pass", re.I)
_SECRET_KEY = re.compile(rf"{_WORDS}$", re.I)
_SECRET_VARIABLE = re.compile(rf"{_WORDS}|pass|_?pw|sig|sas|key|auth|query", re.I)

_known: set[str] = set()


def remember(variable: str, value: str) -> None:
    """The value of an environment variable that a config named; where its name sounds secret, it is never shown."""
    if len(value) >= 6 and _SECRET_VARIABLE.search(variable) and not value.startswith(("/", "~", ".")):
        _known.add(value)


def scrub(text: str) -> str:
    """Without what looks like a token, a password, a webhook's address or a signature in a URL."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    if "?" in text:
        text = _QUERY.sub(_without_query, text)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def scrub_tree(tree: Any, key: str = "") -> Any:
    """Plain data with ``scrub`` done to every text in it, and without the values of keys such as ``password``."""
    if isinstance(tree, Mapping):
        return {name: scrub_tree(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [scrub_tree(value, key) for value in tree]
    if _is_secret(key, tree):
        return HIDDEN
    return scrub(tree) if isinstance(tree, str) else tree


def was_scrubbed(key: str, text: str) -> bool:
    """Whether a secret stood in this value of a config before ``scrub_tree``."""
    return text == HIDDEN if _SECRET_KEY.search(key) else bool(_SCRUBBED.search(text))


_SCRUBBED = re.compile(r":/\S*[?/=]\*\*\*|(?:[=:_-]|Bearer|AKIA|ASIA|AIza|eyJ)\s*\*\*\*")


def _without_query(match: re.Match[str]) -> str:
    start, scheme, rest = match.groups()
    query = rest.rstrip(":;,.)]" if VARIABLE.search(rest) else ":;,.)]}")
    if "=" not in query and scheme not in ("http", "https"):  # elsewhere ? is a wildcard
        return match[0]
    parameters = query.split("&")
    named = bool(VARIABLE.search(query))  # whoever took out the secret part has looked at the rest

    def shown(parameter: str) -> bool:
        name, _, value = parameter.partition("=")
        if VARIABLE.search(parameter) or _HARMLESS.fullmatch(parameter):
            return True
        return named and not _SECRET_PARAMETER.search(name) and len(value) < 40

    return match[0] if all(map(shown, parameters)) else f"{start}{HIDDEN}{rest[len(query) :]}"


def _is_secret(key: str, value: Any) -> bool:
    """A password is one whatever it looks like; a token may be an item of a vocabulary, a number, or a file's name."""
    found = _SECRET_KEY.search(key)
    if not found or value is None or isinstance(value, bool) or value == "":
        return False
    text = str(value)
    if VARIABLE.search(text):
        return False
    if found[0].lower() != "token":
        return True
    return isinstance(value, str) and re.fullmatch(r"(?![~/.])[\w.+/=:-]{8,}", text) is not None
