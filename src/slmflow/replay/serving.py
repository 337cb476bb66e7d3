"""A server, run again: whether it has the model of then. Told before it listens."""

from slmflow.replay.models import OF_A_MODEL, models_of
from slmflow.replay.pins import resolved
from slmflow.replay.record import Record
from slmflow.replay.results import Finding, Sameness, of_one_side
from slmflow.tracking.resolved import about


def compare_served(record: Record) -> list[Finding]:
    uri = str(resolved(record).get("model_uri"))
    now = about(uri)
    if now is None:
        return [Finding("serve", "model", Sameness.unknown, f"{uri} is no packaged model")]
    then = models_of(record).get(uri, {})
    found = []
    for key, what in OF_A_MODEL.items():
        if then.get(key) is None or now[key] is None:
            found.append(of_one_side("serve", what, recorded_then=then.get(key) is not None))
        elif then[key] == now[key]:
            words = f"{uri}, {now[key]}" if key == "source" else f"manifest {now[key][:12]}"
            found.append(Finding("serve", what, Sameness.identical, words))
        else:
            words = f"{uri} was {then[key]}, is {now[key]}"
            found.append(Finding("serve", what, Sameness.different, words))
    return found
