"""Winners on text of another kind, which a search neither learned from nor chose by."""

from __future__ import annotations

from slm_ray.report.blocks import Rows, Section
from slm_ray.report.fitted import fitted_perplexity, reconstruction_of
from slm_ray.report.model import Model, RunRecords
from slm_ray.report.records import mapping, number
from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING, count_text, perplexity_text, ratio_text

_TITLE = "On text of another kind"
_Figure = tuple[float | None, float | None]  # a perplexity and its standard error


def _measured(model: Model) -> _Figure:
    """A model's perplexity on the other text as it was cut out, and its standard error."""
    return number(model.detail("other_perplexity")), number(model.detail("other_stderr"))


def _exported(model: Model) -> _Figure:
    """The same with fitted weights; None where none were fitted."""
    after = mapping(reconstruction_of(model).get("after"))
    return number(after.get("other_perplexity")), number(after.get("other_stderr"))


def _name_of(run: RunRecords) -> str:
    found = mapping((run.corpus or {}).get("other"))
    tokens = number(found.get("tokens"))
    return f"{found.get('name')}" + ("" if tokens is None else f", {tokens:,.0f} tokens")


def other_text_table(run: RunRecords) -> Table:
    """The teacher and every winner, as cut out and with fitted weights: perplexity on held-out and other text."""
    teacher = run.teacher
    rows = []
    for model in [*([teacher] if teacher else []), *sorted(_winners(run), key=lambda one: one.winner or 0)]:
        name = model.name if model is teacher else f"winner {model.winner}"
        cut = (model.held_out_perplexity, model.held_out_stderr)
        rows.append(_row(name, model, cut, _measured(model), teacher))
        if _exported(model)[0] is not None:
            rows.append(_row(f"{name}, weights fitted", model, fitted_perplexity(model), _exported(model), teacher))
    header = ("model", "parameters", "held-out text", "× teacher", "the other text", "× teacher")
    return Table(_TITLE, header, tuple(rows))


def _winners(run: RunRecords) -> list[Model]:
    return [model for model in run.front if model.winner is not None and _measured(model)[0] is not None]


def _row(name: str, model: Model, own: _Figure, other: _Figure, teacher: Model | None) -> tuple[str, ...]:
    of_own, of_other = (teacher.held_out_perplexity, _measured(teacher)[0]) if teacher else (None, None)
    return (
        name, count_text(model.params), perplexity_text(*own), ratio_text(own[0], of_own),
        perplexity_text(*other), ratio_text(other[0], of_other),
    )  # fmt: skip


def other_text_section(run: RunRecords) -> Section:
    """The table as a section; empty where no other text was measured."""
    lead = (
        f"Perplexity on {_name_of(run)}, which nothing was learned or chosen by, beside that on held-out text of the "
        "corpus. Where its ratio to the teacher is much the larger, the model is one for the corpus alone."
    )
    return Section(_TITLE, [Rows(other_text_table(run))] if _winners(run) else [], lead)


def other_text_line(run: RunRecords) -> str:
    """What the best model is worth on the other text, for a terminal; empty where that was not measured."""
    best, teacher = run.best, run.teacher
    if best is None or _measured(best)[0] is None:
        return ""
    fitted = _exported(best)
    value, stderr = _measured(best) if fitted[0] is None else fitted
    ratio = ratio_text(value, _measured(teacher)[0]) if teacher else MISSING
    times = "" if ratio == MISSING else f", {ratio} of the teacher's"
    return f"On {_name_of(run)}: {perplexity_text(value, stderr)}{times}{' with fitted weights' if fitted[0] else ''}"
