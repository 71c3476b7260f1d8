"""The story that scripts/demo tells, with every claim checked: an expectation that fails is
printed, and the exit status is 1.

Deploys and cluster operations go through the `edged` command, invocations through plain HTTP. The
cluster's state is a fresh directory under .edged, removed at the end, also on Ctrl-C and failure.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _demo_cluster import Case, Demo, DemoError, GuestBuilder
from _env import ROOT
from rich.console import Console
from rich.table import Table

CLUSTER = "configs/clusters/geo8.toml"
SCENARIO = "configs/chaos/region-loss.toml"
RUN = ROOT / ".edged" / "region-loss"
ORIGIN, SURVIVORS = "n1", tuple(f"n{number}" for number in range(2, 9))
NODES = (ORIGIN, *SURVIVORS)
REPLICAS = 3
TEXT = "To be, or not to be, that is the question"
ABC = b"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85  abc\n"
WORDS = b'{"words":10,"distinct":8,"longest":"question","top":{"be":2,"to":2}}\n'
CASES = (
    Case("hello", "C", "?name=edge", b"Hello from C, edge!\n"),
    Case("b3sum", "Zig", "?name=abc", ABC, b"abc"),
    Case("words", "JavaScript", "?top=2", WORDS, TEXT.encode()),
    Case("add_numbers", "WAT", "/add_numbers?num1=5&num2=10", b"15\n"),
    Case("reverse_sub", "WAT", "/reverseSub?a=3&b=10", b"7\n"),
)
LATER = Case("count", "C", "?n=1000000", b"78498 primes below 1000000\n")
INITIALISED = Case("primes", "WAT", "/below?n=10000", b"1229\n")
OFTEN, SLOW = ("--what-if", "rate=1/s"), ("--what-if", "bandwidth=1mbit")


# ---------------------------------------------------------------- the story
def bring_up(demo: Demo) -> None:
    demo.say(
        "starting eight node processes, one in each of eight AWS regions: between them lie",
        "the round trips measured there; two interpret (pulley64), as a machine of",
        "another architecture would",
    )
    view = demo.edged("cluster", "up", str(ROOT / CLUSTER), "--name", "demo")
    demo.nodes = {node["name"]: node for node in view["nodes"]}
    demo.expect(
        "eight nodes are ready", [n["condition"] for n in view["nodes"]] == ["ready"] * len(NODES)
    )
    demo.expect(
        "every node sees every other",
        all(sorted(node["alive"] or ()) == sorted(NODES) for node in view["nodes"]),
    )
    demo.say(
        "all eight see each other:",
        *(f"  {demo.label(node['name']):18} {node['gateway_url']}" for node in view["nodes"]),
    )


def deploy(demo: Demo, case: Case, node: str) -> dict[str, Any]:
    demo.guests.wait_for(demo, case.function)
    started_s = time.monotonic()
    config = str(ROOT / "guests" / case.function / "function.toml")
    done = demo.edged("deploy", "--config", config, "--cluster", "demo", "--node", node)
    module, elapsed_ms = done["module"], (time.monotonic() - started_s) * 1e3
    size_kb, wire_kb = module["size_bytes"] / 1e3, module["wire_bytes"] / 1e3
    demo.say(
        f"{node} took [bold]{case.function}[/] ({case.made_with}) in {elapsed_ms:.0f} ms:"
        f" {size_kb:.1f} kB, {wire_kb:.1f} compressed, on disk on"
        f" {', '.join(done['function']['replicas'])}"
    )
    return dict(done)


def wait_until_known(demo: Demo, nodes: tuple[str, ...]) -> None:
    def same() -> bool:
        return len({demo.control(node, "/v1/status")["catalog"] for node in nodes}) == 1

    took_s = demo.settle("all nodes know the same functions", same)
    demo.say(f"gossip: {', '.join(nodes)} hold the same catalog after {took_s * 1e3:.0f} ms")


def serve_everywhere(demo: Demo) -> None:
    for case in CASES:
        deploy(demo, case, ORIGIN)
    wait_until_known(demo, NODES)
    first = demo.invoke_all(CASES, NODES, "Deployed through n1 only, invoked in every region")
    for case in CASES:
        regions = {demo.nodes[node]["region"] for node in placement(demo, case)["placed"]}
        demo.expect(f"{case.function} lies on disks in three regions", len(regions) == REPLICAS)
    starts = {answer.start for (_, node), answer in first.items() if node != ORIGIN}
    demo.expect(
        "some first requests were passed on to a node that was ready", "forwarded" in starts
    )

    def own() -> bool:
        return all(demo.invoke(case, node).start == "warm" for case in CASES for node in SURVIVORS)

    took_s = demo.settle("every node runs every function itself", own)
    demo.say(f"every node runs every function itself after {took_s:.1f} s more")


def placement(demo: Demo, case: Case) -> dict[str, Any]:
    found: dict[str, Any] = demo.control("n2", f"/v1/functions/{case.function}")["replicas"]
    return found


def watch_repair(demo: Demo, killed_s: float) -> None:
    """Copies that died with the origin are made good elsewhere."""

    def whole() -> bool:
        found = [placement(demo, case) for case in CASES]
        return all(ORIGIN not in f["placed"] and not f["missing"] for f in found)

    demo.settle(f"every module is on {REPLICAS} living disks again", whole)
    demo.say(
        f"every module is on {REPLICAS} living disks again,"
        f" {time.monotonic() - killed_s:.1f} s after the kill or sooner"
    )


def state_of(demo: Demo, node: str) -> dict[str, Any]:
    """What must survive a crash."""
    functions = demo.control(node, "/v1/functions")["functions"]
    status = demo.control(node, "/v1/status")
    return {
        "functions": {function["name"]: function["version"] for function in functions},
        "blobs": status["blobs"],
        "blob_bytes": status["blob_bytes"],
    }


def lose_the_origin(demo: Demo) -> dict[str, Any]:
    before = state_of(demo, ORIGIN)
    demo.edged("cluster", "kill", ORIGIN, "--name", "demo")
    killed_s = time.monotonic()
    demo.say(f"[bold]killed {ORIGIN}[/] with SIGKILL: the node that took every deploy")
    gone = demo.invoke(CASES[0], ORIGIN)
    demo.expect(f"{ORIGIN} answers nobody", gone.status == 0)
    demo.invoke_all(CASES, SURVIVORS, "The origin is dead; the survivors answer")

    def noticed() -> bool:
        return all(
            member["state"] == "down"
            for node in SURVIVORS
            for member in demo.control(node, "/v1/members")["members"]
            if member["name"] == ORIGIN
        )

    demo.settle(f"all survivors hold {ORIGIN} for down", noticed)
    demo.say(f"all hold {ORIGIN} for down, {time.monotonic() - killed_s:.1f} s after it or sooner")
    watch_repair(demo, killed_s)
    deploy(demo, LATER, "n2")
    wait_until_known(demo, SURVIVORS)
    title = "Deployed through n2 while n1 is dead, asked everywhere at once"
    demo.invoke_all((LATER,), SURVIVORS, title, cold_everywhere=True)
    return before


def bring_it_back(demo: Demo, before: dict[str, Any]) -> None:
    started_s = time.monotonic()
    demo.edged("cluster", "restart", ORIGIN, "--name", "demo")
    took_s = time.monotonic() - started_s
    demo.say(f"[bold]restarted {ORIGIN}[/] on its old files: ready after {took_s:.1f} s")
    after = state_of(demo, ORIGIN)
    repair = demo.control(ORIGIN, "/v1/status")["repair"]
    demo.expect(
        "n1 knows every function in its version",
        before["functions"].items() <= after["functions"].items(),
    )
    demo.expect(
        "n1 holds every blob it held",
        after["blobs"] >= before["blobs"] and after["blob_bytes"] >= before["blob_bytes"],
    )
    demo.expect("no blob was missing or corrupt", not repair["missing"] and not repair["corrupt"])
    demo.say(
        f"state intact: {len(after['functions'])} functions, {after['blobs']} blobs, "
        f"{after['blob_bytes'] / 1e6:.1f} MB;",
        f"repair found {len(repair['missing'])} missing, {len(repair['corrupt'])} corrupt, "
        f"swept {repair['temps_removed']} temporary files",
    )
    first = demo.invoke_all(
        CASES, (ORIGIN,), "The origin again: mapped from its own disk, nothing compiled"
    )
    for case in CASES:
        answer = first[case.function, ORIGIN]
        demo.expect(
            f"{case.function} on n1 was loaded, not compiled",
            answer.start == "loaded" and "compile" not in answer.phases_ms,
        )
    compiles = demo.compiles(ORIGIN)
    demo.expect("n1 compiled nothing since it is back", compiles == 0)
    demo.say(f"compiles on n1 since its restart: {compiles}")
    wait_until_known(demo, NODES)
    demo.invoke_all(
        (LATER,), (ORIGIN,), "Deployed while it was dead: learnt by gossip, fetched from a peer"
    )


def begin_initialised(demo: Demo) -> None:
    """A function with an init: where its snapshot is worth its size, each node says for itself."""
    done = deploy(demo, INITIALISED, ORIGIN)
    made = done["function"]["init"]
    demo.expect("what its init leaves is kept as a snapshot", made["snapshot"] is not None)
    demo.say(
        f"its init took {made['init_s'] * 1e3:.0f} ms of CPU, once: every invocation begins",
        f"in the state it left, a snapshot of {made['size_bytes'] / 1e3:.0f} kB,"
        f" {made['wire_bytes'] / 1e3:.0f} compressed",
    )
    wait_until_known(demo, NODES)
    asked = [node for node in SURVIVORS if node not in done["function"]["replicas"]]
    asked.sort(key=demo.interprets)
    two = asked[0], asked[-1]  # of two architectures, unless those that interpret hold it already
    explain_forms(demo, two)
    for node in two:
        first = demo.invoke(INITIALISED, node)
        demo.expect(f"{INITIALISED.function} on {node} answers right", first.right)
        initialised = functools.partial(is_initialised, demo, node)
        took_s = demo.settle(f"{node} runs its snapshot", initialised)
        plan = demo.control(node, f"/v1/functions/{INITIALISED.function}/explain")["plan"]
        demo.say(
            f"{demo.label(node)}: {first.start} at first, {first.elapsed_s * 1e3:.0f} ms;"
            f" warm {took_s:.1f} s later: [bold]{plan['form']}[/]"
        )


def is_initialised(demo: Demo, node: str) -> bool:
    """It answers itself, and runs no init for it."""
    answer = demo.invoke(INITIALISED, node)
    return answer.right and answer.start == "warm" and "init" not in answer.phases_ms


def explain_forms(demo: Demo, nodes: tuple[str, ...]) -> None:
    """`edged explain` of nodes that have nothing yet, as if it were asked for once a second."""
    table = Table(box=None)
    table.add_column("edged explain\n(ms)", no_wrap=True, overflow="ignore")
    plans, over_slow = [], []
    for node in nodes:
        ask = ("explain", INITIALISED.function, "--cluster", "demo", "--node", node, *OFTEN)
        plans.append(demo.edged(*ask)["plan"])
        over_slow.append(demo.edged(*ask, *SLOW)["plan"]["form"])
        table.add_column(f"{demo.label(node)}\nready in   a call  ", justify="right", no_wrap=True)
    for row in zip(*(plan["rows"] for plan in plans), strict=True):
        cells = []
        for plan, option in zip(plans, row, strict=True):
            told = f"{option['ready_s'] * 1e3:.0f} {option['per_call_s'] * 1e3:8.1f}"
            chosen = "*" if option["form"] == plan["form"] else " "
            cells.append(f"{'-' if option['lacks'] else told} {chosen}")
        table.add_row(row[0]["form"], *cells)
    table.add_row("over 1 Mbit/s", *(f"{form}  " for form in over_slow))
    demo.console.print("\n[bold]Asked for once a second, which form of its code is best where?[/]")
    demo.console.print(table)
    star = "; node* interprets" if any(demo.interprets(node) for node in nodes) else ""
    demo.console.print(f"[dim]* the least waiting in all{star}[/]\n")


def break_on_purpose(demo: Demo) -> None:
    """A region is lost under load, and a verdict given on what clients and disks saw of it."""
    demo.say(
        "a region dies under load and comes back, on a cluster of its own: six nodes,",
        f"30 requests/s, 24 s; the scenario is {SCENARIO}",
    )
    shutil.rmtree(RUN, ignore_errors=True)
    told = demo.edged("chaos", "run", SCENARIO, "--out", str(RUN))
    held = [row["invariant"] for row in told["judged"] if not row["findings"]]
    demo.say(
        f"verdict: [bold]{told['verdict']}[/]; {len(held)} of {len(told['judged'])} invariants"
        f" held over {told['requests']} requests, {told['errors']} of which failed"
    )
    demo.expect(f"the scenario is valid, not {told['verdict']}", told["verdict"] == "valid")
    report = RUN / "report.html"
    demo.expect("the report is written", report.is_file())
    demo.say(f"report: {report.relative_to(ROOT)}")


def end_cluster(demo: Demo) -> None:
    done = demo.edged("cluster", "down", "--name", "demo")
    demo.say(f"stopped {len(done['stopped'])} nodes and removed their files")
    demo.expect("every node stopped when asked", not done["killed"])


def clean_up(demo: Demo) -> None:
    if (demo.state / "clusters" / "demo").exists():
        try:
            end_cluster(demo)
        except DemoError as error:
            demo.expect(f"the cluster stops: {error}", False)
            return
    shutil.rmtree(demo.state, ignore_errors=True)


def show_logs(demo: Demo) -> None:
    """The end of each node's log, for whoever has to find out what went wrong."""
    for log in sorted(demo.state.glob("clusters/*/nodes/*/node.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        demo.console.print(f"[bold]{log.parent.name}/node.log[/] ends with")
        for line in lines:
            demo.console.print(line, markup=False)


def show_kept(demo: Demo) -> None:
    edged = ROOT / ".venv" / "bin" / "edged"
    program = edged.relative_to(ROOT) if Path.cwd() == ROOT else edged
    print("\nThe cluster is still up. Try:")
    print(f"  export EDGED_STATE={demo.state}")
    for node in demo.nodes.values():
        print(f"  curl -i '{node['gateway_url']}/words?text=to+be+or+not+to+be'   # {node['name']}")
    for line in (
        "functions",
        "explain words --node n3",
        "invoke hello -q name=you --node n2 -v",
        "cluster kill n2",
        "cluster status",
        "cluster down",
    ):
        print(f"  {program} {line}")


def tell(demo: Demo, *, keep: bool) -> None:
    if demo.guests.missing():
        demo.say(
            "guests are compiled from source meanwhile, once: a cache keeps them;",
            "what takes longest is Zig's C library, which comes first",
        )
    bring_up(demo)
    serve_everywhere(demo)
    before = lose_the_origin(demo)
    bring_it_back(demo, before)
    begin_initialised(demo)
    if not keep:
        end_cluster(demo)
        break_on_purpose(demo)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    (ROOT / ".edged").mkdir(exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / ".edged"))
    # Narrower terminals wrap a table's lines, which cuts nothing; rich would cut cells.
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    console = Console(width=width, highlight=False, emoji=False)
    demo = Demo(state, console, GuestBuilder({case.function for case in (*CASES, LATER)}))
    kept, interrupted = options.keep, False
    try:
        tell(demo, keep=options.keep)
    except KeyboardInterrupt:
        interrupted, kept = True, False
        console.print("\ninterrupted: cleaning up")
    except (DemoError, http.client.HTTPException, OSError) as error:
        demo.failed.append(str(error))
        console.print(f"[bold red]stopped:[/] {type(error).__name__}", highlight=False)
        console.print(str(error), markup=False)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        demo.guests.close()
        if demo.failed and not interrupted:
            show_logs(demo)
        if not kept:
            clean_up(demo)
    if interrupted:
        return 130
    failed = f"; failed: {'; '.join(demo.failed)}" if demo.failed else ""
    demo.say(f"{demo.checks - len(demo.failed)} of {demo.checks} expectations held{failed}")
    if kept:
        show_kept(demo)
    return 1 if demo.failed else 0
