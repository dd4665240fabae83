"""Slow, obvious versions of what slm_ray does fast, written from the definitions and sharing no code with it."""

import functools


def greedy_ranking(teacher, scores, step, target, quantity, sequence_length, with_layers=True):
    """What importance alone keeps: drop the unit with the least score per cost, one at a time, until the target is met.

    Units are key-value heads, blocks of ``step`` neurons (by score, in their layer) and, if wanted, whole layers, whose
    score shrinks with what they have already lost. Everything is worked out anew for every step. Costs of heads and
    neurons are without the norm of their sub-layer, those of layers with everything.

    Returns:
        For every layer that is kept, its index, the set of its key-value heads and the set of its neurons.
    """
    from slm_ray.records.architecture import Architecture, LayerShape
    from slm_ray.records.budget import measure_cost

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


def mixture(module, config, x, kept, factors=None):
    """A mixture's output, with every expert run on every token.

    Args:
        kept: The experts that the router chooses among.
        factors: ``[..., experts]``, what each expert's output is multiplied by; 1 by default.
    """
    import torch

    if not kept:
        return torch.zeros_like(x)
    x, shape = x.flatten(0, -2), x.shape
    logits = x @ module.gate.weight.T
    dropped = [expert for expert in range(logits.shape[-1]) if expert not in kept]
    logits[:, dropped] = -torch.inf
    chosen = logits.softmax(-1).topk(config.num_experts_per_tok)
    values = chosen.values
    if config.model_type == "mixtral" or config.norm_topk_prob:
        values = values / values.sum(-1, keepdim=True)
    weights = torch.zeros_like(logits).scatter(1, chosen.indices, values)
    if factors is not None:
        weights = weights * factors.expand(*shape[:-1], -1).flatten(0, -2)
    outputs = []
    for gate_up, down in zip(module.experts.gate_up_proj, module.experts.down_proj, strict=True):
        gate, up = (x @ gate_up.T).chunk(2, -1)
        outputs.append((torch.nn.functional.silu(gate) * up) @ down.T)
    return torch.einsum("te,eth->th", weights, torch.stack(outputs)).view(shape)


