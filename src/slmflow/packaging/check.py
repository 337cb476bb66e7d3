"""The check that every packaged model passes before its run counts as succeeded."""

from slmflow.answering.ask import AskError, ModelProcess
from slmflow.answering.reply import Reply
from slmflow.config.schema import Probe
from slmflow.errors import CheckError
from slmflow.packaging.probe import Probed, Prompts, generate


def check_answer(uri: str, probe: Probe, prompts: Prompts) -> tuple[Reply, list[Probed]]:
    """Load the logged model in a fresh process and ask it the probe's question; its reply, and
    what it generates to the prompts by which a rerun knows it again.

    Raises ``CheckError`` where it does not load, does not answer or lacks the expected text.
    """
    asked = {"messages": [{"role": "user", "content": probe.question}]}
    try:
        with ModelProcess(uri) as process:
            (reply,) = process.answers([asked])
            _demand(reply, probe)
            return reply, generate(process, prompts)
    except AskError as error:
        raise CheckError(f"the logged model does not answer: {error}") from None


def _demand(reply: Reply, probe: Probe) -> None:
    if reply.error is not None:
        raise CheckError(f"the logged model refuses {probe.question!r}: {reply.error}")
    if not reply.text.strip():
        raise CheckError(f"the logged model answered {probe.question!r} with nothing")
    if probe.expect is not None and probe.expect not in reply.text:
        raise CheckError(
            f"the logged model answered {probe.question!r} with {reply.text!r}, which does not "
            f"hold {probe.expect!r}; it is not registered (model.probe says what is expected)"
        )
