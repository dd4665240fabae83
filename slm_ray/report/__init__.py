"""Tables, pictures, pages, summaries and model cards, made from the records of a run alone; needs no torch."""

from slm_ray.report.build import build_report, build_training_report
from slm_ray.report.card import model_card
from slm_ray.report.model import Model, RunRecords, Shape
from slm_ray.report.records import load_run, parse_run
from slm_ray.report.summary import summary_text

__all__ = [
    "Model", "RunRecords", "Shape", "build_report", "build_training_report", "load_run", "model_card", "parse_run",
    "summary_text",
]  # fmt: skip