def masked_logits(model, spec, ids):
    """Logits of a Hugging Face teacher, whole, with everything a sub-network drops masked by hooks.

    A dropped head or neuron is a zero in the input of its output projection; a dropped sub-layer adds nothing (its
    biases are gone too); a dropped layer hands on its input. A dropped residual channel is a zero in whatever is
    written to the residual stream, and norms take their statistics over the kept channels only; so do OLMo 2's and
    OLMoE's norms over all queries and over all keys, over those of kept heads. A router chooses among kept experts.
    """
    import copy

    import torch

    # The layer list, attention and its output projection, MLP and its output projection.
    places = {
        "gpt_neox": ("gpt_neox.layers", "attention", "dense", "mlp", "dense_4h_to_h"),
        "gpt2": ("transformer.h", "attn", "c_proj", "mlp", "c_proj"),
    }
    default = ("model.layers", "self_attn", "o_proj", "mlp", "down_proj")
    layers_path, attention, attention_out, mlp, mlp_out = places.get(model.config.model_type, default)
    model = copy.deepcopy(model)
    hidden_size, head_dim = model.config.hidden_size, getattr(model.config, "head_dim", None)
    head_dim = head_dim or hidden_size // model.config.num_attention_heads
    kept_channels = torch.zeros(hidden_size)
    kept_channels[list(spec.hidden)] = 1

    def zero_inputs(module, mask):
        module.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * mask, *inputs[1:]))

    def zero_output(module, mask):
        module.register_forward_hook(
            lambda _module, _inputs, out: (out[0] * mask, *out[1:]) if isinstance(out, tuple) else out * mask
        )

    def norm_over_kept(norm, places):
        eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        scale = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
        mask = torch.zeros(len(norm.weight))
        mask[places] = 1

        def forward(x):
            kept = x[..., places]
            if isinstance(norm, torch.nn.LayerNorm):
                mean, variance = kept.mean(-1, keepdim=True), kept.var(-1, keepdim=True, unbiased=False)
                normal = (x - mean) / (variance + eps).sqrt() * norm.weight + norm.bias
            else:  # RMSNorm
                normal = x / (kept.square().mean(-1, keepdim=True) + eps).sqrt() * scale
            return normal * mask

        norm.forward = forward

    units = {layer.source: layer for layer in spec.layers}
    for index, layer in enumerate(model.get_submodule(layers_path)):
        attention_module, mlp_module = getattr(layer, attention), getattr(layer, mlp)
        if index not in units:
            layer.register_forward_hook(lambda _module, inputs, _out: inputs[0])
            continue
        head_mask = torch.zeros(model.config.num_attention_heads, head_dim)
        for group in units[index].query_heads:
            head_mask[list(group)] = 1
        zero_inputs(getattr(attention_module, attention_out), head_mask.flatten())
        if model.config.model_type in ("olmo2", "olmoe") and units[index].kv_heads:
            kept_heads = {"q_norm": units[index].flat_query_heads, "k_norm": units[index].kv_heads}
            for name, heads in kept_heads.items():
                rows = [head * head_dim + row for head in heads for row in range(head_dim)]
                norm_over_kept(getattr(attention_module, name), rows)
        if hasattr(mlp_module, "experts"):
            mlp_module.forward = functools.partial(mixture, mlp_module, model.config, kept=units[index].neurons)
            zero_output(attention_module, kept_channels * bool(units[index].kv_heads))
            zero_output(mlp_module, kept_channels * bool(units[index].neurons))
            continue
        neuron_mask = torch.zeros(getattr(mlp_module, mlp_out).weight.shape[0 if mlp_out == "c_proj" else 1])
        neuron_mask[list(units[index].neurons)] = 1
        zero_inputs(getattr(mlp_module, mlp_out), neuron_mask)
        zero_output(attention_module, kept_channels * bool(units[index].kv_heads))
        zero_output(mlp_module, kept_channels * bool(units[index].neurons))
    if len(spec.hidden) < hidden_size:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Embedding):
                zero_output(module, kept_channels)
            if "Norm" in type(module).__name__ and not name.endswith(("q_norm", "k_norm")):
                norm_over_kept(module, list(spec.hidden))
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def non_dominated(rows):
    """Rows that no other row dominates, all values minimised; of equal rows the first."""

    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [
        number
        for number, row in enumerate(rows)
        if not any(dominates(other, row) for other in rows)
        and not any(list(earlier) == list(row) for earlier in rows[:number])
    ]


def dominated_share(rows, ideal, nadir, cells=400):
    """The share of a box in the plane that points dominate, by counting the cells of a fine grid."""
    steps = [(number + 0.5) / cells for number in range(cells)]
    covered = 0
    for x in steps:
        for y in steps:
            point = (ideal[0] + x * (nadir[0] - ideal[0]), ideal[1] + y * (nadir[1] - ideal[1]))
            covered += any(row[0] <= point[0] and row[1] <= point[1] for row in rows)
    return covered / cells**2


def naive_losses(hidden, head, targets):
    """Negative log-likelihoods from whole logits, in fp64."""
    import torch

    logits = hidden.double() @ head.double().T
    return torch.stack([-row.log_softmax(-1)[target] for row, target in zip(logits, targets, strict=True)])


