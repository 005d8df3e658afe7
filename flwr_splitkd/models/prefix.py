"""A language model that continues a prefix of embeddings: loss over an answer, and greedy answers.

Padding goes to the left of a sequence, whichever side it came on: then the last position of a prefix is a real one, the
answer follows it without a gap, and sliding windows, which count places, see the same neighbours as without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flwr_splitkd.distill import Head, LossTerms, distillation_loss
from flwr_splitkd.errors import ConfigError, TensorError, UncuttableModelError
from flwr_splitkd.models.head import HeadTap, find_head
from flwr_splitkd.split.shrink import build_tiny, probe_inputs, run_forward
from flwr_splitkd.split.surgery import accepts, has_adapters, text_config

if TYPE_CHECKING:
    # At run time only where answers are made: a device, which loads this room too, makes none.
    from transformers import GenerationConfig

__all__ = ["IGNORED", "PrefixedLLM"]

IGNORED = -100
"""Stands for padding in labels and in generated tokens."""


class _Sequences(NamedTuple):
    embeddings: Float[Tensor, "batch positions hidden"]
    mask: Int[Tensor, "batch positions"]
    labels: Int[Tensor, "batch positions"]

    @property
    def position_ids(self) -> Int[Tensor, "batch positions"]:
        return (self.mask.cumsum(-1) - 1).clamp_min(0)


class PrefixedLLM:
    """A causal language model whose input begins with embeddings that are no tokens'.

    The model is left as it is. Gradients flow into the prefix, and into whatever else of the model requires them.

    Parameters
    ----------
    llm
        A causal language model of transformers, without PEFT's wrapper.

    Raises
    ------
    ConfigError
        If it cannot be fed with embeddings, has no output projection that is known here, or does not keep the future from
        the past. The last is tried on a tiny copy.
    """

    def __init__(self, llm: nn.Module) -> None:
        self.head: Head = _checked(llm)
        self.llm: Any = llm
        weight: Tensor = self._embedding().weight
        self.vocab_size, self.width = min(weight.shape[0], self.head.vocab_size), weight.shape[1]
        config = text_config(llm)
        limit = getattr(config, "max_position_embeddings", None)
        self.max_positions = limit if isinstance(limit, int) and limit > 0 else None

    @property
    def device(self) -> torch.device:
        """Where embeddings go in."""
        device: torch.device = self._embedding().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings."""
        dtype: torch.dtype = self._embedding().weight.dtype
        return dtype

    def _embedding(self) -> Any:
        return self.llm.get_input_embeddings()

    def check_bos(self) -> int | None:
        """Id of the LLM's first token, None if it has none.

        Raises
        ------
        ConfigError
            If its configuration names a token that it does not have.
        """
        bos: int | None = self._token("bos_token_id")
        if bos is not None and not 0 <= bos < self.vocab_size:
            raise ConfigError(
                f"`bos_token_id` of the LLM is {bos}; expected 0..{self.vocab_size - 1}. Correct its config, or set "
                "`add_bos` to False."
            )
        return bos

    def embed(self, tokens: Int[Tensor, "batch positions"]) -> Float[Tensor, "batch positions hidden"]:
        """Embeddings of tokens; those of padding (below 0) are of no meaning."""
        embedded: Tensor = self._embedding()(tokens.to(self.device).clamp_min(0))
        return embedded

    def with_bos(
        self, prefix: Float[Tensor, "batch positions hidden"], mask: Int[Tensor, "batch positions"]
    ) -> tuple[Float[Tensor, "batch positions_1 hidden"], Int[Tensor, "batch positions_1"]]:
        """Put the embedding of the LLM's first token before a prefix; nothing where the LLM has no such token."""
        bos = self.check_bos()
        if bos is None:
            return prefix, mask
        first = self.embed(torch.full((len(prefix), 1), bos)).to(prefix.dtype)
        return torch.cat([first, prefix], 1), torch.cat([mask.new_ones(len(mask), 1), mask], 1)

    def loss(
        self,
        prefix: Float[Tensor, "batch positions hidden"],
        mask: Int[Tensor, "batch positions"],
        labels: Int[Tensor, "batch answer"],
    ) -> LossTerms:
        """Mean cross-entropy of the answer's tokens after the prefix (SCCT, equations (5) and (7)).

        The answer is fed in behind the prefix, and every token of it is predicted from all that precedes it. Logits are
        made for these predictions only, and a chunk of them at a time.

        Parameters
        ----------
        prefix, mask
            On the LLM's device; 0 in the mask marks padding, which may be anywhere.
        labels
            Tokens of the answer, the end-of-text token included if the LLM is to learn where to stop; -100 is padding.

        Raises
        ------
        TensorError
            If a row has an answer and nothing before it, or is longer than the LLM takes.
        """
        sequences = self._sequences(prefix, mask, labels.to(prefix.device))
        with HeadTap(self.llm) as tap:
            self._forward(sequences)
        hidden, targets = tap.hidden[:, :-1], sequences.labels[:, 1:]
        counted = targets != IGNORED
        weight = self.head.weight
        return distillation_loss(
            hidden[counted.to(hidden.device)].to(weight.device, weight.dtype),
            self.head,
            None,
            None,
            targets[counted].to(weight.device),
            temperature=1.0,
            kd_ratio=0.0,
            beta=0.0,
        )

    @torch.no_grad()
    def generate(
        self,
        prefix: Float[Tensor, "batch positions hidden"],
        mask: Int[Tensor, "batch positions"],
        *,
        max_new_tokens: int,
    ) -> Int[Tensor, "batch new"]:
        """Most probable next token, again and again, until the end-of-text token.

        What the LLM's own generation settings say beyond its special tokens (penalties, sampling) is left aside.

        Returns
        -------
        tokens
            The new ones, in the form of labels: the end-of-text token included, -100 behind it.

        Raises
        ------
        TensorError
            If a row has no prefix, or prefix and answer may be longer than the LLM takes.
        """
        from transformers import GenerationConfig

        nothing = torch.full((len(prefix), 0), IGNORED, device=prefix.device)
        sequences = self._sequences(prefix, mask, nothing, reserved=max_new_tokens, needed=mask.new_ones(len(mask)) > 0)
        ends = self._end_tokens()
        pad = self._token("pad_token_id")
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=pad if pad is not None and pad >= 0 else (ends or [0])[0],
        )
        with self._generating_by(settings):
            tokens: Tensor = self.llm.generate(inputs_embeds=sequences.embeddings, attention_mask=sequences.mask)
        if not ends:
            return tokens
        ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).long()
        return tokens.masked_fill(ended.cumsum(-1) - ended > 0, IGNORED)

    def _forward(self, sequences: _Sequences) -> None:
        arguments: dict[str, Any] = {"inputs_embeds": sequences.embeddings, "attention_mask": sequences.mask}
        if accepts(self.llm, "position_ids"):  # not in models that derive positions from the mask
            arguments["position_ids"] = sequences.position_ids
        run_forward(self.llm, arguments)

    def _sequences(
        self,
        prefix: Tensor,
        mask: Tensor,
        labels: Tensor,
        *,
        reserved: int = 0,
        needed: Tensor | None = None,
    ) -> _Sequences:
        """Prefix and answer in one, with all padding on the left."""
        real = mask.to(prefix.device) != 0
        answered = labels != IGNORED
        alone = ~real.any(1) & (answered.any(1) if needed is None else needed.to(prefix.device))
        if bool(alone.any()):
            raise TensorError(
                f"Row {int(alone.int().argmax())} has no position that its mask lets through; expected at least one before "
                "the answer. Leave empty examples out, or set `add_bos`."
            )
        embeddings = torch.cat([prefix.to(self.dtype), self.embed(labels)], 1)
        whole = torch.cat([real, answered], 1)
        self._check_length(int(whole.sum(1).max()) + reserved)
        order = whole.long().argsort(dim=1, stable=True)
        rows = torch.arange(len(order), device=order.device).unsqueeze(1)
        targets = torch.cat([torch.full_like(real, IGNORED, dtype=labels.dtype), labels], 1)
        return _Sequences(embeddings[rows, order], whole[rows, order].long(), targets[rows, order])

    def _check_length(self, length: int) -> None:
        if self.max_positions is not None and length > self.max_positions:
            raise TensorError(
                f"Prefix and answer are {length} positions long; expected at most {self.max_positions}, which the LLM takes. "
                "Shorten the context, or lower `max_new_tokens`."
            )

    def _token(self, name: str) -> Any:
        for config in (getattr(self.llm, "generation_config", None), text_config(self.llm)):
            value = getattr(config, name, None)
            if value is not None:
                return value
        return None

    def _end_tokens(self) -> list[int]:
        value = self._token("eos_token_id")
        return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]

    @contextmanager
    def _generating_by(self, settings: GenerationConfig) -> Iterator[None]:
        # Given as an argument, it would be filled up from the model's own: a penalty, for one.
        own, self.llm.generation_config = self.llm.generation_config, settings
        try:
            yield
        finally:
            self.llm.generation_config = own


