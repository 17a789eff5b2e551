"""WordLlama: the mean of a text's static token vectors, 256 numbers, from embeddings of large language models.

https://github.com/dleemiller/WordLlama (MIT). Its two files are read directly: its own loader wants the network. What
texts the language models have seen is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import EncoderTraits
from metarun.core.weight_files import load_tensors
from metarun.encoders.files import find_packaged, scale_to_unit

WEIGHTS = "weights/l2_supercat_256.safetensors"
TOKENS = "tokenizers/l2_supercat_tokenizer_config.json"
SHA256 = {
    WEIGHTS: "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
    TOKENS: "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
}


@register("encoder", "wordllama", EncoderTraits(reads="strings", needs=("wordllama", "safetensors", "tokenizers")))
@dataclass(frozen=True)
class WordLlama:
    """The mean of the vectors of a text's tokens, each as often as it occurs."""

    unit_length: bool
    device: torch.device

    size = 256

    def encode(self, items: Sequence[str]) -> Tensor:
        """n strings -> [n, 256]; zeros for one without tokens."""
        rows = []
        for encoding in self._tokenizer.encode_batch(list(items), add_special_tokens=False):
            ids = torch.tensor(encoding.ids, dtype=torch.int64).clamp(max=len(self._vectors) - 1)
            rows.append(self._vectors[ids].sum(0) / max(len(ids), 1))
        return scale_to_unit(torch.stack(rows), self.unit_length)

    def identity(self) -> dict[str, Any]:
        return {"weights": SHA256[WEIGHTS], "tokens": SHA256[TOKENS], "unit_length": self.unit_length}

    @cached_property
    def _vectors(self) -> Tensor:
        """[tokens, 256]."""
        file = find_packaged("wordllama", "wordllama", WEIGHTS, SHA256[WEIGHTS])
        [vectors] = load_tensors("encoder=wordllama", file).values()
        return vectors.float()

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(find_packaged("wordllama", "wordllama", TOKENS, SHA256[TOKENS])))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
