"""Any text network of Hugging Face's `transformers`: the mean of its last layer over a text's tokens.

Wolf et al. 2020, https://arxiv.org/abs/1910.03771 (Apache 2.0); weights have licences of their own. Only safetensors
are read, and no code that comes with a model is run.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import EncoderTraits
from metarun.encoders.files import list_fetch_errors, scale_to_unit


@register("encoder", "transformers", EncoderTraits(reads="strings", needs=("transformers",), extra="transformers"))
@dataclass(frozen=True)
class Transformers:
    """The mean over tokens, each text alone."""

    model: str
    tokens: Count
    unit_length: bool
    device: torch.device

    @property
    def size(self) -> int:
        size: int = self._parts[1].config.hidden_size
        return size

    def encode(self, items: Sequence[str]) -> Tensor:
        """n texts -> [n, D]."""
        tokenizer, network = self._parts

        def encode(text: str) -> Tensor:
            read = tokenizer(text, truncation=True, max_length=self.tokens, return_tensors="pt").to(self.device)
            mean: Tensor = network(**read).last_hidden_state[0].mean(0)
            return mean.cpu()

        with torch.no_grad():
            return scale_to_unit(torch.stack([encode(text) for text in items]), self.unit_length)

    def identity(self) -> dict[str, Any]:
        tokenizer, network = self._parts
        digest = hashlib.sha256(str(sorted(tokenizer.get_vocab().items())).encode())
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {"weights": digest.hexdigest(), "tokens": self.tokens, "unit_length": self.unit_length}

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The tokenizer and the network. Raises ConfigError if they are not there, and cannot be fetched."""
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            network = AutoModel.from_pretrained(self.model, use_safetensors=True)
        except list_fetch_errors(ValueError, ImportError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"encoder.model is {self.model!r}: it is no folder with a model, and cannot be fetched: {reason}"
            ) from error
        return tokenizer, network.eval().to(self.device)
