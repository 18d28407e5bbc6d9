"""Hugging Face's Swin weights -> the names used here.

The facts: queries, keys and values are layers of their own; files have ``attention.self.query``
and ``intermediate.dense``, models of transformers 5 in memory ``attention.q_proj`` and
``mlp.fc1``. Patch merging has the order of the authors' code (see :mod:`.official`). A backbone's
output norms are ``hidden_states_norms.stage1`` ... (MaskFormer's from 0 on, without a word).
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .official import to_unfold_order

ANCHOR = "embeddings.patch_embeddings.projection.weight"
RENAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.projection."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.position_embeddings$", "absolute_pos_embed"),
    (r"^encoder\.layers\.(\d+)\.", r"stages.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(self|relative_position_bias)\.relative", ".attn.w_msa.relative"),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.w_msa.proj."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".ffn.layers.0.0."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".ffn.layers.1."),
)
PROJECTION = re.compile(r"\.attention\.(self\.query|self\.key|self\.value|[qkv]_proj)\.")
QKV = (("self.query", "q_proj"), ("self.key", "k_proj"), ("self.value", "v_proj"))
NORMS = re.compile(r"^hidden_states_norms\.(stage)?(\d+)\.")
# The pooled output's norm, what reconstructs masked patches, and tables that follow from sizes.
UNUSED = re.compile(r"(^|\.)layernorm\.|^embeddings\.mask_token$|relative_position_index$")


def find_prefix(keys: Iterable[str]) -> str | None:
    """What comes before a Swin's keys in a model of transformers; None if it holds none."""
    keys = set(keys)
    for key in keys:
        if key.endswith(ANCHOR):
            prefix = key.removesuffix(ANCHOR)
            if any(k.startswith(f"{prefix}encoder.layers.0.blocks.0.attention.") for k in keys):
                return prefix
    return None


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The Swin's keys alone, and those of its output norms, which lie beside it."""
    beside = re.sub(r"(swin|model)\.$", "", prefix)
    out = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    norms = f"{beside}hidden_states_norms."
    return out | {k[len(beside) :]: v for k, v in state_dict.items() if k.startswith(norms)}


def convert_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face Swin state dict -> mmdet ``SwinTransformer`` names and channel order.

    Args:
        state_dict: keys without any prefix (``encoder.layers.0. ...``).

    Returns:
        A new dict; reordered and joined tensors are new, the others are shared.
    """
    out = {}
    for key, value in state_dict.items():
        if UNUSED.search(key):
            continue
        if match := PROJECTION.search(key):
            if match[1] not in QKV[0]:
                continue  # joined with the queries
            names = [[key.replace(match[1], name) for name in both] for both in QKV]
            value = torch.cat([state_dict[next(k for k in ks if k in state_dict)] for ks in names])
            key = key.replace(f"attention.{match[1]}", "attn.w_msa.qkv")
        if match := NORMS.match(key):
            key = f"norm{int(match[2]) - bool(match[1])}.{key[match.end() :]}"
        for pattern, name in RENAMES:
            key = re.sub(pattern, name, key)
        out[key] = to_unfold_order(value) if ".downsample." in key else value
    return out
