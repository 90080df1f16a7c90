"""The answer modes, by the name that a judge.yaml gives them. A new mode is one file and one line here."""

from judges.modes.base import Finding, Kind, Mode, find
from judges.modes.flaws import Flaws
from judges.modes.listwise import Listwise
from judges.modes.pairwise_logprobs import PairwiseLogprobs
from judges.modes.pairwise_verdict import PairwiseVerdict
from judges.modes.program import Program
from judges.modes.rating import Rating
from judges.modes.thumbs import Thumbs

__all__ = ["MODES", "Finding", "Kind", "Mode", "find"]

MODES: dict[str, Mode] = {
    "pairwise_logprobs": PairwiseLogprobs(),
    "pairwise_verdict": PairwiseVerdict(),
    "rating": Rating(),
    "thumbs": Thumbs(),
    "flaws": Flaws(),
    "listwise": Listwise(),
    "program": Program(),
}
