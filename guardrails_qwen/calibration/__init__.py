"""Probabilities that mean what they say: temperature scaling, fitted on labelled texts.

A `Calibration` holds one temperature for each field of an answer and is what an engine loads. `fit`
finds one, and measures on rows that were not fitted what it is worth. Method: Guo et al. 2017,
"On Calibration of Modern Neural Networks" (arXiv 1706.04599).
"""

from guardrails_qwen.calibration.fitting import fit
from guardrails_qwen.calibration.labelled import LabelledRow, LabelledRows, read_rows
from guardrails_qwen.calibration.report import FieldReport, Measures, Report
from guardrails_qwen.calibration.temperatures import Calibration

__all__ = [
    "Calibration",
    "FieldReport",
    "LabelledRow",
    "LabelledRows",
    "Measures",
    "Report",
    "fit",
    "read_rows",
]