def _checked(llm: nn.Module) -> Head:
    """Find the head of a model that can be fed with embeddings, and refuse any other."""
    name = type(llm).__name__
    if has_adapters(llm):
        raise ConfigError(f"`llm` is a {name} with adapters; expected one without. Its tasks bring their own.")
    if not accepts(llm, "inputs_embeds") or not accepts(llm, "attention_mask"):
        raise ConfigError(
            f"`llm` is a {name}, whose forward() takes no `inputs_embeds` or no `attention_mask`; expected a causal language "
            "model of transformers that takes both."
        )
    can_generate = getattr(llm, "can_generate", None)
    if getattr(text_config(llm), "is_encoder_decoder", False) or not callable(can_generate) or not can_generate():
        raise ConfigError(f"`llm` is a {name}, which does not generate; expected an AutoModelForCausalLM.")
    embedding = getattr(llm.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    if not isinstance(embedding, Tensor) or embedding.dim() != 2:
        raise ConfigError(
            f"`llm` is a {name} without a [vocab, hidden] input embedding; expected a causal language model."
        )
    try:
        head = find_head(llm)
        if head.weight.is_meta or embedding.is_meta:
            raise ConfigError(
                f"`llm` is a {name} that keeps its embedding or its output projection on no device until it runs; expected both "
                "on a device, because they are used on their own. Give them one in the `device_map`."
            )
        _try_on_a_tiny_copy(llm)
    except UncuttableModelError as error:
        raise ConfigError(f"`llm` is a {name}, which cannot continue a prefix: {error}") from error
    return head


@torch.no_grad()
def _try_on_a_tiny_copy(llm: nn.Module) -> None:
    tiny: Any = build_tiny(llm).eval()
    ids = probe_inputs(tiny)["input_ids"][:1]
    plain = run_forward(tiny, {"input_ids": ids}).logits
    if not torch.allclose(run_forward(tiny, {"input_ids": ids[:, :6]}).logits, plain[:, :6], rtol=1e-3, atol=1e-4):
        raise UncuttableModelError("a position sees those after it; expected a causal language model (is_decoder=True)")
    padding = 3
    mask = torch.cat([torch.zeros(1, padding, dtype=torch.long), torch.ones_like(ids)], 1)
    inputs = {
        "inputs_embeds": tiny.get_input_embeddings()(torch.cat([ids[:, :padding], ids], 1)),
        "attention_mask": mask,
    }
    if accepts(tiny, "position_ids"):
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    try:
        fed = run_forward(tiny, inputs).logits[:, padding:]
    except Exception as error:  # a model's own words for token ids that it misses
        raise UncuttableModelError(f"fed with embeddings, it fails: {type(error).__name__}: {error}") from error
    if not torch.allclose(fed, plain, rtol=1e-3, atol=1e-4):
        raise UncuttableModelError(
            "fed with the embeddings of tokens behind padding, it gives other logits than for the tokens; expected the same"
        )
