"""The ONNX runtime's generate() API behind the ``Runtime`` interface.

The only importer of onnxruntime_genai, which it imports when a model is loaded.
"""

import json
import os
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from slmflow.served.cores import thread_count
from slmflow.served.runtime import LogitsUnavailable, SchemaError, check_logits
from slmflow.served.search import SearchOptions, to_genai
from slmflow.served.template import ChatTemplate


class RuntimeMissing(RuntimeError):
    """The package that runs the model is not installed, or not for this hardware."""


class BrokenModel(RuntimeError):
    """The folder is not an ONNX model that the runtime can load."""


class OnnxRuntime:
    """One ONNX model folder, loaded. Takes ready objects; ``load`` makes them."""

    def __init__(
        self,
        genai: Any,
        model: Any,
        tokenizer: Any,
        detokenizer: Any,
        folder: Path,
        config: dict[str, Any],
    ) -> None:
        self._genai = genai
        self._model = model
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer
        self._folder = folder
        self.context_length: int = config["model"]["context_length"]
        self.eos_ids = frozenset(int(token) for token in tokenizer.eos_token_ids)
        self.pad_id = int(tokenizer.pad_token_id)
        self._vocabulary: int = config["model"]["vocab_size"]
        self._bos_id: int | None = config["model"].get("bos_token_id")
        self._bos_text = _bos_text(folder)

    @classmethod
    def load(
        cls, folder: Path, provider: str = "cpu", threads: int | str = "auto"
    ) -> "OnnxRuntime":
        """Load a model folder onto an execution provider (cpu, cuda, dml).

        ``threads`` auto counts the cores that this process has: the runtime's own default leaves
        half of a two-core machine idle. Raises ``RuntimeMissing`` and ``BrokenModel``.
        """
        genai = import_genai()
        try:
            config = json.loads((folder / "genai_config.json").read_text("utf-8"))
            settings = genai.Config(str(folder))
            settings.clear_providers()
            if provider != "cpu":
                settings.append_provider(provider)
            settings.overlay(_session_options(thread_count(threads)))
            model = genai.Model(settings)
            # The runtime's own decoding ends at the first byte that is no text yet, or never.
            detokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return cls(genai, model, genai.Tokenizer(model), detokenizer, folder, config)
        except Exception as error:  # tokenizers raises nothing more special
            raise BrokenModel(
                f"{folder.name} cannot be loaded by onnxruntime-genai {genai.__version__} "
                f"with provider {provider}: {error}"
            ) from None

    def template(self) -> ChatTemplate:
        return ChatTemplate.load(self._folder)

    def encode(self, text: str, rendered: bool) -> list[int]:
        ids = [int(token) for token in self._tokenizer.encode(text)]
        if rendered and ids[:1] == [self._bos_id] and not self._writes_bos_once(text, ids):
            return ids[1:]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return str(self._detokenizer.decode(list(ids), skip_special_tokens=True))

    def check_schema(self, schema: str) -> None:
        self._check_characters(schema)
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=2)
        params.set_guidance("json_schema", _guided(schema))
        try:
            self._genai.Generator(self._model, params)  # compiles the grammar
        except RuntimeError as error:
            raise _not_followed(error) from None

    def _check_characters(self, schema: str) -> None:
        """The runtime's guidance fails in mid-answer at a character that it must write and that
        its tokenizer has no token for."""
        for character in sorted(set(_demanded(json.loads(schema)))):
            if len(character.encode()) > 2 and len(self._detokenizer.encode(character).ids) > 1:
                raise SchemaError(
                    f"the JSON schema asks for {character!r}, which the model's tokenizer splits; "
                    "the ONNX runtime cannot be held to that. Describe it without the character"
                )

    def steps(
        self,
        prompts: Sequence[Sequence[int]],
        options: SearchOptions,
        new_tokens: int,
        schema: str | None = None,
    ) -> Generator[Sequence[int], None, None]:
        longest = max(len(ids) for ids in prompts)
        options = replace(options, top_k=min(options.top_k, self._vocabulary))
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(batch_size=len(prompts), **to_genai(options, longest, new_tokens))
        if schema is not None:
            params.set_guidance("json_schema", _guided(schema))
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(self._padded(prompts, longest))
        if options.num_beams > 1:
            yield from self._beams(generator, len(prompts), longest, new_tokens)
            return
        penalties = _Penalties(options) if options.penalises else None
        while not generator.is_done():
            if penalties is not None:
                generator.set_logits(penalties.taken_from(generator.get_logits()))
            try:
                generator.generate_next_token()
            except RuntimeError as error:
                if schema is None:
                    raise
                raise _not_followed(error) from None
            tokens = generator.get_next_tokens().tolist()
            if penalties is not None:
                penalties.count(tokens)
            yield tokens

    def _beams(
        self, generator: Any, rows: int, longest: int, new_tokens: int
    ) -> Generator[Sequence[int], None, None]:
        # Beams change their past until the last step, so there is nothing to show before it.
        while not generator.is_done():
            generator.generate_next_token()
        answers = [list(generator.get_sequence(row))[longest:] for row in range(rows)]
        end = min(self.eos_ids)  # the sequences come without the token that ended them
        for step in range(min(new_tokens, max(len(answer) for answer in answers) + 1)):
            yield [int(answer[step]) if step < len(answer) else end for answer in answers]

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray[Any, Any]:
        check_logits(len(ids), last, self.context_length)
        params = self._genai.GeneratorParams(self._model)
        most = min(len(ids) + 1, self.context_length)
        params.set_search_options(batch_size=1, num_beams=1, max_length=most)
        generator = self._genai.Generator(self._model, params)
        # Logits come for the tokens appended last; apart from the others, they alone are copied.
        for part in (ids[:-last], ids[-last:]):
            if part:
                generator.append_tokens(np.array(part, dtype=np.int32))
        logits: np.ndarray[Any, Any] = generator.get_output("logits")
        if logits.ndim != 3 or logits.shape[1] != last:
            raise LogitsUnavailable(
                f"the ONNX model gives logits of shape {logits.shape} for {last} tokens, not of "
                "each token: it was built to generate only (the builder's prune_lm_head, or a "
                "fixed window); build it without"
            )
        copied: np.ndarray[Any, Any] = logits[0].astype(np.float32)  # the generator owns its own
        return copied

    def _padded(self, prompts: Sequence[Sequence[int]], longest: int) -> np.ndarray[Any, Any]:
        # On the right, as the runtime's own encode_batch does: it masks the padding out.
        padded = np.full((len(prompts), longest), self.pad_id, dtype=np.int32)
        for row, ids in enumerate(prompts):
            padded[row, : len(ids)] = ids
        return padded if len(prompts) > 1 else padded[0]

    def _writes_bos_once(self, text: str, ids: Sequence[int]) -> bool:
        written = bool(self._bos_text) and text.startswith(self._bos_text)
        return written and ids[1:2] != [self._bos_id]


