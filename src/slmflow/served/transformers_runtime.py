"""A transformers checkpoint behind the ``Runtime`` interface. Imports torch when it loads."""

import inspect
import queue
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmflow.served.cores import thread_count
from slmflow.served.runtime import SchemaError, check_logits
from slmflow.served.search import SearchOptions, to_transformers
from slmflow.served.template import ChatTemplate


class TransformersRuntime:
    """One causal language model and its tokenizer, loaded."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._folder = folder
        self._lock = threading.Lock()  # seeds are set on torch's one global generator
        self.context_length: int = model.config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        self.eos_ids = frozenset([eos] if isinstance(eos, int) else eos or [])
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad) if pad is not None else min(self.eos_ids)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int | str = "auto",
        trust_remote_code: bool = False,
    ) -> "TransformersRuntime":
        """Load a checkpoint folder. ``dtype`` is torch's name for it, or auto.

        ``trust_remote_code``: by the Python files that lie there, as the packager confirmed.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(thread_count(threads))
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        return cls(model.to(device).eval(), tokenizer, folder)

    def template(self) -> ChatTemplate:
        return ChatTemplate.load(self._folder)

    def encode(self, text: str, rendered: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=not rendered, verbose=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def check_schema(self, schema: str) -> None:
        raise SchemaError(
            "response_format is not supported by the transformers runtime; ask the model that "
            "custom_onnx packaged, or leave it out"
        )

    def steps(
        self,
        prompts: Sequence[Sequence[int]],
        options: SearchOptions,
        new_tokens: int,
        schema: str | None = None,
    ) -> Generator[Sequence[int], None, None]:
        """``generate`` runs in a thread and hands each step's tokens over; see ``Runtime``."""
        tokens: queue.Queue[list[int] | BaseException | None] = queue.Queue()
        stopped = threading.Event()

        def run() -> None:
            try:
                self._generate(prompts, options, new_tokens, tokens, stopped)
                tokens.put(None)
            except BaseException as error:  # handed to the caller, who is waiting
                tokens.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (step := tokens.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            stopped.set()
            thread.join()

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray[Any, Any]:
        check_logits(len(ids), last, self.context_length)
        import torch

        # Architectures that do not know the option give the logits of every token.
        known = inspect.signature(self._model.forward).parameters
        kept = {"logits_to_keep": last} if "logits_to_keep" in known else {}
        input_ids = torch.tensor([list(ids)], device=self._model.device)
        with self._lock, torch.inference_mode():
            logits = self._model(input_ids=input_ids, use_cache=False, **kept).logits
        read: np.ndarray[Any, Any] = logits[0, -last:].float().cpu().numpy()
        return read

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: SearchOptions,
        new_tokens: int,
        tokens: "queue.Queue[list[int] | BaseException | None]",
        stopped: threading.Event,
    ) -> None:
        import torch
        from transformers import GenerationConfig

        input_ids, mask = self._padded(prompts)
        beams = options.num_beams > 1
        config = GenerationConfig(
            **to_transformers(options, new_tokens),
            eos_token_id=sorted(self.eos_ids),
            pad_token_id=self.pad_id,
        )
        with self._lock, torch.random.fork_rng(), torch.inference_mode():
            if options.seed is None:
                torch.seed()  # else every fork would begin where the last one did
            else:
                torch.manual_seed(options.seed)
            output = self._model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=config,
                streamer=None if beams else _Steps(tokens),
                stopping_criteria=[_stop_when(stopped)],
                logits_processor=_penalties(options, input_ids.shape[1]),
            )
        if beams:  # beams change their past until the last step
            for step in output[:, input_ids.shape[1] :].T.tolist():
                tokens.put(step)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        # On the left: generate() continues at the end of each row.
        import torch

        longest = max(len(ids) for ids in prompts)
        gaps = [longest - len(ids) for ids in prompts]
        rows = zip(gaps, prompts, strict=True)
        input_ids = torch.tensor([[self.pad_id] * gap + list(ids) for gap, ids in rows])
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps])
        return input_ids.to(self._model.device), mask.to(self._model.device)


class _Steps:
    """A streamer: ``generate`` calls ``put`` with the prompt, then with each step's tokens."""

    def __init__(self, tokens: "queue.Queue[list[int] | BaseException | None]") -> None:
        self._tokens = tokens
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self._tokens.put(value.reshape(-1).tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """The thread says when it is done."""


def _penalties(options: SearchOptions, prompt_tokens: int) -> list[Any]:
    """OpenAI's frequency and presence penalties, which transformers does not have.

    ``logit -= count * frequency_penalty + (count > 0) * presence_penalty``, counting what was
    generated (https://platform.openai.com/docs/guides/text-generation).
    """
    if not options.penalises:
        return []
    import torch
    from transformers import LogitsProcessor

    class Penalties(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            made = input_ids[:, prompt_tokens:]
            counts = torch.zeros_like(scores).scatter_add_(
                1, made, torch.ones_like(made, dtype=scores.dtype)
            )
            penalty = counts * options.frequency_penalty
            return scores - penalty - (counts > 0) * options.presence_penalty

    return [Penalties()]


def _stop_when(stopped: threading.Event) -> Any:
    import torch
    from transformers import StoppingCriteria

    class Stop(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full(
                (input_ids.shape[0],), stopped.is_set(), dtype=torch.bool, device=input_ids.device
            )

    return Stop()
