import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.split import HELD_OUT
from slm_ray.evaluate.command import main
from slm_ray.runtime.commands import run_command
from tests.models import tiny
from tests.search.tiny_run import make_tokenizer, sentences
from tests.text_references import sliding_losses

LENGTH, TOKENS = 16, 160


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus and three models on it: two with one tokenizer, one with another."""
    folder = tmp_path_factory.mktemp("evaluate")
    text = sentences(400)
    (folder / "corpus.txt").write_text(text)
    first, second = make_tokenizer(text), make_tokenizer("aaa bbb " * 50)
    for name, seed, tokenizer in (("a", 0, first), ("b", 1, first), ("c", 2, second)):
        tiny.tiny_model("llama", seed=seed, vocab_size=len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def arguments(place, out, *names, **options):
    given = {"data": place / "corpus.txt", "eval-tokens": TOKENS, "sequence-length": LENGTH}
    given |= {"precision": "fp32", "threads": 1}
    flags = [text for name, value in (given | options).items() for text in (f"--{name}", str(value))]
    return [*(text for name in names for text in ("--model", str(place / name))), *flags, "--out", str(out)]


def result_of(place, out, *names, **options):
    assert run_command(main, arguments(place, out, *names, **options)) == 0
    return json.loads((out / "evaluate.json").read_text())


def evaluate(place, out, *names, **options):
    """What was found of each model's only text."""
    models = result_of(place, out, *names, **options)["models"]
    return [model["text"][0] | {"tokenizer": model["tokenizer"]} for model in models]


