"""Slow, obvious versions of what is measured in texts and of ratings; those of models are in references.py."""


def sliding_losses(log_probabilities, ids, length, stride):
    """The loss of every token but the first, each from the first window of a sliding one that holds it."""
    losses, start = {}, 0
    while len(losses) < len(ids) - 1:
        inside = ids[start : start + length]
        values = log_probabilities(inside)
        for at in range(1, len(inside)):
            losses.setdefault(start + at, -float(values[at - 1][inside[at]]))
        start += stride
    return [losses[position] for position in sorted(losses)]


def naive_continuation(model, ids, count, ends=()):
    """A prompt continued by its likeliest tokens, the whole text read anew for each, with no cache and no padding.

    Returns:
        The new tokens, without the one that ended it, and whether one did.
    """
    import torch

    new = []
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            return new, True
        new.append(token)
    return new, False


def _counted(items, length):
    counts = {}
    for start in range(len(items) - length + 1):
        gram = tuple(items[start : start + length])
        counts[gram] = counts.get(gram, 0) + 1
    return counts


def naive_bleu(texts, references):
    """Corpus BLEU of words between blanks (Papineni et al. 2002), one or more references per text, all n-grams matching
    somewhere. The reference length is that of the one nearest in length, the shorter of two."""
    import math

    matched, possible, length, wanted = [0] * 4, [0] * 4, 0, 0
    for text, options in zip(texts, references, strict=True):
        words, others = text.split(), [option.split() for option in options]
        length += len(words)
        wanted += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(4):
            for gram, count in _counted(words, n + 1).items():
                matched[n] += min(count, max(_counted(other, n + 1).get(gram, 0) for other in others))
                possible[n] += count
    precision = math.prod(matched[n] / possible[n] for n in range(4)) ** 0.25
    return 100 * precision * (1.0 if length >= wanted else math.exp(1 - wanted / length))


def naive_chrf(texts, references):
    """Corpus chrF2 (Popović 2015): mean precision and recall of 1- to 6-grams of characters, recall counts twice."""
    precisions, recalls = [], []
    for n in range(1, 7):
        matched = written = wanted = 0
        for text, reference in zip(texts, references, strict=True):
            mine, other = (_counted("".join(one.split()), n) for one in (text, reference))
            matched += sum(min(count, other.get(gram, 0)) for gram, count in mine.items())
            written, wanted = written + sum(mine.values()), wanted + sum(other.values())
        precisions.append(matched / written)
        recalls.append(matched / wanted)
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def naive_bradley_terry(models, results, extra_ties):
    """Log-strengths that make the results likeliest, by small steps uphill; their mean is 0.

    Args:
        models: The names.
        results: Pairs of a winner and a loser, each with a weight.
        extra_ties: Ties between each pair of models that met, added to the results.
    """
    import math

    met = {frozenset(pair) for pair, _ in results}
    half = extra_ties / 2
    results = [*results, *((tuple(way), half) for pair in met for way in (sorted(pair), sorted(pair)[::-1]))]
    strength = dict.fromkeys(models, 0.0)
    for _ in range(2000):
        slope = dict.fromkeys(models, 0.0)
        for (winner, loser), weight in results:
            upset = weight / (1 + math.exp(strength[winner] - strength[loser]))
            slope[winner], slope[loser] = slope[winner] + upset, slope[loser] - upset
        strength = {model: value + 0.02 * slope[model] for model, value in strength.items()}
    mean = sum(strength.values()) / len(strength)
    return {model: value - mean for model, value in strength.items()}


def naive_krippendorff(units):
    """Nominal alpha from all pairs of values: 1 - disagreement within units over disagreement between any two values.

    Args:
        units: For each thing that was rated, the ratings of it; those rated once do not count.
    """
    units = [unit for unit in units if len(unit) > 1]
    every = [value for unit in units for value in unit]
    seen = sum(sum(a != b for i, a in enumerate(u) for j, b in enumerate(u) if i != j) / (len(u) - 1) for u in units)
    pairs = [(a, b) for i, a in enumerate(every) for j, b in enumerate(every) if i != j]
    expected = sum(a != b for a, b in pairs) / len(pairs) if pairs else 0
    return 1 - (seen / len(every)) / expected if expected else None


def slow_merges(words, known, count):
    """The next merges of a BPE training, all pairs counted anew for every one of them."""
    import itertools
    from collections import Counter

    words, known, merges = dict(words), set(known), []
    while len(merges) < count:
        pairs = Counter()
        for word, amount in words.items():
            for pair in itertools.pairwise(word):
                if pair[0] + pair[1] not in known:
                    pairs[pair] += amount
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            return merges
        merges.append(best)
        known.add(best[0] + best[1])
        merged = Counter()
        for word, amount in words.items():
            out = list(word)
            place = 0
            while place + 1 < len(out):
                if (out[place], out[place + 1]) == best:
                    out[place : place + 2] = [best[0] + best[1]]
                place += 1
            merged[tuple(out)] += amount
        words = merged
    return merges
