"""Slow, obvious versions of what slm_ray does fast, written from the definitions and sharing no code with it."""


def greedy_ranking(teacher, scores, step, target, quantity, sequence_length, with_layers=True):
    """What importance alone keeps: drop the unit with the least score per cost, one at a time, until the target is met.

    Units are key-value heads, blocks of ``step`` neurons (by score, in their layer) and, if wanted, whole layers, whose
    score shrinks with what they have already lost. Everything is worked out anew for every step. Costs of heads and
    neurons are without the norm of their sub-layer, those of layers with everything.

    Returns:
        For every layer that is kept, its index, the set of its key-value heads and the set of its neurons.
    """
    from slm_ray.architecture import Architecture, LayerShape
    from slm_ray.architecture.budget import measure_cost

    shape = teacher.layers[0]
    per_head = shape.num_attention_heads // shape.num_key_value_heads

    def size(layers):
        shapes = [LayerShape(len(heads) * per_head, len(heads), sum(map(len, blocks))) for heads, blocks in layers]
        kept = tuple(one for one in shapes if one.num_key_value_heads or one.intermediate_size)
        return measure_cost(Architecture(teacher.structure, teacher.hidden_size, kept), quantity, sequence_length)

    head_cost = size([([0, 1], [])]) - size([([0], [])])
    neuron_cost = size([([], [[0, 1]])]) - size([([], [[0]])])
    kept = {}
    for layer in range(teacher.num_hidden_layers):
        ranked = sorted(range(shape.intermediate_size), key=lambda neuron: -scores.neurons[layer, neuron])
        blocks = [ranked[start : start + step] for start in range(0, len(ranked), step)]
        kept[layer] = (list(range(shape.num_key_value_heads)), blocks)

    def worth(layer):
        heads, blocks = kept[layer]
        return sum(scores.kv_heads[layer, heads]) + sum(scores.neurons[layer, neuron] for b in blocks for neuron in b)

    whole = {layer: worth(layer) for layer in kept}
    while size(kept.values()) > target:
        candidates = []
        for layer, (heads, blocks) in kept.items():
            if head_cost:
                candidates += [(scores.kv_heads[layer, head] / head_cost, layer, 0, head) for head in heads]
            if neuron_cost:
                for place, block in enumerate(blocks):
                    density = sum(scores.neurons[layer, block]) / (neuron_cost * len(block))
                    candidates.append((density, layer, 1, place))
            saved = size(kept.values()) - size([units for other, units in kept.items() if other != layer])
            if with_layers and len(kept) > 1 and saved:
                candidates.append((scores.layers[layer] * worth(layer) / whole[layer] / saved, layer, 2, None))
        _, layer, kind, unit = min(candidates, key=lambda candidate: candidate[0])
        if kind == 0:
            kept[layer][0].remove(unit)
        elif kind == 1:
            kept[layer][1].pop(unit)
        else:
            del kept[layer]
    return [
        (layer, set(heads), {neuron for block in blocks for neuron in block})
        for layer, (heads, blocks) in kept.items()
        if heads or blocks
    ]


def every_cost(genome, quantity, sequence_length):
    """Every cost that the genes of a small genome can have, by trying all of them."""
    import itertools

    import numpy as np

    ranges = [range(low, high + 1) for low, high in zip(genome.lower.tolist(), genome.upper.tolist(), strict=True)]
    return sorted({genome.cost(np.array(genes), quantity, sequence_length) for genes in itertools.product(*ranges)})