class _Penalties:
    """OpenAI's frequency and presence penalties, which the runtime does not have.

    ``logit -= count * frequency_penalty + (count > 0) * presence_penalty``, counting what was
    generated (https://platform.openai.com/docs/guides/text-generation).
    """

    def __init__(self, options: SearchOptions) -> None:
        self._options = options
        self._counts: np.ndarray[Any, Any] | None = None

    def taken_from(self, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """``logits``: rows, 1, vocabulary."""
        if self._counts is None:
            self._counts = np.zeros((logits.shape[0], logits.shape[-1]), dtype=logits.dtype)
        penalty = self._counts * self._options.frequency_penalty
        penalty += (self._counts > 0) * self._options.presence_penalty
        logits[:, -1, :] -= penalty
        return logits

    def count(self, tokens: Sequence[int]) -> None:
        assert self._counts is not None
        self._counts[np.arange(len(tokens)), tokens] += 1


def _not_followed(error: RuntimeError) -> SchemaError:
    reason = str(error).strip().splitlines()[0].removeprefix("Error creating grammar: ")
    return SchemaError(f"the JSON schema cannot be followed: {reason}")


TOLD = ("title", "description", "$comment", "examples", "default")
"""Keys of a JSON schema that demand nothing."""


def _demanded(schema: Any) -> str:
    """The texts that a JSON schema can demand, joined."""
    if isinstance(schema, str):
        return schema
    if isinstance(schema, list):
        return "".join(map(_demanded, schema))
    if isinstance(schema, dict):
        held = ((key, value) for key, value in schema.items() if key not in TOLD)
        return "".join(key + _demanded(value) for key, value in held)
    return ""


def _guided(schema: str) -> str:
    """The schema with one spelling of white space, as ``json.dumps`` has it.

    With any white space allowed, a model that is unsure goes on with blanks until its tokens are
    used up (option of llguidance, docs/json_schema.md).
    """
    spelling = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**json.loads(schema), "x-guidance": spelling})


def import_genai() -> Any:
    """The runtime's module, its telemetry switched off; raises ``RuntimeMissing``."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, at import
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise RuntimeMissing(
            f"onnxruntime_genai cannot be imported ({error}); install one of "
            "onnxruntime-genai (CPU), onnxruntime-genai-cuda, onnxruntime-genai-directml"
        ) from None
    return onnxruntime_genai


def _session_options(threads: int) -> str:
    options = {"intra_op_num_threads": threads}
    return json.dumps({"model": {"decoder": {"session_options": options}}})


def _bos_text(folder: Path) -> str:
    try:
        return ChatTemplate.load(folder).special_tokens.get("bos_token", "")
    except (OSError, ValueError):
        return ""
