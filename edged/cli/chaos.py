"""`edged chaos`: break a cluster on purpose, and judge what it did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .common import SEED, EdgedCommand, clean, json_option, print_error, print_json

if TYPE_CHECKING:
    from edged.lab.history import Conclusion, Verdict

EXITS: Final[dict[Conclusion, int]] = {"valid": 0, "invalid": 1, "unknown": 2}


class VerdictCommand(EdgedCommand):
    """Whatever keeps it from a verdict leaves the verdict unknown: 1 means invalid, no less."""

    def fail_code(self, _code: int) -> int:
        return EXITS["unknown"]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("interrupted: the run has no verdict", "")
            ctx.exit(EXITS["unknown"])


@click.group()
def chaos() -> None:
    """Scenarios of faults on a cluster of its own, with a verdict."""


seed_option = click.option(
    "--seed", type=SEED, help="Of times and targets; default: the scenario's."
)


@chaos.command(cls=EdgedCommand)
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@seed_option
@json_option
def plan(file: str, seed: int | None, as_json: bool) -> None:
    """The timeline of a scenario: what will be done to whom, when. Starts nothing."""
    from edged.lab.chaos.plan import plan as plan_of
    from edged.lab.chaos.scenario import load_scenario
    from edged.lab.chaos.telling import planned_words

    scenario = load_scenario(Path(file))
    timeline = plan_of(scenario, scenario.seed if seed is None else seed)
    if as_json:
        print_json(timeline)
        return
    for row in timeline:
        click.echo(clean(f"{row.t_s:8.3f} s  {planned_words(row)}"))


@chaos.command(cls=VerdictCommand)
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@seed_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="The run's folder; default: chaos-runs/SCENARIO-SEED-TIME.",
)
@click.option("--keep", is_flag=True, help="Keep the cluster's files; its processes end.")
@click.option("--report/--no-report", "draw", default=True, help="Draw report.html and plots.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    file: str,
    seed: int | None,
    out: str | None,
    keep: bool,
    draw: bool,
    as_json: bool,
) -> None:
    """Run a scenario on a cluster of its own. Leaves with 0 valid, 1 invalid, 2 unknown."""
    from edged.lab.chaos.running import Options, run_scenario
    from edged.lab.chaos.scenario import load_scenario

    from .cluster_common import terminable
    from .target import supervisor

    scenario = load_scenario(Path(file))
    seed = scenario.seed if seed is None else seed
    options = Options(
        seed=seed,
        out=Path(out) if out else Path("chaos-runs") / f"{scenario.name}-{seed}-{_now()}",
        home=supervisor().home,
        keep=keep,
    )
    with terminable():
        verdict = run_scenario(
            scenario, options, tell=lambda line: click.echo(clean(line), err=True)
        )
    drawn = draw and _draw(options.out)
    _show(verdict, as_json=as_json)
    if not as_json:
        click.echo(f"folder: {options.out}" + (", with report.html" if drawn else ""))
    ctx.exit(EXITS[verdict.verdict])


def _draw(directory: Path) -> bool:
    """A verdict stands without pictures too."""
    from edged.errors import ConfigError
    from edged.lab.report.building import build_report

    try:
        build_report(directory)
    except ConfigError as error:
        click.echo(clean(f"no report: {error}"), err=True)
        return False
    return True


def _now() -> str:
    import time

    return time.strftime("%Y%m%dT%H%M%S")


@chaos.command(cls=VerdictCommand)
@click.argument("directory", metavar="RUN_DIR", type=click.Path(file_okay=False))
@json_option
@click.pass_context
def judge(ctx: click.Context, directory: str, as_json: bool) -> None:
    """Judge a run again, from its folder. Leaves with 0 valid, 1 invalid, 2 unknown."""
    from edged.errors import ConfigError
    from edged.lab.chaos.judging import judge as judged
    from edged.lab.load.session import LOAD
    from edged.lab.runfolder import read_history, write_verdict

    history = read_history(Path(directory))
    if history.run.scenario == LOAD and not (Path(directory) / "scenario.toml").exists():
        raise ConfigError(
            f"{directory}: edged load wrote it: edged report draws it, and nothing in"
            " it can be judged"
        )
    verdict = judged(history)
    write_verdict(Path(directory), verdict)
    _show(verdict, as_json=as_json)
    ctx.exit(EXITS[verdict.verdict])


def _show(verdict: Verdict, *, as_json: bool) -> None:
    from edged.lab.chaos.telling import verdict_lines

    if as_json:
        print_json(verdict)
        return
    for line in verdict_lines(verdict):
        click.echo(clean(line))


@chaos.command(cls=EdgedCommand)
@click.argument("directory", metavar="RUN_DIR", type=click.Path(file_okay=False))
@json_option
def show(directory: str, as_json: bool) -> None:
    """What happened in a run, event by event."""
    from edged.lab.runfolder import read_history

    history = read_history(Path(directory))
    if as_json:
        print_json(history.rows)
        return
    from edged.lab.chaos.telling import told

    for row in history.rows:
        click.echo(clean(f"{row.t_s:8.2f} s  {told(row)}"))
