"""What a judge's fingerprint consists of, part by part, so that a later change can be named."""

from __future__ import annotations

import json

from judges.judge import FILE, PROTOCOL, Judge
from judges.settings import LanguageModelSettings
from store.hashing import file_hashes, hash_json


def judge_parts(judge: Judge) -> dict[str, str]:
    """Part -> hash or short value: the prompt, the principles, the rubric, each key of judge.yaml that an answer or a
    vote depends on, and for a cascade the same of its members."""
    settings = judge.settings
    parts = {"protocol": str(PROTOCOL)}
    values = settings.fingerprinted | settings.derivation
    values.pop("model", None)
    parts |= {f"{FILE} {name}": json.dumps(value, ensure_ascii=False) for name, value in sorted(values.items())}
    if judge.model:
        parts[f"{FILE} model"] = judge.model_identity
    if isinstance(settings, LanguageModelSettings):
        parts[settings.prompt] = hash_json(judge.prompt_text)
        if settings.constitution is not None:
            parts[settings.constitution] = hash_json(list(judge.principles))
    if judge.rubric is not None:
        parts |= {name: digest for name, digest in file_hashes(judge.folder).items() if name != FILE}
    for role, member in zip(("first", "then"), judge.members, strict=False):
        parts |= {f"{role} {member.name}/{name}": value for name, value in judge_parts(member).items()}
    return parts
