"""The tracking server away for a minute in mid-run: packaging runs that finish when it is back.

Three real runs side by side behind a real `mlflow server` with proxied artifacts, each through a
proxy on loopback that goes away once: before the run is opened, in the middle of the upload of the
weights, and when a version was made and nobody has heard of it. The figure is the time from the
server's return to the end of the run, which a run that meets no outage needs as well: so it is not
much more than the rest of the run. The bench fails unless each run finished with one version.
"""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import work
from bench.figures import Figure, show, write
from slmflow import console


def main() -> None:
    parser = work.parser("outage", __doc__, rounds=1)
    parser.add_argument("--seconds", type=float, default=60, help="(default: %(default)s)")
    options = parser.parse_args()
    place = work.prepare(options.work)
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, value in measured(place, options.seconds).items():
            seconds.setdefault(name, []).append(value)
    figures = [Figure(f"{name}, from the return", values, "s") for name, values in seconds.items()]
    show(f"tracking server away for {options.seconds:g} s", figures)
    write(options.json, "outage", figures, seconds=options.seconds)


def measured(cache: Path, seconds: float) -> dict[str, float]:
    """Seconds from the server's return to the end, by where it went away."""
    from tests.outage_runs import PLACES, cut, server_behind, side_by_side, through

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        served = stack.enter_context(server_behind(Path(folder), cache))
        runs = [stack.enter_context(through(place, *served)) for place in PLACES]
        for away in runs:
            cut(away, seconds)
        with console.step(f"three runs, {seconds:g} s without the server"):
            side_by_side(*runs)
        for away in runs:
            work.check(away.result)
            states = [run.info.status for run in away.runs]
            if states != ["FINISHED"] or len(away.versions) != 1:
                sys.exit(f"{away.place}: runs {states}, {len(away.versions)} versions")
        return {away.place: away.ended - away.proxy.outages[0] - seconds for away in runs}


if __name__ == "__main__":
    main()
