"""Estimates from people's verdicts, all with intervals: accuracy of judges, win rates, agreement, the taste for length.

people        what people say about each pair
means         the estimator that combines many judges' opinions with few verdicts
accuracy      how often judges and panel are right: naive, weighted, corrected, and on the uniform stratum
winrate       how often one side wins: naive, weighted, corrected
length        the slope on length, and the win rate at equal lengths
agreement     kappa, alpha, AC1
"""

from audit.estimates.accuracy import PANEL, Accuracy, Estimates, estimate, wilson
from audit.estimates.coefficients import Agreement, Coefficient, agreement
from audit.estimates.length import LengthControlled, length_controlled
from audit.estimates.means import Mean, corrected_mean, hajek_mean
from audit.estimates.people import Said
from audit.estimates.winrate import WinRate, win_rate

__all__ = [
    "PANEL",
    "Accuracy",
    "Agreement",
    "Coefficient",
    "Estimates",
    "LengthControlled",
    "Mean",
    "Said",
    "WinRate",
    "agreement",
    "corrected_mean",
    "estimate",
    "hajek_mean",
    "length_controlled",
    "wilson",
    "win_rate",
]