def sums_of(folder, place, *, separate):
    """Sum of losses and number of predicted tokens of each sequence, by transformers' own forward pass."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    packed = prepare_tokens(
        load_corpus(str(place / "corpus.txt")), tokenizer, HELD_OUT, num_tokens=TOKENS, sequence_length=LENGTH
    )
    starts = set(packed.document_starts.tolist())
    sums = []
    for number, row in enumerate(torch.tensor(packed.ids.astype("int64"))):
        inside = [i for i in range(1, LENGTH) if separate and number * LENGTH + i in starts]
        total, count = 0.0, 0
        for low, high in zip([0, *inside], [*inside, LENGTH], strict=True):
            logits = model(row[None, low:high]).logits[0].log_softmax(-1)
            for at in range(low + 1, high):
                total, count = total - logits[at - 1 - low, row[at]].item(), count + 1
        sums.append((total, count))
    return sums, packed


@pytest.mark.parametrize("separate", [True, False])
def test_the_figures_are_those_of_transformers_own_forward_pass(place, tmp_path, separate):
    documents = "separate" if separate else "joined"
    rows = evaluate(place, tmp_path / "out", "a", "b", documents=documents)
    for row, name in zip(rows, "ab", strict=True):
        sums, packed = sums_of(place / name, place, separate=separate)
        total, count = sum(loss for loss, _ in sums), sum(number for _, number in sums)
        assert row["tokens"] == count
        assert row["loss"] == pytest.approx(total / count, rel=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
        bits = total / count * packed.num_tokens / packed.num_bytes / math.log(2)
        assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_difference_is_paired_over_sequences(place, tmp_path):
    found = result_of(place, tmp_path / "out", "a", "b", documents="joined")["differences"]
    assert len(found) == 1
    pairs = zip(*(sums_of(place / name, place, separate=False)[0] for name in "ab"), strict=True)
    each = [(b[0] - a[0]) / (LENGTH - 1) for a, b in pairs]  # with equally long sequences, a plain mean and its error
    mean = sum(each) / len(each)
    error = math.sqrt(sum((value - mean) ** 2 for value in each) / (len(each) - 1) / len(each))
    found = found[0]
    assert found["paired"] and found["quantity"] == "loss" and found["to"] == str(place / "a")
    assert found["difference"] == pytest.approx(mean, rel=1e-4)
    assert found["stderr"] == pytest.approx(error, rel=1e-4)
    assert found["low"] < mean < found["high"]
    inside = found["low"] <= 0 <= found["high"]
    assert found["verdict"] == ("within the noise" if inside else "worse" if mean > 0 else "better")


def test_a_model_against_itself_is_within_the_noise(place, tmp_path, capsys):
    twin = tmp_path / "twin"
    twin.symlink_to(place / "a")
    assert run_command(main, [*arguments(place, tmp_path / "out", "a"), "--model", str(twin)]) == 0
    assert "within the noise" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/evaluate.json").read_text())
    assert result["notes"] == [f"{twin} has the same weights as {place / 'a'}"]
    assert [(d["difference"], d["low"], d["high"]) for d in result["differences"]] == [(0, 0, 0)]


def test_other_tokenizers_read_the_same_text_and_are_compared_in_bits_per_byte(place, tmp_path):
    first, other = evaluate(place, tmp_path / "out", "a", "c")
    assert first["tokenizer"] != other["tokenizer"]
    sequence_bytes = other["bytes"] / other["units"]
    assert abs(first["bytes"] - other["bytes"]) <= 0.6 * sequence_bytes
    assert other["units"] > first["units"]  # its tokens are shorter
    found = json.loads((tmp_path / "out/evaluate.json").read_text())["differences"][0]
    assert found["quantity"] == "bits_per_byte" and not found["paired"]
    errors = math.hypot(first["bits_per_byte_stderr"], other["bits_per_byte_stderr"])
    assert found["stderr"] == pytest.approx(errors)
    assert found["difference"] == pytest.approx(other["bits_per_byte"] - first["bits_per_byte"])


def loads(monkeypatch):
    """Names of the models that are loaded from now on."""
    from slm_ray.evaluate import measure

    loaded, load = [], measure.LoadedModel
    monkeypatch.setattr(measure, "LoadedModel", lambda model, *rest: loaded.append(model.name) or load(model, *rest))
    return loaded


def test_what_was_measured_is_kept_and_other_settings_are_measured_anew(place, tmp_path, capsys, monkeypatch):
    out, (a, b) = tmp_path / "out", (str(place / "a"), str(place / "b"))
    loaded = loads(monkeypatch)
    before = evaluate(place, out, "a")
    rows = evaluate(place, out, "a", "b")
    assert loaded == [a, b] and rows[0] == before[0]
    assert "measured before" in capsys.readouterr().err
    evaluate(place, out, "a", documents="joined")
    assert loaded == [a, b, a]
    # Another folder finds it in the cache, unless it is to be measured afresh.
    assert evaluate(place, tmp_path / "other", "a") == before and loaded == [a, b, a]
    assert run_command(main, [*arguments(place, tmp_path / "third", "a"), "--fresh"]) == 0 and loaded == [a, b, a, a]


def test_a_model_that_fails_does_not_stop_the_others_and_resume_measures_what_is_left(
    place, tmp_path, capsys, monkeypatch
):
    from slm_ray.evaluate import measure

    out, damaged = tmp_path / "out", []
    real = measure.LoadedModel.losses

    def losses(self, ids, positions):
        if self.name.endswith("a") and not damaged:
            raise RuntimeError("something nobody planned for")
        return real(self, ids, positions)

    monkeypatch.setattr(measure.LoadedModel, "losses", losses)
    assert run_command(main, arguments(place, out, "a", "b")) == 2
    said = capsys.readouterr()
    assert "1 of 2 models failed; the first:" in said.err and "something nobody planned for" in said.err
    first, other = json.loads((out / "evaluate.json").read_text())["models"]
    assert "something nobody planned for" in first["error"] and not first["text"] and other["text"]
    damaged.append(True)
    loaded = loads(monkeypatch)
    assert run_command(main, ["--resume", str(out)]) == 0
    assert loaded == [str(place / "a")]
    models = json.loads((out / "evaluate.json").read_text())["models"]
    assert all(model["text"] and not model["error"] for model in models)


def test_a_text_that_does_not_suit_a_model_leaves_its_other_texts(place, tmp_path, capsys, monkeypatch):
    from slm_ray.config.errors import UserError
    from slm_ray.evaluate import measure

    real = measure._measure

    def text(job, part, *rest):
        if part.name == "odd" and job.label.endswith("a"):
            raise UserError("this text is not for this model")
        return real(job, part, *rest)

    monkeypatch.setattr(measure, "_measure", text)
    (tmp_path / "odd.txt").write_text(sentences(100, seed=5))
    more = ["--data", f"odd={tmp_path / 'odd.txt'}", "--part", "whole", "--window", "sliding"]
    assert run_command(main, [*arguments(place, tmp_path / "out", "a", "b"), *more]) == 2
    said = capsys.readouterr().err
    assert "1 of 2 models failed in part; the first: this text is not for this model" in said
    first, other = json.loads((tmp_path / "out/evaluate.json").read_text())["models"]
    assert len(first["text"]) == 1 and len(other["text"]) == 2 and first["error"] == "this text is not for this model"


def test_a_sliding_window_counts_every_token_once_with_the_context_it_has(place, tmp_path):
    (tmp_path / "short.txt").write_text(sentences(30))
    options = {"data": tmp_path / "short.txt", "window": "sliding", "stride": 5, "part": "whole"}
    row, other = evaluate(place, tmp_path / "out", "a", "c", **options)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place / "a"), AutoTokenizer.from_pretrained(place / "a")
    documents = [document.text for document in load_corpus(str(tmp_path / "short.txt"))]
    total, count, size = 0.0, 0, 0
    for text in documents:
        found = sliding_losses(
            lambda ids: model(torch.tensor([ids])).logits[0].log_softmax(-1).detach().numpy(),
            [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]], LENGTH, 5,
        )  # fmt: skip
        total, count, size = total + sum(found), count + len(found), size + len(text.encode())
    assert row["tokens"] == count and row["bytes"] == other["bytes"] == size and row["unit"] == "document"
    assert row["loss"] == pytest.approx(total / count, rel=1e-5)
    assert row["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-5)
    # Documents are the same in both tokenizers' tokens, so bits per byte are compared in pairs.
    found = json.loads((tmp_path / "out/evaluate.json").read_text())["differences"][0]
    assert found["paired"] and found["quantity"] == "bits_per_byte"
    assert found["difference"] == pytest.approx(other["bits_per_byte"] - row["bits_per_byte"])


def test_domains_are_measured_one_by_one(place, tmp_path):
    lines = [json.dumps({"text": sentences(6, seed=i), "meta": {"of": "xy"[i % 2]}}) for i in range(20)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    options = {"data": f"both={tmp_path / 'mixed.jsonl'}", "part": "whole", "window": "sliding"}
    by_field = result_of(place, out, "a", **options, **{"domain-field": "meta.of"})["models"][0]["text"]
    assert [row["domain"] for row in by_field] == ["x", "y"]
    whole = result_of(place, out, "a", **options)["models"][0]["text"]
    assert whole[0]["domain"] == "both" and whole[0]["tokens"] > sum(row["tokens"] for row in by_field) * 0.9


def test_a_dry_run_says_what_would_be_measured_and_measures_nothing(place, tmp_path, capsys):
    assert run_command(main, [*arguments(place, tmp_path / "out", "a"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{place / 'a'} (model" in said and "text" in said and not (tmp_path / "out").exists()


def test_logits_that_are_capped_are_taken_from_the_model(tmp_path):
    from slm_ray.evaluate.models import LoadedModel, ModelFolder

    config = Gemma2Config(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=24, final_logit_softcapping=0.5, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    loaded = LoadedModel(ModelFolder("gemma", tmp_path, ""), "fp32", torch.device("cpu"))
    ids = tiny.tiny_ids()
    logits = loaded.model(ids).logits[:, :-1].log_softmax(-1)
    expected = -logits.gather(-1, ids[:, 1:, None]).flatten()
    assert loaded.head is None
    torch.testing.assert_close(loaded.losses(ids, None), expected)


@pytest.mark.parametrize(
    "change, said",
    [
        (["--model", "nobody/here/at/all"], "is not a model folder, .gguf file or hub id"),
        (["--model", "tests/nowhere"], "is not a model folder, .gguf file or hub id"),  # no hub is waited for
        (["--tasks", "helaswag"], "there is no task 'helaswag': did you mean 'hellaswag'"),
        (["--sequence-length", "128"], "--sequence-length 128 is over the 64 positions"),
        (["--eval-tokens", "1"], "--eval-tokens: must be at least 2"),
        (["--documents", "both"], "'both' is not one of them"),
        (["--data", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--domain-field", "kind"], "is plain text, whose documents have no field 'kind'"),
        (["--stride", "4"], "--stride 4 is for --window sliding"),
        (["--window", "sliding", "--stride", "16"], "--stride 16 must be less than --sequence-length 16"),
        (["--peers", "teachers"], "'teachers' is none of auto, none, teacher"),
        (["--peers", "teacher"], "--peers teacher needs a teacher"),
        (["--limit", "3"], "--limit is for tasks"),
        (["--references"], "--references needs prompts"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(place, tmp_path, capsys, change, said):
    assert run_command(main, [*arguments(place, tmp_path / "out", "a"), *change]) == 2
    told = capsys.readouterr()
    assert (told.out + told.err).count(said) == 1


def test_no_model_at_all_is_a_sentence(capsys, tmp_path):
    assert run_command(main, ["--out", str(tmp_path)]) == 2
    assert "--model is missing" in capsys.readouterr().err
