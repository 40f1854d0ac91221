"""Bundle and patients it has never seen → Report; `python -m fusion.evaluate BUNDLE --collection DIR`.

report   scores, calibration, coverage, ablation, baselines and subgroups of a bundle on held-out examples
paired   two bundles on the same held-out examples: how far apart
unseen   the same for a folder laid out like one of the research collections
"""

from fusion.evaluate.paired import evaluate_beside
from fusion.evaluate.report import Report, evaluate

__all__ = ["Report", "evaluate", "evaluate_beside"]
