"""What a task lets its users set about remote files."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accel_train.arguments import Range
from accel_train.config.setting import Checked, setting
from accel_train.errors import UserError

if TYPE_CHECKING:
    from accel_train.data.remote.requests import Access
    from accel_train.data.remote.staging import Staging


@dataclass
class RemoteFiles(Checked):
    """How files behind URLs are reached. Nothing here changes what is learned, and no token can stand here."""

    federation_url: str | None = setting(
        None, "the Pelican federation of all pelican:// URLs; null: the host of each URL."
    )
    token_file: str | None = setting(None, "a file with a bearer token; read again before the token expires.")
    token_env: str | None = setting(None, "or the name of an environment variable that holds one.")
    auto_token: bool = setting(False, "or ask the issuer for one; a person confirms it once in a browser.")
    token_issuer: str | None = setting(None, "where to ask; null: the one of IceCube.")
    token_scope: str | None = setting(None, "the path of the rights to ask for; null: it follows from the files.")
    token_cache: str = setting(
        ".pelican_auth_cache", "the file that remembers the confirmation, readable by its owner only."
    )
    storage_prefix: str | None = setting(None, "not part of that path; null: /icecube/wipac.")
    write_to: list[str] = setting(list, "URLs that the token must also let us write, such as ``tb_sync_to``.")
    staging_dir: str | None = setting(
        None, "a folder on local disk to which files are brought ahead of use; null: they are read by ranges."
    )
    ahead: int = setting(4, "so many files are brought ahead; 0: each when it is asked for.", Range(0))
    max_bytes: int | None = setting(None, "staged files that nobody uses are deleted to stay below this.", Range(0))
    max_files: int | None = setting(None, "only so many files are staged; the others are read by ranges.", Range(0))
    delete_after_use: bool = setting(False, "delete a staged file when it has been read.")
    retries: int = setting(
        25,
        "how often a failed request is repeated during an outage, with growing pauses: 25 times take ten minutes. What "
        "does not look like an outage is repeated five times.",
        Range(0),
    )

    def access(self, urls: Sequence[str]) -> Access:
        """The access for these URLs and patterns; from now on also for everything else in this process."""
        from accel_train.data.remote import requests as remote
        from accel_train.data.remote import tokens

        ways = [name for name in ("token_file", "token_env", "auto_token") if getattr(self, name)]
        if len(ways) > 1:
            raise UserError(f"remote: {' and '.join(ways)} are two ways to a token; give one")
        token = None
        if self.token_file:
            token = tokens.Token.from_file(self.token_file)
        elif self.token_env:
            token = tokens.Token.from_environment(self.token_env)
        elif self.auto_token:
            token = tokens.auto_token(
                list(urls), self.write_to, self.token_issuer or tokens.ISSUER,
                self.storage_prefix or tokens.STORAGE_PREFIX, self.token_scope, self.token_cache,
            )  # fmt: skip
        access = remote.Access(token, self.federation_url, self.retries)
        remote.use(access)
        return access

    def staging(self, access: Access) -> Staging | None:
        if self.staging_dir is None:
            return None
        from accel_train.data.remote.staging import Staging

        staging = Staging(self.staging_dir, self.ahead, self.max_bytes, self.max_files, self.delete_after_use, access)
        if self.delete_after_use:
            atexit.register(staging.close)
        return staging