def naive_divergences(teacher, student, head):
    """KL(teacher || student) from whole distributions, in fp64."""
    p = (teacher.double() @ head.double().T).softmax(-1)
    q = (student.double() @ head.double().T).softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def unit_tensors(model, layer):
    """The weights that go with each unit of one layer of a Hugging Face model, with everything written out by family.

    Returns:
        ``query``, ``kv`` and ``neuron``: for each index, the list of tensors that would go with it.
    """
    kind = model.config.model_type
    heads = model.config.num_attention_heads
    kv_heads = getattr(model.config, "num_key_value_heads", None) or heads
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // heads

    def rows(tensor, index):
        return tensor[index * width : (index + 1) * width]

    if kind == "gpt2":
        block = model.transformer.h[layer]
        size = heads * width
        query = [
            [
                *(rows(block.attn.c_attn.weight.T[part * size :], head) for part in range(3)),
                *(rows(block.attn.c_attn.bias[part * size :], head) for part in range(3)),
                rows(block.attn.c_proj.weight, head),
            ]
            for head in range(heads)
        ]
        fc, out = block.mlp.c_fc, block.mlp.c_proj
        neuron = [[fc.weight[:, n], fc.bias[n], out.weight[n]] for n in range(fc.weight.shape[1])]
        return query, [[] for _ in range(heads)], neuron
    if kind == "gpt_neox":
        block = model.gpt_neox.layers[layer]
        fused, dense = block.attention.query_key_value, block.attention.dense
        query = []
        for head in range(heads):
            tensors = [fused.weight[head * 3 * width : (head + 1) * 3 * width], rows(dense.weight.T, head)]
            if fused.bias is not None:
                tensors.append(fused.bias[head * 3 * width : (head + 1) * 3 * width])
            query.append(tensors)
        first, second = block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h
        neuron = [[first.weight[n], first.bias[n], second.weight[:, n]] for n in range(first.weight.shape[0])]
        return query, [[] for _ in range(heads)], neuron
    block = model.model.layers[layer]
    attention, mlp = block.self_attn, block.mlp

    def of(module, index):
        return [rows(module.weight, index)] + ([] if module.bias is None else [rows(module.bias, index)])

    query = [[*of(attention.q_proj, head), rows(attention.o_proj.weight.T, head)] for head in range(heads)]
    kv = [[*of(attention.k_proj, head), *of(attention.v_proj, head)] for head in range(kv_heads)]
    neuron = []
    for n in range(mlp.gate_proj.weight.shape[0]):
        tensors = [mlp.gate_proj.weight[n], mlp.up_proj.weight[n], mlp.down_proj.weight[:, n]]
        if mlp.gate_proj.bias is not None:
            tensors += [mlp.gate_proj.bias[n], mlp.up_proj.bias[n]]
        neuron.append(tensors)
    return query, kv, neuron


