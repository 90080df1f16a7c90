"""What votes say about judges: accounting, biases, accuracy, agreement. The figures live in `judges.reports`."""

from judges.reports.accounting import account, spending, split_by_judge
from judges.reports.accuracy import judge_accuracy, label_accuracy, paired_accuracy
from judges.reports.agreement import agreement
from judges.reports.bias import judge_report
from judges.reports.causes import Cause, causes
from judges.reports.proportions import proportion
from judges.reports.selfpreference import origins_of, own_names, self_preference

__all__ = [
    "Cause",
    "account",
    "agreement",
    "causes",
    "judge_accuracy",
    "judge_report",
    "label_accuracy",
    "origins_of",
    "own_names",
    "paired_accuracy",
    "proportion",
    "self_preference",
    "spending",
    "split_by_judge",
]
