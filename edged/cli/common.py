"""What all commands share: exit codes, how problems are printed, options, output.

People read stdout as tables and stderr as one clear message; machines add --json and get one JSON
document on stdout, or one problem document (RFC 9457) on stderr and a telling exit code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_NOT_FOUND: Final = 4
EXIT_CLIENT_ERROR: Final = 5
EXIT_SERVER_ERROR: Final = 6

PROBLEM_PREFIX: Final = "urn:edged:error:"

SEED: Final = click.IntRange(0, 2**53)
"""As in a scenario's file: what every reader of JSON keeps exactly."""

TABLE_WIDTH_MAX: Final = 400
"""Tables are as wide as they need, also on narrower terminals, which wrap whole lines: a URL that
was folded inside its cell could not be copied."""

F = TypeVar("F", bound=Callable[..., Any])


class NodeProblem(Exception):
    """A node answered with a problem document."""

    def __init__(self, problem: dict[str, Any], *, node: str) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or "refused"))
        self.problem = problem | {"node": node}
        self.status = problem.get("status", 500)
        self.node = node
        self.hint = ""
        """What to do next, where the command knows better than the kind of problem tells."""


class EdgedCommand(click.Command):
    """Prints what edged raises on purpose as a problem, and leaves with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        # Only click and this module are loaded when a command has nothing to say about errors.
        from edged.errors import EdgedError, problem_of

        try:
            return super().invoke(ctx)
        except NodeProblem as error:
            hint = error.hint or hint_for(str(error.problem.get("type", "")))
            self._fail(ctx, error.problem, f"node {error.node}: {error}", hint, _exit_of(error))
        except EdgedError as error:
            code = _exit_of_local(error)
            local = code == EXIT_UNREACHABLE and not ctx.params.get("control")
            hint = "edged cluster status; edged cluster restart NODE revives one" if local else ""
            self._fail(ctx, problem_of(error), str(error), hint, code)
        except OSError as error:
            # With a file's name it is about the caller's files; `run` is the daemon: a bug there.
            if not error.filename or ctx.command.name == "run":
                raise
            text = f"{error.filename}: {error.strerror}"
            self._fail(ctx, problem_of(EdgedError(text)), text, "", EXIT_FAILED)
        except ValueError as error:
            # msgspec is loaded if it raised; importing it here would slow every command.
            if not type(error).__module__.startswith("msgspec"):
                raise
            text = f"the node's answer is not understood ({error}); does it run another edged?"
            problem = {"type": "about:blank", "title": "Not understood", "detail": text}
            self._fail(ctx, problem, text, "", EXIT_FAILED)

    def _fail(
        self, ctx: click.Context, problem: dict[str, Any], text: str, hint: str, code: int
    ) -> None:
        if ctx.params.get("as_json"):
            click.echo(json.dumps(problem, ensure_ascii=False), err=True)
        else:
            print_error(text, hint)
        ctx.exit(self.fail_code(code))

    def fail_code(self, code: int) -> int:
        """For commands whose exit codes say something else."""
        return code


def print_error(text: str, hint: str) -> None:
    click.echo(click.style("error: ", fg="red", bold=True) + clean(text), err=True)
    if hint:
        click.echo(click.style("hint: ", fg="cyan") + clean(hint), err=True)


def _exit_of(error: NodeProblem) -> int:
    return EXIT_NOT_FOUND if error.status == 404 else EXIT_FAILED


def _exit_of_local(error: Exception) -> int:
    from edged import errors

    if isinstance(error, errors.ConfigError):
        return EXIT_USAGE
    if isinstance(error, errors.Unreachable):
        return EXIT_UNREACHABLE
    if isinstance(error, errors.ClusterNotFound):
        return EXIT_NOT_FOUND
    return EXIT_FAILED


def hint_for(problem_type: str) -> str:
    return {
        "unauthorized": "give the node's control token: --token-file FILE, EDGED_TOKEN"
        " or EDGED_TOKEN_FILE",
        "function-not-found": "edged functions lists what is deployed",
        "blob-not-found": "edged blobs lists what is on a node",
        "disk-full": "free some disk on the node, or lower store.min_free_bytes",
        "draining": "the node is shutting down; choose another with --node",
        "under-replicated": "edged members tells who is there; edged deploy --replicas N asks for"
        " fewer",
        "init-timeout": "--init-timeout-ms gives it longer, up to 300000",
        "overloaded": "try again in a moment, or choose another node with --node",
    }.get(problem_type.removeprefix(PROBLEM_PREFIX), "")


def clean(text: str) -> str:
    """Without control characters, which a function's output could use against a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


# ---------------------------------------------------------------- options
def json_option(function: F) -> F:
    decorate = click.option(
        "--json", "as_json", is_flag=True, help="One JSON document on stdout, for machines."
    )
    return decorate(function)


def target_options(function: F) -> F:
    """--node, --cluster, --control, --token-file, --json; see edged.cli.target."""
    for decorate in reversed(
        (
            click.option("--node", metavar="NAME", help="A node of the local cluster."),
            click.option(
                "--cluster", metavar="NAME", help="A local cluster; default: the newest running."
            ),
            click.option(
                "--control",
                metavar="URL",
                envvar="EDGED_CONTROL",
                show_envvar=True,
                help="Control API of any node.",
            ),
            click.option(
                "--token-file",
                metavar="FILE",
                type=click.Path(),
                help="Holds that node's control token; else EDGED_TOKEN (the token itself),"
                " else EDGED_TOKEN_FILE.",
            ),
        )
    ):
        function = decorate(function)
    return json_option(function)


def watch_options(*, interval_s: float) -> Callable[[F], F]:
    """--watch, --interval."""

    def decorate(function: F) -> F:
        interval = click.option(
            "--interval",
            "interval_s",
            default=interval_s,
            show_default=True,
            type=click.FloatRange(0.1, 3600),
            help="Seconds between two looks.",
        )
        watch = click.option("--watch", "-w", is_flag=True, help="Again and again, until Ctrl-C.")
        return watch(interval(function))

    return decorate


def yes_option(function: F) -> F:
    return click.option(
        "--yes", is_flag=True, help="Do not ask; needed with --json away from a terminal."
    )(function)


def check_can_ask(*, yes: bool, as_json: bool) -> None:
    """Raises ConfigError: there is a question, and nobody to answer it."""
    from edged.errors import ConfigError

    if as_json and not yes and not sys.stdin.isatty():
        raise ConfigError("--json away from a terminal cannot ask: add --yes")


# ---------------------------------------------------------------- output
def is_terminal() -> bool:
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """`value`: anything msgspec can encode."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def console() -> Console:
    """For tables on stdout."""
    from rich.console import Console

    return Console(
        width=TABLE_WIDTH_MAX, soft_wrap=True, highlight=False, markup=False, emoji=False
    )


def progress_console() -> Console:
    """For progress on stderr; shows nothing where stderr is no terminal."""
    from rich.console import Console

    return Console(stderr=True, quiet=not sys.stderr.isatty(), markup=False, emoji=False)
