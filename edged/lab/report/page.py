"""The page: one file that asks for nothing else, readable without its pictures and without scripts.

Strangers' strings are escaped where they enter it (`markup`). The page forbids itself to load or
run anything (Content-Security-Policy), should that ever fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from edged.lab.history import Deploy, Finding, History, Verdict

from . import figures
from .figures import counted
from .markup import ROWS_MAX, Html, element, table, text, titled
from .plans import decisions, plans
from .style import Picture

_CSS: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --dim: #5c6570; --lines: #d9dde2;
  --box: #f5f6f8; --good: #00734f; --bad: #b34700; --doubt: #7a5c00; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e6e8eb; --dim: #9aa4b0;
  --lines: #3a4149; --box: #1e2329; --good: #3ecf9f; --bad: #ff9a5c; --doubt: #f0c94a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Open Sans", "DejaVu Sans", sans-serif; }
h1, p, li { overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; } .dim { color: var(--dim); }
header { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: baseline; }
.verdict { border: 2px solid currentColor; border-radius: .4rem; padding: .05rem .6rem;
  font-weight: 700; }
.valid { color: var(--good); } .invalid { color: var(--bad); } .unknown { color: var(--doubt); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; padding: 0; list-style: none; }
.numbers li { background: var(--box); border-radius: .5rem; padding: .6rem .8rem; }
.numbers b { display: block; font-size: 1.35rem; line-height: 1.25; overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { font-size: .85rem; margin-top: .3rem; }
figure svg { width: 100%; height: auto; display: block; }
figure.narrow svg { width: auto; max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0;
  border-bottom: 1px solid var(--lines); overflow-wrap: anywhere; }
th { white-space: nowrap; color: var(--dim); font-weight: 600; }
td.s { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { display: block; background: var(--box); border-radius: .4rem; padding: .6rem .8rem;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; user-select: all;
  font: .88rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(history: History, verdict: Verdict | None, pictures: Sequence[Picture]) -> str:
    run = history.run
    title = f"{run.scenario}, seed {run.seed}"
    parts = [
        _head(history, verdict),
        _numbers(history),
        _findings(history, verdict),
        *(_figure(shown) for shown in pictures),
        _phases(history),
        _faults(history),
        _deploys(history),
        plans(history),
        decisions(history),
        _nodes(history),
        titled("Run it again", element("code", run.replay, limit=4096)),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{text(title)} – edged</title><style>{_CSS}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


# ---------------------------------------------------------------- the parts
def _head(history: History, verdict: Verdict | None) -> Html:
    run = history.run
    conclusion = verdict.verdict if verdict is not None else "unknown"
    words = verdict.verdict if verdict is not None else "not judged"
    regions = {node.region for node in run.nodes}
    facts = [
        f"seed {run.seed}",
        f"{counted(len(run.nodes), 'node')} in {counted(len(regions), 'region')}",
        f"{history.end_s:.0f} s",
        f"links: {run.topology}" if run.topology else "links not shaped",
        _date(run.started_at_ms),
        f"commit {run.commit[:12]}" if run.commit else "",
    ]
    line = text(" · ".join(fact for fact in facts if fact))
    why = element("p", verdict.why) if verdict is not None else Html("")
    return Html(
        f"<header><h1>{text(run.scenario)}</h1>"
        f'<span class="verdict {conclusion}">{words}</span></header>'
        f'<p class="dim">{line}</p>{why}'
    )


def _date(unix_ms: int) -> str:
    if not 0 <= unix_ms < 253_402_300_800_000:  # the year 10000, where datetime ends
        return ""
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _numbers(history: History) -> Html:
    latency = figures.latency_of(history.requests)
    errors = sum(row.error is not None for row in history.requests)
    spans = figures.spans(history)
    deploys = history.of(Deploy)
    share = errors / len(history.requests) if history.requests else 0.0
    quantile = "{:.0f} ms" if latency.count and latency.quantile(0.99) > 20_000 else "{:.1f} ms"
    shown = [
        ("requests", f"{len(history.requests):,}"),
        ("failed", f"{errors:,} ({share:.2%})"),
        ("median latency", quantile.format(latency.quantile(0.5) / 1000) if latency.count else "–"),
        ("p99 latency", quantile.format(latency.quantile(0.99) / 1000) if latency.count else "–"),
        ("faults proven", f"{sum(s.proof == 'proven' for s in spans)} of {len(spans)}"),
        (
            "deploys acknowledged",
            f"{sum(row.acknowledged_s is not None for row in deploys)} of {len(deploys)}",
        ),
    ]
    items = "".join(f"<li><b>{text(value)}</b>{text(name)}</li>" for name, value in shown)
    return Html(f'<ul class="numbers">{items}</ul>')


def _findings(history: History, verdict: Verdict | None) -> Html:
    rows: Sequence[Finding] = verdict.findings if verdict is not None else history.of(Finding)
    parts = ["<h2>Findings</h2>"]
    if rows:
        cells = ((row.invariant, row.subject, row.detail) for row in rows)
        parts.append(table(("invariant", "subject", "detail"), cells))
    else:
        parts.append("<p>None.</p>" if verdict is not None else "<p>The run was not judged.</p>")
    if verdict is not None and verdict.unproven:
        items = "".join(f"<li>{text(what)}</li>" for what in verdict.unproven[:ROWS_MAX])
        parts.append(f"<h2>What the run did not get to see</h2><ul>{items}</ul>")
    if verdict is not None and verdict.judged:
        judged = table(
            ("invariant", "what it states", "findings"),
            ((row.invariant, row.teaches, row.findings) for row in verdict.judged),
        )
        number = counted(len(verdict.judged), "invariant")
        parts.append(f"<details><summary>{number} judged</summary>{judged}</details>")
    return Html("".join(parts))


def _figure(shown: Picture) -> Html:
    narrow = "" if shown.wide else ' class="narrow"'
    caption = element("figcaption", f"{shown.about}.", "dim")
    return titled(shown.title, Html(f"<figure{narrow}>{shown.svg}{caption}</figure>"))


def _phases(history: History) -> Html:
    rows = []
    for window, asked in figures.in_phases(history):
        failed = sum(row.error is not None for row in asked)
        budget = None if window.errors_max is None else f"{window.errors_max:.2%}"
        rows.append(
            (
                window.name,
                f"{window.begin_s:.1f}–{window.end_s:.1f} s",
                len(asked),
                failed,
                f"{failed / len(asked):.2%}" if asked else None,
                budget or "any",
            )
        )
    if not rows:
        return Html("")
    head = ("phase", "when", "requests", "failed", "share", "allowed")
    return titled("Phases", table(head, rows))


def _faults(history: History) -> Html:
    spans = figures.spans(history)
    if not spans:
        return Html("")
    head = ("", "fault", "targets", "from (s)", "to (s)", "took effect", "proof")
    rows = (
        (
            span.fault.id,
            span.fault.action,
            " ".join(span.fault.targets),
            span.begin_s,
            span.end_s,
            span.proof if span.proof != "begun" else "not told",
            span.detail,
        )
        for span in spans
    )
    return titled("Faults", table(head, rows))


def _deploys(history: History) -> Html:
    rows = history.of(Deploy)
    if not rows:
        return Html("")
    head = ("function", "version", "at", "begun (s)", "acknowledged after", "holders", "error")
    cells = (
        (
            row.function,
            row.label,
            row.node,
            row.begun_s,
            None if row.acknowledged_s is None else f"{row.acknowledged_s - row.begun_s:.2f} s",
            " ".join(row.holders),
            row.error,
        )
        for row in rows
    )
    return titled("Deploys", table(head, cells))


def _nodes(history: History) -> Html:
    head = ("node", "region", "machine", "roles", "accepts")
    rows = (
        (node.name, node.region, node.target, " ".join(node.roles), node.accept)
        for node in history.run.nodes
    )
    return Html(f"<details><summary>Nodes</summary>{table(head, rows)}</details>")
