"""accel-train schema: the JSON schema of config files, for editors that complete and check YAML.

  accel-train schema > accel_train.schema.json

and as the first line of a config, for the YAML language server (VS Code, Neovim, ...):

  # yaml-language-server: $schema=accel_train.schema.json
"""

from __future__ import annotations

import argparse
import json

from accel_train.command import Parser


def add_arguments(parser: Parser) -> None:
    """There are none."""


def run(options: argparse.Namespace) -> int:
    from accel_train.config.json_schema import config_schema

    print(json.dumps(config_schema(), indent=1))
    return 0