def unit_outputs(model, ids):
    """What a Hugging Face model's units put out, by hooks, token by token.

    Returns:
        Per layer: ``[tokens, heads, head_dim]`` head outputs, ``[tokens, neurons]`` activations, and the residual
        stream before and after it, ``[tokens, hidden]``.
    """
    import torch

    places = {
        "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
        "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    }
    path, attention, mlp = places.get(model.config.model_type, ("model.layers", "self_attn.o_proj", "mlp.down_proj"))
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    found, hooks = [], []
    for layer in model.get_submodule(path):
        entry = {}
        found.append(entry)

        def keep(name, entry=entry):
            return lambda _module, inputs: entry.__setitem__(name, inputs[0].detach().flatten(0, -2))

        def leave(_module, _inputs, output, entry=entry):
            output = output[0] if isinstance(output, tuple) else output
            entry["after"] = output.detach().flatten(0, -2)

        hooks.append(layer.get_submodule(attention).register_forward_pre_hook(keep("heads")))
        hooks.append(layer.get_submodule(mlp).register_forward_pre_hook(keep("neurons")))
        hooks.append(layer.register_forward_pre_hook(keep("before")))
        hooks.append(layer.register_forward_hook(leave))
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    for entry in found:
        entry["heads"] = entry["heads"].unflatten(-1, (-1, width))
    return found


def gated_loss(model, ids, head_gates, neuron_gates, channel_gates):
    """Summed next-token loss of each sequence with a factor on every head, neuron and residual channel.

    A channel's factor is on all that is written to the residual stream: embeddings and the output of every sub-layer.

    Args:
        head_gates: ``[sequences, positions (or 1), layers, heads]``.
        neuron_gates: ``[sequences, positions (or 1), layers, neurons]``.
        channel_gates: ``[sequences, positions (or 1), hidden]``.
    """
    import copy

    import torch

    places = {
        "gpt_neox": ("gpt_neox", "layers", "attention.dense", "mlp.dense_4h_to_h", "embed_in"),
        "gpt2": ("transformer", "h", "attn.c_proj", "mlp.c_proj", "wte"),
    }
    default = ("model", "layers", "self_attn.o_proj", "mlp.down_proj", "embed_tokens")
    base_name, layers, attention, mlp, embedding = places.get(model.config.model_type, default)
    behind = ("post_attention_layernorm", "post_feedforward_layernorm")
    written = behind if model.config.model_type in ("gemma2", "gemma3_text", "olmo2") else (attention, mlp)
    model = copy.deepcopy(model)
    base = model.get_submodule(base_name)
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    hooks = []
    for number, layer in enumerate(base.get_submodule(layers)):
        heads = head_gates[:, :, number].repeat_interleave(width, -1)
        neurons = neuron_gates[:, :, number]
        if hasattr(layer.mlp, "experts"):
            every = range(neurons.shape[-1])
            layer.mlp.forward = functools.partial(mixture, layer.mlp, model.config, kept=every, factors=neurons)
            written, neurons = (attention, "mlp"), 1
        for path, last, factor in ((attention, written[0], heads), (mlp, written[1], neurons)):
            module = layer.get_submodule("mlp" if last == "mlp" else path)
            hooks.append(module.register_forward_pre_hook(lambda _m, inputs, f=factor: (inputs[0] * f, *inputs[1:])))
            hooks.append(layer.get_submodule(last).register_forward_hook(lambda _m, _i, out: out * channel_gates))
    hooks.append(base.get_submodule(embedding).register_forward_hook(lambda _m, _i, out: out * channel_gates))
    logits = model(ids, use_cache=False).logits[:, :-1]
    for hook in hooks:
        hook.remove()
    picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
    return -torch.sum(picked, dim=(1, 2))


def optimizer_updates(kind, weight, gradients, rates, betas, eps, decay, trust=True):
    """A weight after one update per gradient, by the published rule of an optimiser, in double precision.

    ``kind`` is adamw (arXiv 1711.05101), lion (2302.06675), lamb (1904.00962 v3; ``trust`` False leaves the trust ratio
    out) or muon (Keller Jordan's post, with the scale of 2502.16982).
    """
    import numpy as np

    w = np.array(weight, dtype=np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = np.array(gradient, dtype=np.float64)
        if kind == "adamw":
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            step = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
            w = w - rate * (step + decay * w)
        elif kind == "lion":
            step = np.sign(betas[0] * m + (1 - betas[0]) * g)
            m = betas[1] * m + (1 - betas[1]) * g
            w = w - rate * (step + decay * w)
        elif kind == "lamb":
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            step = m / (np.sqrt(v) + eps) + decay * w
            ratio = np.linalg.norm(w) / np.linalg.norm(step) if trust else 1
            w = w - rate * ratio * step
        else:
            m = 0.95 * m + 0.05 * g
            step = newton_schulz(0.05 * g + 0.95 * m) * 0.2 * max(w.shape) ** 0.5
            w = w - rate * (step + decay * w)
    return w


def newton_schulz(matrix):
    """Five steps towards the nearest orthogonal matrix, with the coefficients of Keller Jordan's Muon."""
    import numpy as np

    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def schedule_factor(kind, step, warmup, total, floor, decay_fraction):
    """The multiplier of the peak learning rate, straight from the definitions."""
    import math

    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1
    if kind == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    if kind == "linear":
        return floor + (1 - floor) * (total - step) / (total - warmup)
    start = total - decay_fraction * total
    return 1 if step < start else floor + (1 - floor) * (1 - math.sqrt((step - start) / (decay_fraction * total)))


def naive_divergence(name, teacher, student):
    """A divergence between two lists of probabilities, from its definition; student may need gradients.

    Where the teacher gives nothing, ``0 log 0`` is 0.
    """
    import torch

    def kl(p, q):
        return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    middle = [(a + b) / 2 for a, b in zip(teacher, student, strict=True)]
    if name == "forward_kl":
        return kl(teacher, student)
    if name == "reverse_kl":
        return kl(student, teacher)
    if name == "symmetric":
        return (kl(teacher, student) + kl(student, teacher)) / 2
    if name == "jensen_shannon":
        return (kl(teacher, middle) + kl(student, middle)) / 2
    if name == "total_variation":
        return sum((a - b).abs() for a, b in zip(teacher, student, strict=True)) / 2
    return -sum(a * torch.log(b) for a, b in zip(teacher, student, strict=True) if a > 0)


def naive_distillation(name, student_logits, target, temperature, full=None, words=None, tail=None):
    """Cross-entropy and divergence of one token, from whole rows of logits in fp64.

    Args:
        name: The divergence.
        student_logits: ``[vocabulary]``.
        target: The next token's id.
        temperature: Of both softmaxes; the divergence is multiplied by its square.
        full: The teacher's whole row of logits, or None.
        words: Instead, pairs of an id and the teacher's probability.
        tail: With ``words``, the probability of all other words; None where they have none (top-k, sampled).
    """
    import torch

    ce = -torch.log(student_logits.exp()[target] / student_logits.exp().sum())
    q = list((student_logits / temperature).softmax(-1))
    if words is None:
        return ce, temperature**2 * naive_divergence(name, (full / temperature).softmax(-1), q)
    whole = sum(probability for _, probability in words) + (tail or 0)
    probabilities = dict(words)
    if tail is None:  # the others are words like any, without probability
        p = [torch.as_tensor(probabilities.get(word, 0.0), dtype=torch.double) / whole for word in range(len(q))]
    else:  # the others are one word
        others = sum((q[word] for word in range(len(q)) if word not in probabilities), torch.zeros(()).double())
        q = [q[word] for word in probabilities] + [others]
        p = [torch.as_tensor(chance, dtype=torch.double) / whole for chance in [*probabilities.values(), tail]]
        if len(probabilities) == len(student_logits):
            p, q = p[:-1], q[:-1]
    return ce, temperature**2 * naive_divergence(name, p, q)


def naive_kendall(x, y):
    """Kendall's tau-b, pair by pair; None where it is undefined."""
    concordant = discordant = untied_x = untied_y = 0
    for i in range(len(x)):
        for j in range(i):
            untied_x += x[i] != x[j]
            untied_y += y[i] != y[j]
            if x[i] != x[j] and y[i] != y[j]:
                same = (x[i] > x[j]) == (y[i] > y[j])
                concordant, discordant = concordant + same, discordant + (not same)
    if not untied_x or not untied_y:
        return None
    return (concordant - discordant) / (untied_x * untied_y) ** 0.5


def naive_spearman(x, y):
    """Spearman's rho: the correlation of the ranks, tied ones sharing the mean of theirs; None where undefined."""

    def ranks(values):
        places = sorted(values)
        return [sum(place for place, other in enumerate(places, 1) if other == value) / places.count(value)
                for value in values]  # fmt: skip

    def centred(values):
        return [value - sum(values) / len(values) for value in values]

    a, b = centred(ranks(x)), centred(ranks(y))
    scale = (sum(one * one for one in a) * sum(one * one for one in b)) ** 0.5
    return sum(one * other for one, other in zip(a, b, strict=True)) / scale if scale else None


def ridge_by_cross_validation(features, targets, shares):
    """Ridge regression on standardised features with an unpenalised intercept, from the normal equations.

    Of the penalties, shares of the largest eigenvalue of ``Z'Z``, the one is taken whose generalised cross-validation
    ``n |y - H y|^2 / (n - trace H)^2`` is least, ``H`` being the matrix that takes targets to fitted values.

    Returns:
        The penalty, and a function from new features to predictions.
    """
    import numpy as np

    count = len(targets)
    means = [sum(column) / count for column in features.T]
    spreads = [(sum((value - mean) ** 2 for value in column) / count) ** 0.5 or 1.0
               for column, mean in zip(features.T, means, strict=True)]  # fmt: skip
    z = (features - means) / spreads
    largest = np.linalg.eigvalsh(z.T @ z).max()
    scores = {}
    for share in shares:
        inverse = np.linalg.inv(z.T @ z + share * largest * np.eye(z.shape[1]))
        hat = np.full((count, count), 1 / count) + z @ inverse @ z.T
        residual = targets - hat @ targets
        scores[share] = count * residual @ residual / (count - np.trace(hat)) ** 2
    penalty = min(scores, key=scores.get) * largest
    weights = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ (targets - targets.mean()))
    return penalty, lambda new: targets.mean() + (new - means) / spreads @ weights


def alibi_slopes_from_the_paper(num_heads):
    """ALiBi's slopes: a geometric sequence that starts at 2^(-8/n) and has that as its ratio; for n that is no power of
    two, those of the power below, then the 1st, 3rd, 5th ... of the power above (arXiv 2108.12409, footnote 11)."""

    def geometric(n):
        first = 2 ** (-8 / n)
        return [first ** (i + 1) for i in range(n)]

    power = 1
    while power * 2 <= num_heads:
        power *= 2
    if power == num_heads:
        return geometric(num_heads)
    return geometric(power) + geometric(2 * power)[0::2][: num_heads - power]


def llama_logits(state, config, positions, document):
    """Logits of a Llama-like model for the ids of one document, token by token and head by head, in fp64.

    Args:
        state: Its state dict.
        config: Its config.
        positions: ``rotary``, ``learned``, ``alibi`` or ``none``.
        document: A list of ids.
    """
    import math

    import torch

    weights = {name: value.double() for name, value in state.items()}
    heads, width, theta = config.num_attention_heads, config.head_dim, config.rope_parameters["rope_theta"]
    group = heads // config.num_key_value_heads
    slopes = alibi_slopes_from_the_paper(heads)

    def norm(x, scale):
        return scale * x / (x.square().mean() + config.rms_norm_eps).sqrt()

    def turned(vector, position):
        out, half = vector.clone(), width // 2
        for pair in range(half):
            angle = position * theta ** (-2 * pair / width)
            a, b = vector[pair], vector[pair + half]
            out[pair] = a * math.cos(angle) - b * math.sin(angle)
            out[pair + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    stream = []
    for place, token in enumerate(document):
        embedded = weights["model.embed_tokens.weight"][token]
        if positions == "learned":
            embedded = embedded + weights["model.embed_positions.weight"][place]
        stream.append(embedded)
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        normal = [norm(x, weights[at + "input_layernorm.weight"]) for x in stream]
        projected = {
            kind: [(weights[f"{at}self_attn.{kind}_proj.weight"] @ x).view(-1, width) for x in normal] for kind in "qkv"
        }
        for query in range(len(stream)):
            outputs = []
            for head in range(heads):
                scores = []
                for key in range(query + 1):
                    q, k = projected["q"][query][head], projected["k"][key][head // group]
                    if positions == "rotary":
                        q, k = turned(q, query), turned(k, key)
                    score = q @ k / math.sqrt(width)
                    scores.append(score - slopes[head] * (query - key) if positions == "alibi" else score)
                shares = torch.softmax(torch.stack(scores), 0)
                outputs.append(sum(share * projected["v"][key][head // group] for key, share in enumerate(shares)))
            stream[query] = stream[query] + weights[at + "self_attn.o_proj.weight"] @ torch.cat(outputs)
        for place, x in enumerate(stream):
            y = norm(x, weights[at + "post_attention_layernorm.weight"])
            gate, up = weights[at + "mlp.gate_proj.weight"] @ y, weights[at + "mlp.up_proj.weight"] @ y
            stream[place] = x + weights[at + "mlp.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
    final = torch.stack([norm(x, weights["model.norm.weight"]) for x in stream])
    return final @ weights["lm_head.weight"].T


def naive_reconstruction(teacher, wide, student, spec, ids, *, ridge, pull, read_ridge, even):
    """Reconstruct a student in place, with the whole models run anew for each of its sub-layers, in fp64.

    Every fit is ordinary least squares over rows of data and, for the ridge, rows that ask for the old weights.

    Args:
        teacher: The Hugging Face teacher, in fp64.
        wide: A student of the same units that keeps all residual channels: its readers are the teacher's, cut to units.
        student: The student.
        spec: The sub-network that the student is.
        ids: ``[sequences, length]``.
    """
    import torch

    places = {
        "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h", "input_layernorm",
                     "post_attention_layernorm", ["attention.query_key_value"], ["mlp.dense_h_to_4h"]),
        "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj", "ln_1", "ln_2", ["attn.c_attn"], ["mlp.c_fc"]),
    }  # fmt: skip
    default = ("model.layers", "self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
               [f"self_attn.{name}_proj" for name in "qkv"], ["mlp.gate_proj", "mlp.up_proj"])  # fmt: skip
    path, *names = places.get(teacher.config.model_type, default)
    writers, norms, readers = names[:2], names[2:4], names[4:]

    def watch(model):
        """Per layer: the stream before it and behind it, and per sub-layer what it reads, is given and writes."""
        found, hooks = [], []
        for layer in model.get_submodule(path):
            entry = {"given": {}, "wrote": {}, "read": {}}
            found.append(entry)

            def before(_module, args, kwargs, entry=entry):
                entry["before"] = args[0] if args else kwargs["hidden_states"]

            def behind(_module, _args, out, entry=entry):
                entry["behind"] = out[0] if isinstance(out, tuple) else out

            hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(layer.register_forward_hook(behind))
            for kind in (0, 1):

                def wrote(_module, args, out, entry=entry, kind=kind):
                    entry["given"][kind], entry["wrote"][kind] = args[0], out

                def read(_module, _args, out, entry=entry, kind=kind):
                    entry["read"][kind] = out

                names = dict(layer.named_modules())
                if writers[kind] in names:
                    hooks.append(names[writers[kind]].register_forward_hook(wrote))
                    hooks.append(names[norms[kind]].register_forward_hook(read))
        with torch.no_grad():
            model(ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        return found

    def fit(x, y, old, share, counts, bias):
        """Weights ``[out, in]`` and bias that explain y by x, held to ``old`` by a share of x's mean square."""
        root = counts.sqrt()[:, None]
        scale = (x.square() * counts[:, None]).sum(0).mean()
        held = (share * scale).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
        rows, wanted = torch.cat([x * root, held]), torch.cat([y * root, held @ old.T])
        if bias:
            rows = torch.cat([rows, torch.cat([root, torch.zeros(len(held), 1, dtype=x.dtype)])], 1)
        found = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.T
        return (found[:, :-1], found[:, -1]) if bias else (found, None)

    def module_of(model, layer, name):
        return model.get_submodule(path)[layer].get_submodule(name)

    def matrix(module):
        return module.weight.T if "Conv1D" in type(module).__name__ else module.weight

    theirs = watch(teacher)
    stream = []
    for entry in theirs:
        stream += [entry["before"], entry["before"] + entry["wrote"][0]]
    stream.append(theirs[-1]["behind"])
    steps = [
        (2 * units.source + kind, number, kind)
        for number, units in enumerate(spec.layers)
        for kind in (0, 1)
        if (units.kv_heads, units.neurons)[kind]
    ]
    channels = list(spec.hidden)
    with torch.no_grad():
        for step, (position, number, kind) in enumerate(steps):
            if read_ridge is not None:
                x = watch(student)[number]["read"][kind].flatten(0, 1)
                y = theirs[position // 2]["read"][kind].flatten(0, 1)
                same = torch.eye(y.shape[1], dtype=y.dtype)[:, channels]
                mapping, _ = fit(x, y, same, read_ridge, torch.ones(len(x), dtype=x.dtype), False)
                for name in readers[kind]:
                    whole = matrix(module_of(wide, number, name))
                    matrix(module_of(student, number, name)).copy_(whole @ mapping)
            mine = watch(student)[number]
            now = mine["before"] + (mine["wrote"][0] if kind == 1 and 0 in mine["wrote"] else 0)
            end = steps[step + 1][0] if step + 1 < len(steps) else len(stream) - 1
            first, last = (stream[place][..., channels].flatten(0, 1) for place in (position, end))
            wanted = last - first + pull * (first - now.flatten(0, 1))
            counts = 1 / last.square().mean(1) if even else torch.ones(len(last), dtype=last.dtype)
            writer = module_of(student, number, writers[kind])
            has_bias = writer.bias is not None
            weight, bias = fit(mine["given"][kind].flatten(0, 1), wanted, matrix(writer), ridge, counts, has_bias)
            matrix(writer).copy_(weight)
            if has_bias:
                writer.bias.copy_(bias)
