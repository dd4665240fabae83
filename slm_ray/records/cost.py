"""Exact costs of an architecture: parameters, FLOPs per token, key-value cache bytes per token."""

from __future__ import annotations

from slm_ray.records.architecture import Architecture, LayerShape, Structure


def attention_matmul_params(structure: Structure, hidden_size: int, layer: LayerShape) -> int:
    """Weights of the query, key, value and output projections, biases not counted."""
    heads, kv_heads = layer.num_attention_heads, layer.num_key_value_heads
    return hidden_size * structure.head_dim * (2 * heads + 2 * kv_heads)


def mlp_matmul_params(structure: Structure, hidden_size: int, layer: LayerShape, *, active: bool = False) -> int:
    """Weights of the MLP's projections, biases not counted; of a mixture, all experts' and the router's.

    ``active``: Only of the experts that one token goes through.
    """
    projections, units = 3 if structure.gated_mlp else 2, layer.intermediate_size
    if not structure.expert_size or not units:
        return projections * hidden_size * units
    experts = structure.experts_per_token if active else units
    return hidden_size * (projections * experts * structure.expert_size + units)


def _norm_params(structure: Structure, hidden_size: int) -> int:
    return hidden_size * (2 if structure.norm_bias else 1)


def _sub_layer_norms(structure: Structure, hidden_size: int) -> int:
    return structure.norms_per_sub_layer * _norm_params(structure, hidden_size)


def attended_tokens(layer: LayerShape, sequence_length: int) -> int:
    """How many tokens a layer's attention looks at, and keeps in its cache, at a context of the given length."""
    return min(sequence_length, layer.sliding_window or sequence_length)


def attention_params(structure: Structure, hidden_size: int, layer: LayerShape) -> int:
    """All parameters of the attention sub-layer and its norm; 0 where it is skipped."""
    if not layer.num_attention_heads:
        return 0
    heads, kv_heads = layer.num_attention_heads, layer.num_key_value_heads
    total = attention_matmul_params(structure, hidden_size, layer) + _sub_layer_norms(structure, hidden_size)
    total += structure.head_dim * (heads + 2 * kv_heads) * structure.qkv_bias
    total += hidden_size * structure.attention_output_bias
    normed_heads = heads + kv_heads if structure.qk_norm_over_heads else 2
    return total + normed_heads * structure.head_dim * structure.qk_norm


def mlp_params(structure: Structure, hidden_size: int, layer: LayerShape) -> int:
    """All parameters of the MLP sub-layer and its norm; 0 where it is skipped."""
    if not layer.intermediate_size:
        return 0
    total = mlp_matmul_params(structure, hidden_size, layer) + _sub_layer_norms(structure, hidden_size)
    inner_projections = 2 if structure.gated_mlp else 1
    return total + (inner_projections * layer.intermediate_size + hidden_size) * structure.mlp_bias


def embedding_params(structure: Structure, hidden_size: int) -> int:
    """Token embedding (once when tied), output head, learned positions and final norm."""
    tables = 1 if structure.tie_word_embeddings else 2
    total = tables * structure.vocab_size * hidden_size + structure.learned_positions * hidden_size
    return total + structure.vocab_size * structure.output_head_bias + _norm_params(structure, hidden_size)


def num_params(architecture: Architecture) -> int:
    """Parameters of the whole model, tied embeddings counted once; equals ``sum(p.numel())`` of the HF model."""
    structure, hidden_size = architecture.structure, architecture.hidden_size
    layers = sum(
        attention_params(structure, hidden_size, layer) + mlp_params(structure, hidden_size, layer)
        for layer in architecture.layers
    )
    return embedding_params(structure, hidden_size) + layers


def flops_per_token(architecture: Architecture, sequence_length: int) -> int:
    """Matrix-multiplication FLOPs of one token's forward pass in a sequence of the given length.

    A multiply and an add are two FLOPs. Attention scores and the weighted sum of values are counted over the whole
    sequence, not the causal half, as in PaLM (arXiv 2204.02311, appendix B) and torch's ``FlopCounterMode``, and over
    no more than a layer's window. Of a mixture, a token's experts and the router count. The output head is included;
    embedding look-ups, norms and activations are not.
    Training costs three times as much.
    """
    structure, hidden_size = architecture.structure, architecture.hidden_size
    weights = structure.vocab_size * hidden_size
    attended = 0
    for layer in architecture.layers:
        weights += attention_matmul_params(structure, hidden_size, layer)
        weights += mlp_matmul_params(structure, hidden_size, layer, active=True)
        attended += 2 * layer.num_attention_heads * structure.head_dim * attended_tokens(layer, sequence_length)
    return 2 * (weights + attended)


def kv_bytes_per_token(architecture: Architecture, bytes_per_value: int = 2, sequence_length: int = 1) -> int:
    """Bytes of key-value cache per token of a sequence of the given length, rounded up per head.

    ``bytes_per_value``: 2 for fp16 or bf16.
    """
    head = 2 * architecture.structure.head_dim * bytes_per_value
    return sum(
        layer.num_key_value_heads * -(-head * attended_tokens(layer, sequence_length) // sequence_length)
        for layer in architecture.layers
    )
