"""The OAuth 2.0 device flow: a person confirms once in a browser, and a refresh token is kept for later runs."""

from __future__ import annotations

import base64
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel_train.errors import UserError
from accel_train.system import waiting
from accel_train.system.http import NoRedirects
from accel_train.system.locking import locked
from accel_train.system.writing import write_atomic

ISSUER = "https://token-issuer.icecube.aq"
CACHE = ".pelican_auth_cache"
_TIMEOUT_S = 30.0
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class DeviceFlow:
    """The source of a ``Token``: OAuth 2.0 device authorization (RFC 8628), with a client registered on the fly
    (RFC 7591) and a refresh token kept in a file that only its owner may read.

    Args:
        scopes: the rights; the refresh token in the file is used only for just these and this issuer.
    """

    def __init__(self, scopes: Sequence[str], issuer: str = ISSUER, cache: str | Path = CACHE) -> None:
        self.scopes, self.issuer, self.cache = sorted(scopes), issuer.rstrip("/"), Path(cache)

    def __call__(self) -> str:
        # Several ranks ask at once: one talks to the person, and the others then find its refresh token.
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        lock = self.cache.with_name(f"{self.cache.name}.lock")
        with locked(lock, f"waiting for another process that asks for a token, and holds {lock}", mode=0o600):
            saved = self._load()
            endpoints = self._get(f"{self.issuer}/.well-known/openid-configuration")
            answer = self._refresh(endpoints, saved) if saved else None
            if answer is None:
                saved = self._register(endpoints)
                answer = self._ask_person(endpoints, saved)
            assert saved is not None
            if "refresh_token" in answer:  # they are used up at some issuers, and a new one comes each time
                self._save({**saved, "refresh_token": answer["refresh_token"]})
            return answer["access_token"]

    def _load(self) -> dict[str, Any] | None:
        try:
            saved = json.loads(self.cache.read_text())
        except (OSError, ValueError):
            return None  # not there, or not ours: a new one is written
        fits = (
            isinstance(saved, dict)
            and saved.get("oidc_url") == self.issuer
            and saved.get("scopes") == self.scopes
            and all(isinstance(saved.get(key), str) for key in ("client_id", "refresh_token"))
        )
        return saved if fits else None

    def _save(self, saved: dict[str, Any]) -> None:
        write_atomic(self.cache, json.dumps(saved), mode=0o600)

    def _register(self, endpoints: dict[str, Any]) -> dict[str, Any]:
        # IceCube's issuer registers at /client and does not announce it; these grants are the ones it is used to.
        url = endpoints.get("registration_endpoint") or f"{self.issuer}/client"
        meta = {
            "client_name": "accel_train",
            "grant_types": ["authorization_code", _DEVICE_GRANT],
            "scope": " ".join(["offline_access", *self.scopes]),
        }
        client = self._request(url, json.dumps(meta).encode(), {"Content-Type": "application/json"})
        if "client_id" not in client:
            raise UserError(f"{url} registered no client: {_reason(client)}")
        secret = client.get("client_secret")
        return {
            "oidc_url": self.issuer, "client_id": client["client_id"], "client_secret": secret, "scopes": self.scopes
        }  # fmt: skip

    def _refresh(self, endpoints: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any] | None:
        """None if the refresh token or the client is not good any more."""
        answer = self._post(endpoints, "token", saved, grant_type="refresh_token", refresh_token=saved["refresh_token"])
        if "access_token" in answer:
            return answer
        if answer.get("error") in ("invalid_grant", "invalid_client", "unauthorized_client"):
            return None
        raise ConnectionError(f"{self.issuer} did not renew the token: {_reason(answer)}")

    def _ask_person(self, endpoints: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
        device = self._post(endpoints, "device_authorization", client, scope=" ".join(["offline_access", *self.scopes]))
        if "device_code" not in device:
            raise UserError(f"{self.issuer} refused to give a token for {', '.join(self.scopes)}: {_reason(device)}")
        where = device.get("verification_uri_complete") or f"{device['verification_uri']} , code {device['user_code']}"
        print(f"To allow {', '.join(self.scopes)}, open in a browser: {where}", file=sys.stderr, flush=True)
        interval = float(device.get("interval", 5))
        deadline = time.monotonic() + float(device.get("expires_in", 600))
        while time.monotonic() < deadline:
            waiting.sleep(interval)
            answer = self._post(endpoints, "token", client, grant_type=_DEVICE_GRANT, device_code=device["device_code"])
            if "access_token" in answer:
                return answer
            if answer.get("error") == "slow_down":
                interval += 5
            elif answer.get("error") != "authorization_pending":
                raise UserError(f"{self.issuer} gave no token: {_reason(answer)}")
        raise UserError(f"{self.issuer} gave no token: nobody confirmed it in time; start again")

    # -- HTTP --

    def _get(self, url: str) -> dict[str, Any]:
        return self._request(url, None, {})

    def _post(self, endpoints: dict[str, Any], name: str, client: dict[str, Any], **form: str) -> dict[str, Any]:
        url = endpoints.get(f"{name}_endpoint")
        if not isinstance(url, str):
            raise UserError(f"{self.issuer} has no {name}_endpoint: it does not offer the device flow")
        headers = {}
        if client.get("client_secret"):
            pair = ":".join(urllib.parse.quote(client[key], safe="") for key in ("client_id", "client_secret"))
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return self._request(url, urllib.parse.urlencode({"client_id": client["client_id"], **form}).encode(), headers)

    def _request(self, url: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
        """The JSON that the server answers, also with an error status. Raises ``OSError`` if there is none."""
        parsed = urllib.parse.urlsplit(url)
        loopback = parsed.hostname in ("localhost", "127.0.0.1", "::1")
        if parsed.scheme != "https" and not (parsed.scheme == "http" and loopback):
            raise UserError(f"{url.partition('?')[0]}: a token is asked for over https only")
        request = urllib.request.Request(url, body, {"Accept": "application/json", **headers})

        def ask() -> Any:
            with _OPENER.open(request, timeout=_TIMEOUT_S) as response:
                return json.load(response)

        try:
            answer = waiting.call(ask, 2 * _TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                try:
                    answer = json.load(error)
                except (ValueError, OSError):
                    answer = None
            if not isinstance(answer, dict) or "error" not in answer:
                answer = {"error": f"HTTP status {error.code}"}
        except ValueError:
            answer = None
        except OSError as error:
            raise ConnectionError(f"{parsed.scheme}://{parsed.netloc} cannot be reached for a token: {error}") from None
        if not isinstance(answer, dict):
            raise ConnectionError(f"{parsed.scheme}://{parsed.netloc} does not answer as a token issuer")
        return answer


_OPENER = urllib.request.build_opener(NoRedirects)


def _reason(answer: dict[str, Any]) -> str:
    text = " ".join(str(answer[key]) for key in ("error", "error_description") if answer.get(key))
    return " ".join(text.split())[:200] or "no reason given"
