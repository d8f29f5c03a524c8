"""The program: its commands, exit codes and errors. Nothing heavy is imported before the command is chosen."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from accel_train.command import find_command, listed
from accel_train.commands import COMMANDS
from accel_train.errors import LockLostError, LostRankError, NonFiniteError, OtherRankError, UserError
from accel_train.system.output import forgive
from accel_train.system.process import world_size
from accel_train.system.secrets import scrub
from accel_train.system.signals import active, caught, end_at_once
from accel_train.system.waiting import StoppedError, given_up


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. 0 done, 1 training failed, 2 something to mend in config or data."""
    program = argv is None
    arguments = list(sys.argv[1:] if program else argv)
    if program:
        forgive()
    code = _trained(arguments, program) if arguments[:1] == ["train"] else _exit_code(arguments)
    if program and world_size() > 1:
        # Gloo's threads outlive the process group, and one that frees a finished sum while Python shuts down aborts the
        # process: a rank that had done everything would count as crashed.
        atexit._run_exitfuncs()
        end_at_once(code)
    return code


def _trained(arguments: list[str], program: bool) -> int:
    with caught(program) as signals:
        code = _exit_code(arguments)
        if program and signals.forced:
            end_at_once(code)
        if "accel_train.train.world" in sys.modules:
            from accel_train.train.world import leave_process_group

            leave_process_group()
    if program and given_up():
        _end_without_those_who_wait(code)
    return code


def _exit_code(arguments: list[str]) -> int:
    """The exit code of a command; errors that a person can mend are one line."""
    try:
        return _dispatch(arguments)
    except UserError as error:
        _say_once(f"error: {error}")
        _tell_launcher(str(error))
        return 2
    except (LockLostError, NonFiniteError) as error:
        _say_once(f"training failed: {error}")
        return 1
    except LostRankError as error:
        _say_once(f"error: {error}")
        if (signals := active()) is not None and signals.program:
            end_at_once(1)  # to leave the process group would wait for the rank that is gone
        return 1
    except OtherRankError as error:  # the rank that met it prints it
        return error.exit_code
    except StoppedError as error:
        _say_once(str(error))
        code = signals.exit_code if (signals := active()) is not None and signals.reason else None
        return 1 if code is None else code
    except KeyboardInterrupt:
        print("accel-train: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # a mistake in a task, or one of ours: the whole traceback, but no secrets in messages
        parts = traceback.format_exception(error)
        print(*(part if part.startswith("  File ") else scrub(part) for part in parts), sep="", end="", file=sys.stderr)
        return 1


def _say_once(text: str) -> None:
    """On standard error, on the first of the ranks that have the same to say."""
    first = True
    if "RANK" in os.environ:
        from accel_train.train.world import is_first_to_say

        first = is_first_to_say(text)
    if first:
        print(f"accel-train: {scrub(text)}", file=sys.stderr, flush=True)


def _tell_launcher(text: str) -> None:
    """torchrun and accelerate end with forty lines of their own, the last of which are what this file has."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": scrub(text), "timestamp": str(int(time.time()))}))


def _end_without_those_who_wait(code: int) -> None:
    """A thread that still reads what may never come would keep the interpreter from ending."""
    ends = time.monotonic() + 1.0
    others = [thread for thread in threading.enumerate() if not (thread.daemon or thread is threading.main_thread())]
    for thread in others:
        thread.join(max(0.0, ends - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        end_at_once(code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"accel_train {version('accel_train')}")
        return 0
    from accel_train.registry import TASKS, run_command

    name, rest = arguments[0], arguments[1:]
    return run_command(name, rest) if name in TASKS else find_command(COMMANDS, name, others=TASKS).run(rest)


def _help() -> str:
    from accel_train.registry import TASKS

    return "\n".join([
        "usage: accel-train COMMAND ...", "", "commands:",
        *listed({name: command.help for name, command in COMMANDS.items()}), "",
        "tasks (each may have commands of its own: accel-train TASK --help):",
        *listed({name: text for name, (_, text) in TASKS.items()}), "",
        "accel-train COMMAND --help says more. On several processes (accel-train init copies these files here):",
        "  accelerate launch --config_file accelerate_configs/multi_gpu.yaml -m accel_train train --config FILE.yaml",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
