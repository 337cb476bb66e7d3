"""The checkpoint of a model's config, and the user's word where it brings code that runs."""

from slmflow.config.schema import Model
from slmflow.errors import ConfigError
from slmflow.hub import Announce
from slmflow.sources import LocalModel, find_checkpoint


def get_checkpoint(model: Model, trust: str | None, announce: Announce) -> LocalModel:
    """Raises ``SourceError``, and ``ConfigError`` where code of its own is not confirmed."""
    found = find_checkpoint(model.source, model.revision, announce, model.trust_remote_code)
    word = confirmation(model, found)
    if found.code and trust != word:
        given = "nothing was confirmed" if trust is None else f"trust={trust} was given"
        raise ConfigError(
            f"loading {found.source} at {found.revision} runs code that comes with it: "
            f"{', '.join(found.code)} in {found.path}; {given}. Read it, and where you trust it "
            f"type -P trust={word}"
        )
    if found.code:
        announce(f"trusted, as you said: {', '.join(found.code)}")
    return found


def confirmation(model: Model, checkpoint: LocalModel) -> str:
    """Names the model and the code that was read: of other code it says nothing."""
    return f"{model.name}@{checkpoint.revision.removeprefix('sha256:')[:12]}"
