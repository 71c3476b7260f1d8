"""`edged deploy`: upload a module, then make it a function's current version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .common import (
    EdgedCommand,
    NodeProblem,
    clean,
    print_json,
    progress_console,
    target_options,
)

if TYPE_CHECKING:
    from edged.interfaces import Deployed, InitView, ModuleStored

    from .client import Client
    from .function_file import Plan

CHUNK_BYTES: Final = 64 * 1024
MAKING_S: Final = 180.0
"""For a snapshot, but for its init: most of it is compiling."""
URLS_SHOWN: Final = 8


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from edged.errors import ConfigError

        from .function_file import parse_size

        try:
            return parse_size(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


@click.command(cls=EdgedCommand)
@click.argument("file", required=False, type=click.Path())
@click.option(
    "--config",
    "config_file",
    metavar="TOML",
    type=click.Path(),
    help="A function.toml; flags override it.",
)
@click.option("--name", help="The function's name; default: FILE's without its suffix.")
@click.option("--abi", type=click.Choice(["raw", "cgi", "export"]), help="Default: raw.")
@click.option("--arg", "args", multiple=True, help="An argument after argv[0]; repeatable.")
@click.option("--entrypoint", metavar="EXPORT", help="Function to call instead of _start.")
@click.option("--method", "methods", multiple=True, help="An allowed method, e.g. GET; repeatable.")
@click.option("--env", multiple=True, metavar="K=V", help="Repeatable.")
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="SOURCE[:/PATH]",
    help="A read-only directory of the node's allow-list, seen at /PATH or else at /SOURCE;"
    " repeatable.",
)
@click.option("--timeout-ms", type=int, help="Wall time of one invocation.")
@click.option("--memory", "memory_bytes", type=Size(), help="Linear memory, e.g. 64MiB.")
@click.option("--table-elements", type=int, help="Elements of all tables.")
@click.option("--tmp-bytes", type=Size(), help="Quota of a private /tmp; 0: there is none.")
@click.option("--body-bytes", type=Size(), help="Largest request body.")
@click.option("--stdout-bytes", type=Size(), help="Largest answer.")
@click.option("--stderr-bytes", type=Size(), help="Largest log of one invocation.")
@click.option("--concurrency", type=int, help="Invocations at once on one node.")
@click.option("--replicas", type=int, help="Nodes that are to have it on disk.")
@click.option(
    "--init",
    "init_export",
    metavar="EXPORT",
    help="Call it once, before all else: invocations begin in the state it leaves."
    " auto: wizer.initialize or _initialize, whichever there is.",
)
@click.option(
    "--init-call",
    "init_calls",
    multiple=True,
    metavar="CALL",
    help="""Then call this: NAME, or 'NAME(1, 2.5, "text")'; repeatable.""",
)
@click.option("--init-env", multiple=True, metavar="K=V", help="What init sees; repeatable.")
@click.option(
    "--init-stub",
    "init_stubs",
    multiple=True,
    metavar="MODULE",
    help="Functions of this module may be imported though no node has them: calling one, at init or"
    " later, traps; repeatable.",
)
@click.option("--init-timeout-ms", type=int, help="Wall time of all of init.")
@click.option(
    "--snapshot",
    type=click.Choice(["auto", "always", "never"]),
    help="Keep the state after init as a module of its own; auto, if it is worth it: the default.",
)
@target_options
def deploy(
    file: str | None,
    config_file: str | None,
    name: str | None,
    abi: str | None,
    args: tuple[str, ...],
    entrypoint: str | None,
    methods: tuple[str, ...],
    env: tuple[str, ...],
    mounts: tuple[str, ...],
    replicas: int | None,
    init_export: str | None,
    init_calls: tuple[str, ...],
    init_env: tuple[str, ...],
    init_stubs: tuple[str, ...],
    init_timeout_ms: int | None,
    snapshot: str | None,
    as_json: bool,
    node: str | None,
    cluster: str | None,
    control: str | None,
    token_file: str | None,
    **policy: int | None,
) -> None:
    """Deploy FILE (.wasm or .wat) as a function.

    What a function may use is its policy: nothing that no flag grants. Deploying the same module
    under the same policy again changes nothing."""
    from .client import UPLOAD_TIMEOUT_S
    from .function_file import FunctionFile, InitFlags, load_function_file, make_plan
    from .target import find_target

    source, base = FunctionFile(), Path()
    if config_file:
        source, base = load_function_file(Path(config_file))
    changes = {
        "name": name, "abi": abi, "args": args, "entrypoint": entrypoint, "methods": methods,
        "replicas": replicas, "snapshot": snapshot,
    }  # fmt: skip
    init = InitFlags(init_export, init_calls, init_env, init_timeout_ms, init_stubs)
    plan = make_plan(
        source, base, file=file, changes=changes, policy=policy, init=init, env=env, mounts=mounts
    )
    data = _read(plan)
    target = find_target(node=node, cluster=cluster, control=control, token_file=token_file)
    init_s = plan.init.timeout_ms / 1000 + MAKING_S if plan.init is not None else 0.0
    client = target.control(patience_s=UPLOAD_TIMEOUT_S + init_s)
    stored = _upload(client, plan.file.name, data)
    deployed = _deploy(client, plan, stored)
    urls = [f"{target.gateway().url}/{path}" for path in _paths(plan, stored.exports)]
    if as_json:
        document = {"module": stored, "function": deployed, "url": urls[0], "urls": urls}
        print_json(document | {"node": target.name})
    else:
        _tell(stored, deployed, urls, target.name)


def _paths(plan: Plan, exports: Iterable[str]) -> list[str]:
    """What a gateway answers: of the export ABI without an entrypoint, /{function}/{export}."""
    from urllib.parse import quote

    from protocol.function import INIT_NAMES

    if plan.abi != "export" or plan.entrypoint:
        return [plan.name]
    # Conventional names of what is not for callers: memories, tables, the runtime's own.
    hidden = {"memory", *(() if plan.init is None else INIT_NAMES)}
    own = [name for name in exports if name not in hidden and not name.startswith("_")]
    return [f"{plan.name}/{quote(name, safe='')}" for name in own] or [plan.name]


def _read(plan: Plan) -> bytes:
    """Raises ConfigError: unreadable, empty, too large."""
    from edged.errors import ConfigError
    from protocol.function import MODULE_BYTES_MAX

    try:
        with plan.file.open("rb") as file:
            data = file.read(MODULE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{plan.file}: cannot be read: {error.strerror}") from error
    if not data:
        raise ConfigError(f"{plan.file}: is empty")
    if len(data) > MODULE_BYTES_MAX:
        raise ConfigError(f"{plan.file}: larger than {MODULE_BYTES_MAX} bytes")
    return data


def _upload(client: Client, label: str, data: bytes) -> ModuleStored:
    import msgspec
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from edged.interfaces import ModuleStored
    from protocol.ids import digest_of

    headers = [
        ("Edged-Digest", digest_of(data)),
        ("Content-Length", str(len(data))),
        ("Content-Type", "application/octet-stream"),
    ]
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        task = progress.add_task(f"uploading {clean(label)}", total=len(data))

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]
                progress.update(task, completed=min(start + CHUNK_BYTES, len(data)))
            progress.update(task, description="validating and storing")

        answer = client.call("PUT", "/v1/modules", body=chunks(), headers=headers)
    return msgspec.json.decode(answer, type=ModuleStored)


def _deploy(client: Client, plan: Plan, stored: ModuleStored) -> Deployed:
    import msgspec

    from edged.errors import Unreachable
    from edged.interfaces import UNCAPTURED, Deployed, DeployRequest

    name = plan.name
    request = DeployRequest(
        stored.module,
        plan.abi,
        plan.args,
        plan.entrypoint,
        plan.methods,
        plan.policy,
        plan.replicas,
        plan.init,
        plan.snapshot,
    )
    body = msgspec.json.encode(request)
    headers = [("Content-Type", "application/json")]
    unknown = f"the deploy may have taken effect: edged describe {name} tells; again is safe"
    try:
        with progress_console().status("deploying"):
            answer = client.call("PUT", f"/v1/functions/{name}", body=body, headers=headers)
    except KeyboardInterrupt:
        click.echo(f"stopped waiting; {unknown}", err=True)
        raise
    except NodeProblem as error:
        said = str(error.problem.get("stderr") or error.problem.get("trace") or "").rstrip()
        if said:
            click.echo(clean(said), err=True)
        reason = error.problem.get("reason")
        # A module that is rejected has reasons of the same names.
        if reason in UNCAPTURED and str(error.problem.get("type")).endswith(":cannot-snapshot"):
            error.hint = "--snapshot never deploys it; init runs at each invocation then"
        if reason == "missing-import":
            error.hint = _stub_hint(error.problem.get("modules"))
        raise
    except Unreachable as error:
        raise Unreachable(f"{error}; {unknown}", url=client.url) from error
    return msgspec.json.decode(answer, type=Deployed)


def _stub_hint(modules: object) -> str:
    """`modules`: of the problem."""
    import shlex

    named = modules if isinstance(modules, list) else []
    flags = " ".join(f"--init-stub {shlex.quote(clean(str(each)))}" for each in named)
    return f"if it never calls them: {flags or '--init-stub MODULE'}"


def _tell(stored: ModuleStored, deployed: Deployed, urls: list[str], node: str) -> None:
    from .render import size

    what = "deployed" if deployed.created else "unchanged:"
    click.echo(f"{what} {deployed.name} version {(deployed.version or '')[:12]} on {node}")
    click.echo(f"  module   {stored.module}")
    click.echo(f"           {size(stored.size_bytes)}, {size(stored.wire_bytes)} on the wire")
    if deployed.init is not None:
        _tell_init(deployed.init)
    if deployed.replicas:
        click.echo(f"  on disk  {', '.join(deployed.replicas)}")
    if deployed.created and deployed.previous and deployed.previous != deployed.version:
        click.echo(f"  before   {deployed.previous[:12]}  (edged rollback {deployed.name})")
    for url in urls[:URLS_SHOWN]:
        click.echo(f"  invoke   {clean(url)}")
    if len(urls) > URLS_SHOWN:
        click.echo(f"           and {len(urls) - URLS_SHOWN} more exports (--json lists them)")
    warn_of_few(deployed)


def _tell_init(init: InitView) -> None:
    from .render import size

    if init.init_s is None:
        click.echo(f"  init     runs at each invocation: {init.why}")
        return
    kept = "kept" if init.snapshot else "not kept"
    sizes = f"{size(init.size_bytes)}, {size(init.wire_bytes)} on the wire"
    if init.delta_wire_bytes:
        sizes += f", {size(init.delta_wire_bytes)} as a delta"
    click.echo(
        f"  init     {init.init_s:.3g} s of CPU" + ("" if init.made else ", an earlier time")
    )
    click.echo(f"  snapshot {init.snapshot or sizes}")
    if init.snapshot:
        click.echo(f"           {sizes}")
    click.echo(f"           {kept}: {init.why}")
    for warning in init.warnings:
        click.echo(f"warning: {warning}", err=True)


def warn_of_few(deployed: Deployed) -> None:
    """Not with --json, which has both numbers."""
    held, wanted = len(deployed.replicas), deployed.wanted
    if held < wanted:
        click.echo(f"warning: {held} of {wanted} on disk; restored when nodes are there", err=True)
